from __future__ import annotations

import contextlib
import json
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyring.backend import KeyringBackend

from darkbloom_provider.account.credentials import (
    Credentials,
    CredentialsFileError,
    CredentialsNotSavedError,
    CredentialStore,
    DamagedTokenError,
    KeyringLockedError,
    api_key,
)
from darkbloom_provider.account.keyrings import KeyringUnavailableError, SystemKeyring
from darkbloom_provider.errors import DarkbloomError, ExitCode
from darkbloom_provider.logs import Secret
from darkbloom_provider.paths import Home
from support.rest import TOKEN

BASE = "https://api.darkbloom.dev"
NO_KEYRING = {"PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring"}
MINE = Credentials(Secret(TOKEN), "5ada837c")


class FakeKeyring:
    """Behaves like a keyring that can be locked."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.locked = False

    def read(self, user: str) -> str | None:
        self._check()
        return self.kept.get(user)

    def write(self, user: str, text: str) -> None:
        self._check()
        self.kept[user] = text

    def remove(self, user: str) -> bool:
        self._check()
        return self.kept.pop(user, None) is not None

    def _check(self) -> None:
        if self.locked:
            raise KeyringUnavailableError("the system's keyring is locked")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    return Home(tmp_path / "user" / ".darkbloom")


def test_with_a_keyring_the_token_never_touches_the_disk(home: Home) -> None:
    keyring = FakeKeyring()
    store = CredentialStore(home, {}, keyring=keyring)
    assert store.save(BASE, MINE) == "the system's keyring"
    assert list(keyring.kept) == [BASE]
    assert TOKEN not in home.credentials.read_text()
    loaded = store.load("wss://api.darkbloom.dev/ws/provider")
    assert loaded is not None
    assert (loaded.token, loaded.account_id) == (MINE.token, "5ada837c")
    assert store.delete(BASE) is True
    assert store.load(BASE) is None
    assert store.delete(BASE) is False


def test_without_a_keyring_the_token_is_in_a_0600_file_and_it_says_so(home: Home) -> None:
    store = CredentialStore(home, NO_KEYRING)
    place = store.save(BASE, MINE)
    assert str(home.credentials) in place
    assert "this system has no keyring" in place
    assert stat.S_IMODE(home.credentials.stat().st_mode) == 0o600
    loaded = CredentialStore(home, NO_KEYRING).load(BASE)
    assert loaded is not None
    assert loaded.token.reveal() == TOKEN
    assert loaded.kept_in == str(home.credentials)
    assert store.delete(BASE) is True
    assert TOKEN not in home.credentials.read_text()
    assert store.load(BASE) is None


def test_tokens_of_two_coordinators_do_not_meet(home: Home) -> None:
    store = CredentialStore(home, NO_KEYRING)
    store.save(BASE, MINE)
    store.save("http://127.0.0.1:8080", Credentials(Secret("other")))
    store.delete("http://127.0.0.1:8080")
    assert store.load("http://127.0.0.1:8080") is None
    assert store.load(BASE) is not None
    assert store.load("https://api.darkbloom.dev.evil.example") is None


def test_another_home_has_another_place_in_the_keyring(home: Home, tmp_path: Path) -> None:
    keyring = FakeKeyring()
    CredentialStore(home, {}, keyring=keyring).save(BASE, MINE)
    other = CredentialStore(Home(tmp_path / "other"), {}, keyring=keyring)
    assert other.load(BASE) is None
    other.save(BASE, MINE)
    assert len(keyring.kept) == 2


def test_a_locked_keyring_is_not_mistaken_for_an_unlinked_machine(home: Home) -> None:
    keyring = FakeKeyring()
    store = CredentialStore(home, {}, keyring=keyring)
    keyring.locked = True
    assert store.load(BASE) is None
    keyring.locked = False
    store.save(BASE, MINE)
    keyring.locked = True
    with pytest.raises(KeyringLockedError, match="locked") as raised:
        store.load(BASE)
    assert raised.value.exit_code == ExitCode.CREDENTIALS
    with pytest.raises(KeyringLockedError):
        store.delete(BASE)
    keyring.locked = False
    assert store.load(BASE) is not None


def test_a_locked_keyring_at_login_falls_back_to_the_file(home: Home) -> None:
    keyring = FakeKeyring()
    keyring.locked = True
    store = CredentialStore(home, {}, keyring=keyring)
    assert "the system's keyring is locked" in store.save(BASE, MINE)
    assert store.load(BASE) is not None
    assert store.delete(BASE) is True


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"version": 2}', b'{"coordinators": {"x": 5}}', b"\xff\xfe", b"null"],
)
def test_a_damaged_file_is_named_with_what_to_do_and_left_alone(home: Home, content: bytes) -> None:
    home.root.mkdir(parents=True)
    home.credentials.write_bytes(content)
    home.credentials.chmod(0o600)
    store = CredentialStore(home, NO_KEYRING)
    for attempt in (store.load, store.delete, lambda base: store.save(base, MINE)):
        with pytest.raises(CredentialsFileError) as raised:
            attempt(BASE)
        shown = "\n".join(raised.value.lines())
        assert str(home.credentials) in shown
        assert "darkbloom login" in shown
    assert home.credentials.read_bytes() == content


@given(content=st.binary(max_size=200) | st.just(json.dumps({"coordinators": {BASE: {}}}).encode()))
def test_no_file_content_raises_anything_untyped(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    home = Home(tmp_path_factory.mktemp("home"))
    home.credentials.write_bytes(content)
    with contextlib.suppress(DarkbloomError):
        CredentialStore(home, NO_KEYRING, keyring=FakeKeyring()).load(BASE)


def test_a_token_in_a_damaged_file_is_not_shown(home: Home) -> None:
    home.root.mkdir(parents=True)
    home.credentials.write_text(f'{{"coordinators": {{"x": {{"token": ["{TOKEN}"]}}}}}}')
    with pytest.raises(CredentialsFileError) as raised:
        CredentialStore(home, NO_KEYRING).load(BASE)
    assert TOKEN not in "\n".join(raised.value.lines())


def test_a_file_open_to_others_is_closed(home: Home) -> None:
    store = CredentialStore(home, NO_KEYRING)
    store.save(BASE, MINE)
    home.credentials.chmod(0o644)
    assert store.load(BASE) is not None
    assert stat.S_IMODE(home.credentials.stat().st_mode) == 0o600


def test_a_disk_that_takes_nothing_is_a_typed_error(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("darkbloom_provider.account.credentials.write_private", full)
    with pytest.raises(CredentialsNotSavedError, match="No space left"):
        CredentialStore(home, NO_KEYRING).save(BASE, MINE)


def test_a_foreign_entry_in_the_keyring_is_damaged_not_a_token(home: Home) -> None:
    keyring = FakeKeyring()
    keyring.kept[BASE] = "swordfish"
    with pytest.raises(DamagedTokenError) as raised:
        CredentialStore(home, {}, keyring=keyring).load(BASE)
    assert "swordfish" not in str(raised.value)


@pytest.mark.parametrize("place", [".config/eigeninference/auth_token", ".darkbloom/auth_token"])
def test_the_other_clients_token_is_used_and_never_touched(home: Home, place: str) -> None:
    file = home.root.parent / place
    file.parent.mkdir(parents=True)
    file.write_text(TOKEN + "\n")
    store = CredentialStore(home, NO_KEYRING)
    loaded = store.load(BASE)
    assert loaded is not None
    assert (loaded.token.reveal(), loaded.kept_in, loaded.foreign) == (TOKEN, str(file), True)
    assert store.delete(BASE) is False
    assert file.read_text() == TOKEN + "\n"


def test_the_other_clients_token_goes_to_no_other_coordinator_and_no_other_home(
    home: Home, tmp_path: Path
) -> None:
    file = home.root / "auth_token"
    file.parent.mkdir(parents=True)
    file.write_text(TOKEN)
    assert CredentialStore(home, NO_KEYRING).load("http://127.0.0.1:8080") is None
    assert CredentialStore(Home(tmp_path / "other"), NO_KEYRING).load(BASE) is None


def test_on_a_mac_the_other_clients_token_is_in_application_support(home: Home) -> None:
    support = home.root.parent / "Library" / "Application Support" / "eigeninference"
    support.mkdir(parents=True)
    (support / "auth_token").write_text(TOKEN)
    loaded = CredentialStore(home, NO_KEYRING, platform="darwin").load(BASE)
    assert loaded is not None
    assert loaded.kept_in == str(support / "auth_token")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff", b"eigeninference-pt-short"])
def test_what_is_no_token_is_not_imported(home: Home, content: bytes) -> None:
    home.root.mkdir(parents=True)
    (home.root / "auth_token").write_bytes(content)
    assert CredentialStore(home, NO_KEYRING).load(BASE) is None


def test_the_api_key_comes_from_the_environment() -> None:
    assert api_key({}) is None
    assert api_key({"DARKBLOOM_API_KEY": "  "}) is None
    found = api_key({"DARKBLOOM_API_KEY": " eigeninference-00 "})
    assert found is not None
    assert found.reveal() == "eigeninference-00"


class RememberingBackend(KeyringBackend):
    """A real backend of keyring's kind, in memory."""

    priority = 1
    kept: dict[tuple[str, str], str]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # keyring leaves it unannotated
        self.kept = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


def test_the_systems_keyring_keeps_reads_and_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = RememberingBackend()
    monkeypatch.setattr("keyring.core.get_keyring", lambda: backend)
    keyring = SystemKeyring({})
    keyring.write("user", "text")
    assert backend.kept == {("io.darkbloom.provider", "user"): "text"}
    assert keyring.read("user") == "text"
    assert keyring.remove("user") is True
    assert keyring.remove("user") is False


def test_a_keyring_that_is_switched_off_does_not_swallow_the_token() -> None:
    keyring = SystemKeyring({"PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring"})
    with pytest.raises(KeyringUnavailableError, match="switched off"):
        keyring.write("user", "text")


@pytest.mark.parametrize(
    "name", ["keyring.backends.fail.Keyring", "no.such.backend.Keyring", "nonsense"]
)
def test_a_keyring_that_cannot_be_had_is_unavailable(name: str) -> None:
    keyring = SystemKeyring({"PYTHON_KEYRING_BACKEND": name})
    with pytest.raises(KeyringUnavailableError):
        keyring.read("user")


def test_a_keyring_that_hangs_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    class Hanging(RememberingBackend):
        def get_password(self, service: str, username: str) -> str | None:
            released.wait()
            return None

    backend = Hanging()
    monkeypatch.setattr("keyring.core.get_keyring", lambda: backend)
    with pytest.raises(KeyringUnavailableError, match="did not answer"):
        SystemKeyring({}, patience_s=0.01).read("user")
    released.set()


def test_a_keyrings_own_words_are_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Talkative(RememberingBackend):
        def set_password(self, service: str, username: str, password: str) -> None:
            raise RuntimeError(f"cannot store {password}")

    backend = Talkative()
    monkeypatch.setattr("keyring.core.get_keyring", lambda: backend)
    with pytest.raises(KeyringUnavailableError) as raised:
        SystemKeyring({}).write("user", TOKEN)
    assert TOKEN not in str(raised.value)
