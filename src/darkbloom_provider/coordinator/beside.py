"""How the operator's own commands find a coordinator that runs on this machine, and ask it.

What lies in a coordinator's directory is the operator's: whoever can read the key that signs its
sessions there can act as anybody, and so as the operator too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

from darkbloom_provider import logs, paths
from darkbloom_provider.coordinator.accounts.people import ADMIN_ACCOUNT
from darkbloom_provider.coordinator.accounts.session_tokens import SESSION_ID_BYTES, SessionKeys
from darkbloom_provider.coordinator.sources import Sources
from darkbloom_provider.logs import Secret

ADDRESS_FILE: Final = "address"
TOKEN_LIFETIME: Final = timedelta(minutes=1)

_log = logs.get("coordinator")


@contextlib.contextmanager
def announced(directory: Path, base_url: str) -> Iterator[None]:
    """Within, the directory says where its coordinator listens, unless it cannot be written."""
    file = directory / ADDRESS_FILE
    try:
        paths.replace_private(file, f"{base_url}\n".encode())
    except OSError as error:
        _log.warning("address_not_written", reason=error.strerror)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def address(directory: Path) -> str | None:
    """Where the coordinator of a directory listens. One that was killed leaves its address behind.

    None if none runs.
    """
    try:
        return (directory / ADDRESS_FILE).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def operator_token(directory: Path, sources: Sources) -> Secret:
    """A token that the directory's coordinator takes as the operator's, for a minute.

    Raises:
        SigningKeyError: The key in the directory cannot be read.
    """
    return SessionKeys.load_or_create(directory).issue(
        ADMIN_ACCOUNT,
        session_id=sources.random_hex(SESSION_ID_BYTES),
        now=sources.now(),
        lifetime=TOKEN_LIFETIME,
    )
