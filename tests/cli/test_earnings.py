from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from darkbloom_provider.account.credentials import Credentials, CredentialStore
from darkbloom_provider.cli.main import main
from darkbloom_provider.earnings.journal import JobRecord, Journal
from darkbloom_provider.logs import Secret
from darkbloom_provider.paths import Home
from support.rest import EXTENSIONS, TOKEN, Answer, Script, account_reply, error, serving

GOLDEN = """\
Darkbloom Earnings

Coordinator: online (14 providers connected)

Earnings:
  Balance:       $4.821200
  Total earned:  $12.340000
  Jobs served:   8423

Recent payouts:
  $0.000182  qwen3.5-27b-claude-opus-8bit
  $0.000094  mlx-community/gemma-4-26b-a4b-it-8bit
"""

HEALTH = Answer(body={"status": "ok", "providers": 14, "extensions": EXTENSIONS})
ACCOUNT = "GET /v1/provider/account-earnings"
NO_KEYRING = {"PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring"}
NOBODY = "http://127.0.0.1:9"
"""The discard port: nothing listens there."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("DARKBLOOM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    for name in ("DARKBLOOM_API_KEY", "DARKBLOOM_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return Home(tmp_path / "home")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["earnings", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def link(home: Home, base: str) -> None:
    CredentialStore(home, NO_KEYRING).save(base, Credentials(Secret(TOKEN), "5ada837c"))


def serve_jobs(home: Home, *amounts: int) -> None:
    with Journal.open(home.journal) as journal:
        for number, amount in enumerate(amounts):
            at = datetime(2026, 5, 1, 12, 0, number, tzinfo=UTC)
            job = JobRecord(f"job-{number}", at, f"model-{number}", 1, 2, "key", False, amount)
            journal.record(job)


def test_a_linked_machine_sees_the_promised_layout(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Script({"GET /health": HEALTH, ACCOUNT: Answer(body=account_reply())})) as base:
        link(home, base)
        assert run("--coordinator", base) == 0
    assert capsys.readouterr().out == GOLDEN


def test_json_is_one_object_of_integers(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    script = Script({"GET /health": HEALTH, ACCOUNT: Answer(body=account_reply())})
    with serving(script) as base:
        link(home, base)
        assert run("--coordinator", base, "--json", "--limit", "1") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["source"], found["balance_micro_usd"]) == ("account", 4_821_200)
    assert [row["amount_micro_usd"] for row in found["payouts"]] == [182]
    assert script.asked[-1].endswith("?limit=1")


def test_an_unlinked_machine_sees_its_local_block_and_one_line(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    serve_jobs(home, 94, 182)
    with serving(Script({"GET /health": HEALTH})) as base:
        assert run("--coordinator", base) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:8] == [
        "Darkbloom Earnings",
        "",
        "Coordinator: online (14 providers connected)",
        "",
        "Earnings:",
        "  Balance:       $0.000276",
        "  Total earned:  $0.000276",
        "  Jobs served:   2",
    ]
    assert lines[8:12] == ["", "Recent payouts:", "  $0.000182  model-1", "  $0.000094  model-0"]
    assert lines[12] == ""
    assert "darkbloom login" in lines[13]
    assert len(lines) == 14


@pytest.mark.parametrize("linked", [True, False])
def test_offline_shows_the_address_and_local_estimates_and_ends_with_3(
    home: Home, capsys: pytest.CaptureFixture[str], *, linked: bool
) -> None:
    serve_jobs(home, 94, 182)
    if linked:
        link(home, NOBODY)
    assert run("--coordinator", NOBODY) == 3
    shown = capsys.readouterr().out
    assert f"Coordinator: offline ({NOBODY})\n\nEarnings (local estimates):\n" in shown
    assert "  Total earned:  $0.000276\n" in shown
    assert ("darkbloom login" in shown) is not linked


def test_offline_json_is_still_one_object_and_ends_with_3(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    serve_jobs(home, 94)
    assert run("--coordinator", NOBODY, "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["source"], found["estimated"]) == ("journal", True)
    assert found["coordinator"] == {"url": NOBODY, "online": False, "providers": None}
    assert found["total_earned_micro_usd"] == 94


def test_a_revoked_token_says_what_happened_and_ends_with_4(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = Answer(401, error("authentication_error", "unknown token"))
    with serving(Script({"GET /health": HEALTH, ACCOUNT: refused})) as base:
        link(home, base)
        assert run("--coordinator", base) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "revoked" in captured.err
    assert "darkbloom login" in captured.err
    assert TOKEN not in captured.err


def test_a_damaged_credentials_file_ends_with_4_and_names_the_file(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    home.root.mkdir()
    home.credentials.write_text("{")
    assert run("--coordinator", NOBODY) == 4
    assert str(home.credentials) in capsys.readouterr().err


def test_a_damaged_journal_ends_with_1_and_stays(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    home.root.mkdir()
    home.journal.write_bytes(b"garbage" * 100)
    assert run("--coordinator", NOBODY) == 1
    assert str(home.journal) in capsys.readouterr().err
    assert home.journal.read_bytes() == b"garbage" * 100


def test_something_that_is_no_coordinator_ends_with_1(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Script({})) as base:
        assert run("--coordinator", base) == 1
    assert "--coordinator URL" in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "many"])
def test_a_limit_that_makes_no_sense_is_a_usage_error(home: Home, limit: str) -> None:
    assert run("--limit", limit) == 2


def test_an_api_key_needs_no_link(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKBLOOM_API_KEY", "eigeninference-" + "0" * 64)
    script = Script({"GET /health": HEALTH, ACCOUNT: Answer(body=account_reply())})
    with serving(script) as base:
        assert run("--coordinator", base) == 0
    assert capsys.readouterr().out == GOLDEN
    assert script.authorized[-1] == "Bearer eigeninference-" + "0" * 64


def test_asking_makes_nothing_on_disk(home: Home) -> None:
    run("--coordinator", NOBODY)
    assert not home.root.exists()


def test_earnings_never_load_mlx(home: Home) -> None:
    program = (
        "import sys\n"
        "from darkbloom_provider.cli.main import main\n"
        "try:\n"
        "    main(['earnings', '--coordinator', sys.argv[1]])\n"
        "except SystemExit as ended:\n"
        "    assert ended.code == 3, ended.code\n"
        "heavy = {'mlx', 'mlx_lm', 'huggingface_hub', 'transformers', 'numpy', 'sqlalchemy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, NOBODY], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
