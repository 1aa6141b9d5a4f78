from __future__ import annotations

from pathlib import Path

import pytest

from darkbloom_provider.account.credentials import Credentials, CredentialStore
from darkbloom_provider.cli.main import main
from darkbloom_provider.control.models import AccountReload
from darkbloom_provider.logs import Secret
from darkbloom_provider.paths import Home
from support.control_socket import ToldDaemon, told_daemon
from support.rest import TOKEN, Answer, Script, error, serving

NOBODY = "http://127.0.0.1:9"
NO_KEYRING = {"PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring"}
REVOKE = "POST /v1/device/revoke"


@pytest.fixture
def home(home_root: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("HOME", str(home_root))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home_root / "config"))
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    monkeypatch.delenv("DARKBLOOM_HOME", raising=False)
    return Home(home_root / ".darkbloom")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["logout", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def store_of(home: Home, base: str) -> CredentialStore:
    store = CredentialStore(home, NO_KEYRING)
    store.save(base, Credentials(Secret(TOKEN), "5ada837c"))
    return store


def test_logout_revokes_and_forgets(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    script = Script({REVOKE: Answer(body={"status": "revoked"})})
    with serving(script) as base:
        store = store_of(home, base)
        assert run("--coordinator", base) == 0
        assert store.load(base) is None
    assert script.authorized == [f"Bearer {TOKEN}"]
    shown = capsys.readouterr().out
    assert "the token was revoked" in shown
    assert TOKEN not in shown
    assert TOKEN not in home.credentials.read_text()


@pytest.mark.parametrize(
    "answer", [Answer(404, b"404 page not found"), Answer(405, b""), Answer(500, b"oops")]
)
def test_without_revocation_it_claims_only_what_it_did(
    home: Home, capsys: pytest.CaptureFixture[str], answer: Answer
) -> None:
    with serving(Script({REVOKE: answer})) as base:
        store = store_of(home, base)
        assert run("--coordinator", base) == 0
        assert store.load(base) is None
    shown = capsys.readouterr().out
    assert "Only the copy on this machine was removed" in shown
    assert "revoked and" not in shown


def test_a_token_the_coordinator_forgot_is_removed(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Script({REVOKE: Answer(401, error("authentication_error"))})) as base:
        store = store_of(home, base)
        assert run("--coordinator", base) == 0
        assert store.load(base) is None
    assert "no longer valid" in capsys.readouterr().out


def test_offline_the_local_copy_goes_and_it_says_the_token_may_live_on(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_of(home, NOBODY)
    assert run("--coordinator", NOBODY) == 0
    assert store.load(NOBODY) is None
    shown = capsys.readouterr().out
    assert "Only the copy on this machine was removed" in shown
    assert "may still be valid" in shown
    assert NOBODY in shown


def test_a_running_provider_is_told_of_the_logout_once_the_token_is_gone(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        serving(Script({REVOKE: Answer(body={"status": "revoked"})})) as base,
        told_daemon(home, ToldDaemon()) as daemon,
    ):
        store_of(home, base)
        daemon.account = AccountReload(coordinator=f"{base}/ws/provider", changed=True)
        assert run("--coordinator", base) == 0
    assert daemon.asked == ["account"]
    assert "earns under its own wallet address from now on" in capsys.readouterr().out


def test_with_nothing_to_log_out_it_says_so_and_succeeds(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--coordinator", NOBODY) == 0
    assert "not linked" in capsys.readouterr().out
    assert not home.root.exists()


def test_the_other_clients_token_is_left_and_the_owner_told_how_to_remove_it(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    home.root.mkdir(parents=True)
    file = home.root / "auth_token"
    file.write_text(TOKEN)
    assert run() == 0
    assert file.exists()
    assert f"rm '{file}'" in capsys.readouterr().out


def test_a_damaged_entry_in_the_keyring_can_be_logged_out_of(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {NOBODY: "nonsense"}
    keyring = "darkbloom_provider.account.keyrings.SystemKeyring"
    monkeypatch.setattr(f"{keyring}.read", lambda _self, user: kept.get(user))
    monkeypatch.setattr(f"{keyring}.remove", lambda _self, user: kept.pop(user) is not None)
    assert run("--coordinator", NOBODY) == 0
    assert kept == {}
    assert "damaged" in capsys.readouterr().out
