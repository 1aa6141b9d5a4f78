"""Where a machine's token is kept: the system's keyring, else a 0600 file, and it says which.

The file also remembers, without the token, what went into the keyring. So a keyring that is locked
is told apart from a machine that was never linked.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from darkbloom_provider import logs
from darkbloom_provider.account.keyrings import KeyringUnavailableError, SystemKeyring
from darkbloom_provider.config import DEFAULT_COORDINATOR, http_base
from darkbloom_provider.errors import CredentialsError, DarkbloomError
from darkbloom_provider.logs import Secret
from darkbloom_provider.paths import PRIVATE_FILE, Home, write_private

API_KEY_VARIABLE = "DARKBLOOM_API_KEY"
IN_KEYRING = "the system's keyring"

_DEVICE_TOKEN = re.compile(r"eigeninference-pt-[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What links this machine to an account at one coordinator.

    Attributes:
        token: The device token.
        account_id: The account it belongs to, if the coordinator said so at login.
        kept_in: Where it was found; "" for one that is not stored yet.
        foreign: It belongs to the network's other client, whose file is read but never changed.
    """

    token: Secret
    account_id: str | None = None
    kept_in: str = ""
    foreign: bool = False


class CredentialsFileError(CredentialsError):
    """The credentials file is damaged or cannot be read."""


class KeyringLockedError(CredentialsError):
    """The token is in the keyring, and the keyring does not give it out."""


class DamagedTokenError(CredentialsError):
    """What the keyring holds for this machine is not what was put there."""


class CredentialsNotSavedError(DarkbloomError):
    """A token could be kept neither in the keyring nor in the file."""


class Keyring(Protocol):
    """What is needed of a keyring. Each method may raise `KeyringUnavailableError`."""

    def read(self, user: str) -> str | None:
        """The text kept for `user`, or None."""

    def write(self, user: str, text: str) -> None:
        """Keep `text` for `user`."""

    def remove(self, user: str) -> bool:
        """Forget `user`. False if there was nothing to forget."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    token: str | None = None
    """Absent when the keyring has it."""
    account_id: str | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    version: Literal[1] = 1
    coordinators: dict[str, _Entry] = {}
    """By base URL."""


class CredentialStore:
    """The tokens of one home. Blocks on the keyring and the disk: keep it off an event loop.

    Args:
        home: Whose tokens.
        environ: Names the keyring back end, and where the other client keeps its token.
        keyring: Stands in for the system's keyring in tests.
        platform: `sys.platform`.
    """

    def __init__(
        self,
        home: Home,
        environ: Mapping[str, str],
        *,
        keyring: Keyring | None = None,
        platform: str = sys.platform,
    ) -> None:
        self._home = home
        self._environ = environ
        self._keyring: Keyring = SystemKeyring(environ) if keyring is None else keyring
        self._platform = platform

    def load(self, base_url: str) -> Credentials | None:
        """The token for a coordinator, or None if this machine is not linked to it.

        Raises:
            CredentialsFileError: The file is damaged.
            KeyringLockedError: The token is in the keyring, which does not answer.
        """
        base = http_base(base_url)
        entry = self._read_file().coordinators.get(base)
        if entry is not None and entry.token is not None:
            place = str(self._home.credentials)
            return Credentials(Secret(entry.token), entry.account_id, kept_in=place)
        try:
            text = self._keyring.read(self._user(base))
        except KeyringUnavailableError as error:
            if entry is not None:
                raise _locked(error) from None
            text = None
        if text is not None:
            kept = _from_keyring(text)
            return Credentials(Secret(kept.token or ""), kept.account_id, kept_in=IN_KEYRING)
        return self._other_clients(base)

    def save(self, base_url: str, credentials: Credentials) -> str:
        """Keep a token, and return where it went, in words for the owner.

        Raises:
            CredentialsFileError: The file is damaged; nothing was changed.
            CredentialsNotSavedError: The disk does not take the file.
        """
        base = http_base(base_url)
        file = self._read_file()
        entry = _Entry(token=credentials.token.reveal(), account_id=credentials.account_id)
        try:
            self._keyring.write(self._user(base), entry.model_dump_json())
        except KeyringUnavailableError as error:
            file.coordinators[base] = entry
            place = f"{self._home.credentials}, which only you can read, because {error}"
        else:
            file.coordinators[base] = _Entry(account_id=credentials.account_id)
            place = IN_KEYRING
        self._write_file(file)
        return place

    def delete(self, base_url: str) -> bool:
        """Forget the token for a coordinator. False if there was none of ours.

        A token of the network's other client stays where it is.

        Raises:
            CredentialsFileError: The file is damaged.
            KeyringLockedError: The token is in the keyring, which does not answer.
            CredentialsNotSavedError: The disk does not take the changed file.
        """
        base = http_base(base_url)
        file = self._read_file()
        entry = file.coordinators.pop(base, None)
        try:
            was_in_keyring = self._keyring.remove(self._user(base))
        except KeyringUnavailableError as error:
            if entry is not None and entry.token is None:
                raise _locked(error) from None
            was_in_keyring = False
        if entry is not None:
            self._write_file(file)
        return was_in_keyring or (entry is not None and entry.token is not None)

    def _user(self, base: str) -> str:
        # Two homes on one machine are two machines to the network; the keyring is the user's.
        return base if self._home == Home.from_environment({}) else f"{base} {self._home.root}"

    def _read_file(self) -> _File:
        path = self._home.credentials
        try:
            if path.stat().st_mode & 0o077:
                path.chmod(PRIVATE_FILE)
                logs.get("account").warning("credentials file was open to others, closed it")
            content = path.read_bytes()
        except FileNotFoundError:
            return _File()
        except OSError as error:
            raise CredentialsFileError(
                f"The credentials file {path} cannot be read",
                why=error.strerror,
                next_step=f"make {path} yours and readable (chmod 600)",
            ) from None
        try:
            return _File.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise CredentialsFileError(
                f"The credentials file {path} is damaged",
                why=f"{where}: {first['msg']}" if where else first["msg"],
                next_step=f"remove it (rm '{path}') and run `darkbloom login`",
            ) from None

    def _write_file(self, file: _File) -> None:
        path = self._home.credentials
        content = file.model_dump_json(indent=2, exclude_none=True) + "\n"
        try:
            write_private(path, content.encode())
        except OSError as error:
            raise CredentialsNotSavedError(
                f"The credentials file {path} cannot be written",
                why=error.strerror,
                next_step="make room or mend the permissions, then try again",
            ) from None

    def _other_clients(self, base: str) -> Credentials | None:
        # Its token was issued by the public network and is shown to nobody else; and a home of its
        # own (a test, the demo, a second provider) shares nothing with it.
        public = base == http_base(DEFAULT_COORDINATOR)
        if not public or self._home != Home.from_environment({}):
            return None
        for path in other_client_files(self._home, self._environ, self._platform):
            try:
                text = path.read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError):
                continue
            if _DEVICE_TOKEN.fullmatch(text):
                return Credentials(Secret(text), kept_in=str(path), foreign=True)
        return None


def other_client_files(home: Home, environ: Mapping[str, str], platform: str) -> list[Path]:
    """Where the network's other client keeps its token, likeliest first."""
    configs = [Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")]
    if platform == "darwin":
        configs.insert(0, Path.home() / "Library" / "Application Support")
    files = [directory / "eigeninference" / "auth_token" for directory in configs]
    return [*files, home.root / "auth_token"]


def api_key(environ: Mapping[str, str]) -> Secret | None:
    """The owner's API key from `DARKBLOOM_API_KEY`: it may read what a device token may not."""
    text = environ.get(API_KEY_VARIABLE, "").strip()
    return Secret(text) if text else None


def _from_keyring(text: str) -> _Entry:
    try:
        entry = _Entry.model_validate_json(text)
    except ValidationError:
        entry = _Entry()
    if entry.token is None:
        raise DamagedTokenError(
            f"The token in {IN_KEYRING} is damaged",
            why="something else wrote to its entry",
            next_step="run `darkbloom logout`, then `darkbloom login`",
        )
    return entry


def _locked(error: KeyringUnavailableError) -> KeyringLockedError:
    return KeyringLockedError(
        "This machine's token cannot be read",
        why=f"it is in {IN_KEYRING}, and {error}",
        next_step="unlock the keyring (on a Mac: log in at the screen) and try again",
    )
