from __future__ import annotations

import contextlib
import http.server
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.cli import doctor
from darkbloom_provider.doctor import bundle
from darkbloom_provider.doctor.checkup import CHECKS
from darkbloom_provider.doctor.place import Place
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.paths import Home
from support.processes import PATIENCE_S, darkbloom, environment

AWAY = ("--coordinator", "http://127.0.0.1:9")
TOKEN = "eigeninference-pt-" + "a" * 64
SECRETS = (TOKEN, "b" * 64, "c" * 32, "my-local-key-1234", "sk-owners-api-key-5678", "hunter22")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "h"


def report(home: Path, *arguments: str, **env: str) -> dict[str, Any]:
    ended = darkbloom("doctor", "--json", *arguments, home=home, env=env)
    document: dict[str, Any] = json.loads(ended.stdout)
    assert ended.returncode == (1 if document["counts"]["wrong"] else 0), ended.stderr
    return document


def finding(document: dict[str, Any], check: str) -> dict[str, Any]:
    found: dict[str, Any] = next(f for f in document["findings"] if f["check"] == check)
    return found


@contextlib.contextmanager
def serving_health() -> Iterator[int]:
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"status":"ok","providers":3}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_a_fresh_machine_offline_is_told_what_to_type_for_everything_wrong(home: Path) -> None:
    ended = darkbloom("doctor", *AWAY, home=home)
    assert ended.returncode == 1
    assert ended.stderr == ""
    lines = ended.stdout.splitlines()
    wrong = [number for number, line in enumerate(lines) if line.startswith("WRONG")]
    assert {lines[number].split()[1] for number in wrong} == {"models", "coordinator"}
    assert all("Next: " in lines[number + 1] for number in wrong)
    assert any(line.endswith("in order.") for line in lines[-2:])


def test_a_broken_setting_is_named_by_its_line_and_stops_no_other_check(home: Path) -> None:
    settings = home / "config" / "darkbloom" / "provider.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text('[provider]\nmemory_reserve_gb = "four"\n')
    document = report(home)
    assert finding(document, "settings")["verdict"] == "wrong"
    assert "line 2" in finding(document, "settings")["evidence"]
    assert finding(document, "coordinator")["verdict"] == "unknown"
    assert finding(document, "account")["verdict"] == "unknown"
    assert finding(document, "anti_debug_enabled")["verdict"] == "ok"
    assert {"program", "home", "disk", "daemon", "hardware"} <= {
        f["check"] for f in document["findings"]
    }


def test_a_settings_file_that_does_not_exist_is_told(home: Path, tmp_path: Path) -> None:
    ended = darkbloom("-c", str(tmp_path / "no.toml"), "doctor", home=home)
    assert ended.returncode == 1
    assert "does not exist" in ended.stdout
    assert "Traceback" not in ended.stderr


def test_fix_puts_right_what_needs_no_decision(home: Path) -> None:
    home.mkdir()
    home.chmod(0o755)
    (home / "wallet_key").write_text("b" * 64)
    (home / "wallet_key").chmod(0o644)
    (home / "machine_id").write_text("c" * 32)
    (home / "machine_id").chmod(0o600)
    (home / "credentials.json").write_text('{"version": 1}')
    (home / "credentials.json").chmod(0o640)
    before = report(home, *AWAY)
    assert finding(before, "secrets")["can_be_fixed"]
    assert (home / "wallet_key").stat().st_mode & 0o777 == 0o644, "looking changes nothing"
    assert (home / "credentials.json").stat().st_mode & 0o777 == 0o640
    assert finding(before, "identity")["verdict"] == "unknown"
    after = report(home, *AWAY, "--fix")
    assert len(after["repaired"]) == 3
    assert finding(after, "identity")["verdict"] == "ok"
    assert finding(after, "account")["verdict"] == "note"
    assert finding(after, "secrets")["verdict"] == "ok"
    assert finding(after, "home")["verdict"] == "ok"


def test_no_secret_is_ever_shown_or_bundled(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = home / "config" / "darkbloom" / "provider.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text('[coordinator]\nurl = "http://owner:hunter22@127.0.0.1:9"\n')
    (home / "credentials.json").touch(0o600)
    entry = {"http://owner:hunter22@127.0.0.1:9": {"token": TOKEN}}
    (home / "credentials.json").write_text(json.dumps({"version": 1, "coordinators": entry}))
    (home / "wallet_key").write_text("b" * 64)
    (home / "machine_id").write_text("c" * 32)
    (home / "local_key").write_text("my-local-key-1234")
    (home / "provider.log").write_text(f"token {TOKEN} key {'b' * 64} Bearer {'d' * 20}\n" * 9)
    monkeypatch.chdir(tmp_path)
    shown = ""
    for arguments in (("--bundle",), ("--json",)):
        ended = darkbloom(
            "doctor", *arguments, home=home, env={"DARKBLOOM_API_KEY": "sk-owners-api-key-5678"}
        )
        assert ended.returncode == 1
        shown += ended.stdout + ended.stderr
    (packed,) = tmp_path.glob("darkbloom-doctor-*.zip")
    assert packed.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(packed) as archive:
        assert set(archive.namelist()) == {
            "doctor.json",
            "settings.toml",
            "provider.log",
            "packages.txt",
        }
        shown += "".join(archive.read(name).decode() for name in archive.namelist())
    assert "127.0.0.1:9" in shown
    assert [secret for secret in SECRETS if secret in shown] == []
    assert "d" * 20 not in shown


def test_a_bundle_that_cannot_be_written_says_so(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "write", full)
    with pytest.raises(DarkbloomError, match="cannot be written") as refused:
        doctor._write_bundle(Place(home=Home(home), environ={}), [])
    assert refused.value.next_step


def test_a_name_server_that_hangs_holds_up_neither_the_report_nor_the_end(home: Path) -> None:
    program = (
        "import socket, sys, threading\n"
        "socket.getaddrinfo = lambda *a, **k: threading.Event().wait()\n"
        "from darkbloom_provider.doctor import checkup, finding\n"
        "examine = finding.examine\n"
        "checkup.examine = lambda checks, limit_s: examine(checks, 3)\n"
        "from darkbloom_provider.cli.main import main\n"
        "main(['doctor', '--json', '--coordinator', 'http://coordinator.example'])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    document = json.loads(ended.stdout)
    assert finding(document, "coordinator")["verdict"] == "unknown"
    assert finding(document, "disk")["verdict"] == "ok"
    assert ended.returncode == 1, "no model"


def test_an_address_that_is_none_is_a_usage_error(home: Path) -> None:
    ended = darkbloom("doctor", "--coordinator", "nonsense", home=home)
    assert ended.returncode == 2
    assert "--coordinator" in ended.stderr


def test_a_machine_with_nothing_wrong_exits_with_0(home: Path, tiny_model: Path) -> None:
    (home / "models").mkdir(parents=True)
    (home / "models" / "tiny").symlink_to(tiny_model, target_is_directory=True)
    with serving_health() as port:
        document = report(home, "--coordinator", f"http://127.0.0.1:{port}")
    assert document["counts"]["wrong"] == 0
    assert finding(document, "coordinator")["evidence"].endswith("answers, 3 providers connected")


def test_every_check_says_what_it_is_for() -> None:
    assert all(check.__doc__ for check in CHECKS.values())
