"""Who this machine is: the wallet that keeps unlinked earnings, and the machine's random id.

Both are made once, in the home directory, readable by their owner alone. They are never replaced:
a damaged file is an error, because a new wallet would lose sight of the money under the old one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil

from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.paths import PRIVATE_FILE, Home, private_directory

RandomBytes = Callable[[int], bytes]

_WALLET_KEY = re.compile(r"[0-9a-f]{64}")
_MACHINE_ID = re.compile(r"[0-9a-f]{32}")


class IdentityError(DarkbloomError):
    """An identity file is damaged or cannot be read or written. Nothing was replaced."""


def wallet_address(home: Home, random: RandomBytes = secrets.token_bytes) -> str:
    """The address that unlinked earnings of this home are kept under; made at first use.

    Raises:
        IdentityError: The key's file is damaged, or the disk refuses.
    """
    key = _kept(home.wallet_key, _WALLET_KEY, lambda: random(32).hex())
    return address_of(key)


def machine_id(home: Home, random: RandomBytes = secrets.token_bytes) -> str:
    """The random identity of this home, 32 lower-case hex digits; made at first use.

    Raises:
        IdentityError: The file is damaged, or the disk refuses.
    """
    return _kept(home.machine_id, _MACHINE_ID, lambda: random(16).hex())


def process_start_micros() -> int:
    """When the system started this process, in microseconds since 1970; 0 if it does not tell.

    With the pid it names a process for good: pids come again.
    """
    try:
        return round(psutil.Process().create_time() * 1e6)
    except (psutil.Error, OSError):
        return 0


def address_of(key: str) -> str:
    """The address of a wallet key given as its 64 lower-case hex digits.

    The network's rule: `0x` and the last 40 hex digits of SHA-256 over those 64 ASCII characters
    (not over the 32 bytes). It is not a blockchain address.

    >>> address_of("1".rjust(64, "0"))
    '0x8e6c57bb205bb373fe4e3a6f69404a8bb767b417'
    """
    return "0x" + hashlib.sha256(key.encode("ascii")).hexdigest()[-40:]


def _kept(path: Path, shape: re.Pattern[str], make: Callable[[], str]) -> str:
    try:
        found = _read(path)
        if found is None:
            _create(path, make())
            found = _read(path)
    except OSError as error:
        raise IdentityError(
            f"{path} cannot be used",
            why=error.strerror,
            next_step=f"make {path.parent} a directory that you can write to",
        ) from error
    if found is None or shape.fullmatch(found) is None:
        raise IdentityError(
            f"{path} is damaged",
            why="it does not hold what this program wrote there, and is never replaced silently",
            next_step=f"restore it from a backup; or move it away to start a new identity "
            f"(earnings kept under the old one then stay there): mv {path} {path}.damaged",
        )
    return found


def _read(path: Path) -> str | None:
    """The file's text; None if there is no file. Other people's access to it is withdrawn."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if os.fstat(descriptor).st_mode & 0o077:
            os.fchmod(descriptor, PRIVATE_FILE)
        # A little more than the longest content: a file of any size is read in one bounded step.
        return file.read(256).decode("ascii", errors="replace").rstrip("\n")


def _create(path: Path, text: str) -> None:
    """Put `text` at `path` unless another process was first: whole, durable, or not at all."""
    private_directory(path.parent)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode("ascii"))
            file.flush()
            os.fsync(file.fileno())
        # A hard link, not a rename: it fails if the name exists, so the first writer wins and
        # everyone reads the same identity afterwards.
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
