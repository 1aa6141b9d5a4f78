from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from darkbloom_provider.account.client import CoordinatorClient
from darkbloom_provider.account.credentials import Credentials, CredentialStore
from darkbloom_provider.cli.context import Invocation
from darkbloom_provider.cli.login import has_browser, link
from darkbloom_provider.cli.main import main
from darkbloom_provider.control.models import AccountReload
from darkbloom_provider.logs import Secret
from darkbloom_provider.paths import Home
from support.control_socket import ToldDaemon, told_daemon
from support.rest import (
    CODE,
    EXTENSIONS,
    TOKEN,
    Answer,
    Script,
    account_reply,
    error,
    serving,
)

HEALTH = Answer(body={"status": "ok", "providers": 1, "extensions": EXTENSIONS})
PENDING = Answer(body={"status": "authorization_pending"})
GRANTED = Answer(body={"status": "authorized", "token": TOKEN, "account_id": "5ada837c"})
QUICK = Answer(body=CODE | {"interval": 1})
ACCOUNT = "GET /v1/provider/account-earnings"
NO_KEYRING = {"PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("DARKBLOOM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    return Home(tmp_path / "home")


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls follow each other at once: what the waits are is tested with the loop itself."""
    pause = asyncio.sleep
    monkeypatch.setattr("asyncio.sleep", lambda _seconds: pause(0))


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["login", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def store_of(home: Home) -> CredentialStore:
    return CredentialStore(home, NO_KEYRING)


@pytest.mark.usefixtures("no_waiting")
def test_login_shows_the_code_and_says_where_the_token_went(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Script({"POST /v1/device/code": QUICK, "POST /v1/device/token": GRANTED})
    with serving(script) as base:
        assert run("--coordinator", base) == 0
        found = store_of(home).load(base)
    assert found is not None
    assert (found.token.reveal(), found.account_id) == (TOKEN, "5ada837c")
    shown = capsys.readouterr().out
    assert "https://console.example/link" in shown
    assert "ABCD-2345" in shown
    assert "15 min left" in shown
    assert "Linked to account 5ada837c" in shown
    assert str(home.credentials) in shown
    assert TOKEN not in shown


def test_a_provider_that_missed_the_login_is_told_by_the_next_one(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Script({"GET /health": HEALTH, ACCOUNT: Answer(body=account_reply())})
    with serving(script) as base, told_daemon(home, ToldDaemon()) as daemon:
        store_of(home).save(base, Credentials(Secret(TOKEN), "5ada837c"))
        daemon.account = AccountReload(coordinator=f"{base}/ws/provider", linked=True, changed=True)
        assert run("--coordinator", base) == 0
    assert daemon.asked == ["account"]
    assert "earns for this account from now on" in capsys.readouterr().out


def test_a_linked_machine_says_so_and_asks_for_no_code(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Script({"GET /health": HEALTH, ACCOUNT: Answer(body=account_reply())})
    with serving(script) as base:
        store_of(home).save(base, Credentials(Secret(TOKEN), "5ada837c"))
        assert run("--coordinator", base) == 0
    shown = capsys.readouterr().out
    assert "already linked to account 5ada837c" in shown
    assert "darkbloom logout" in shown
    assert not [asked for asked in script.asked if asked.startswith("POST")]


@pytest.mark.parametrize("health", [Answer(503, b""), Answer(body={"status": "ok"})])
def test_a_coordinator_that_cannot_tell_is_no_reason_to_link_again(
    home: Home, capsys: pytest.CaptureFixture[str], health: Answer
) -> None:
    with serving(Script({"GET /health": health})) as base:
        store_of(home).save(base, Credentials(Secret(TOKEN)))
        assert run("--coordinator", base) == 0
    assert "already linked to an account" in capsys.readouterr().out


@pytest.mark.usefixtures("no_waiting")
def test_a_revoked_token_is_replaced(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    script = Script(
        {
            "GET /health": HEALTH,
            ACCOUNT: Answer(401, error("authentication_error")),
            "POST /v1/device/code": QUICK,
            "POST /v1/device/token": GRANTED,
        }
    )
    with serving(script) as base:
        store_of(home).save(base, Credentials(Secret("eigeninference-pt-old")))
        assert run("--coordinator", base) == 0
        found = store_of(home).load(base)
    assert found is not None
    assert found.token.reveal() == TOKEN
    assert "no longer accepts" in capsys.readouterr().out


@pytest.mark.usefixtures("no_waiting")
def test_a_refused_code_ends_with_the_coordinators_words(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = Answer(410, error("expired_token", "the code has expired"))
    script = Script({"POST /v1/device/code": QUICK, "POST /v1/device/token": refused})
    with serving(script) as base:
        assert run("--coordinator", base) == 1
        assert store_of(home).load(base) is None
    captured = capsys.readouterr()
    assert "the code has expired" in captured.err
    assert "darkbloom login" in captured.err


def test_without_a_coordinator_login_ends_with_3(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--coordinator", "http://127.0.0.1:9") == 3
    assert "http://127.0.0.1:9" in capsys.readouterr().err
    assert not home.root.exists()


@pytest.mark.usefixtures("no_waiting")
def test_a_token_that_cannot_be_kept_is_given_back(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("darkbloom_provider.account.credentials.write_private", full)
    script = Script(
        {
            "POST /v1/device/code": QUICK,
            "POST /v1/device/token": GRANTED,
            "POST /v1/device/revoke": Answer(body={"status": "revoked"}),
        }
    )
    with serving(script) as base:
        assert run("--coordinator", base) == 1
    assert "No space left" in capsys.readouterr().err
    assert script.asked[-1] == "POST /v1/device/revoke"
    assert script.authorized[-1] == f"Bearer {TOKEN}"


@pytest.mark.usefixtures("no_waiting")
def test_a_running_provider_is_told_of_the_login(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Script({"POST /v1/device/code": QUICK, "POST /v1/device/token": GRANTED})
    with serving(script) as base, told_daemon(home, ToldDaemon()) as daemon:
        daemon.account = AccountReload(coordinator=f"{base}/ws/provider", linked=True, changed=True)
        assert run("--coordinator", base) == 0
    assert daemon.asked == ["account"]
    shown = capsys.readouterr().out
    assert "The running provider earns for this account from now on." in shown
    assert "darkbloom start" not in shown


async def test_on_a_terminal_the_browser_opens_and_the_wait_is_live(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("click.launch", opened.append)
    screen = io.StringIO()
    out = Console(file=screen, force_terminal=True, width=100)
    invocation = Invocation(environ={"DISPLAY": ":0"}, out=out)
    script = Script(
        {
            "POST /v1/device/code": Answer(body=CODE),
            "POST /v1/device/token": [PENDING, PENDING, GRANTED],
        }
    )
    now = 0.0

    async def sleep(_seconds: float) -> None:
        nonlocal now
        now += 300.0

    async with CoordinatorClient("https://c.example", transport=script.transport()) as client:
        found = await link(invocation, client, clock=lambda: now, sleep=sleep)
    assert found.token.reveal() == TOKEN
    assert opened == ["https://console.example/link"]


async def test_a_browser_that_cannot_open_does_not_end_the_login(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_url: str) -> None:
        raise OSError("no opener")

    monkeypatch.setattr("click.launch", broken)
    invocation = Invocation(
        environ={"DISPLAY": ":0"}, out=Console(file=io.StringIO(), force_terminal=True)
    )
    script = Script({"POST /v1/device/code": Answer(body=CODE), "POST /v1/device/token": GRANTED})

    async def sleep(_seconds: float) -> None:
        return

    async with CoordinatorClient("https://c.example", transport=script.transport()) as client:
        found = await link(invocation, client, clock=lambda: 0.0, sleep=sleep)
    assert found.account_id == "5ada837c"


@pytest.mark.parametrize(
    ("environ", "platform", "expected"),
    [
        ({}, "darwin", True),
        ({"SSH_CONNECTION": "x"}, "darwin", False),
        ({}, "linux", False),
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({"DISPLAY": ":0", "SSH_CONNECTION": "x"}, "linux", False),
    ],
)
def test_a_browser_is_opened_only_where_the_owner_sits(
    environ: dict[str, str], platform: str, *, expected: bool
) -> None:
    assert has_browser(environ, platform) is expected


def test_ctrl_c_while_waiting_ends_cleanly_with_130(home: Home) -> None:
    script = Script({"POST /v1/device/code": QUICK, "POST /v1/device/token": PENDING})
    with serving(script) as base:
        process = subprocess.Popen(
            [sys.executable, "-m", "darkbloom_provider", "login", "--coordinator", base],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        for line in process.stdout:
            if "Waiting" in line:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert store_of(home).load(base) is None
    assert process.returncode == 130
    assert "Not linked. Run `darkbloom login`" in out
    assert "Traceback" not in err
