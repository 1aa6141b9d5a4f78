"""The journal's file: made, brought to the present layout, proved sound, or set aside.

SQLite's and the file system's exceptions end here, as errors that say what to do.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.paths import PRIVATE_FILE, private_directory

BUSY_TIMEOUT_S = 5.0

MIGRATIONS = (
    (
        """
        CREATE TABLE jobs (
            job_id TEXT PRIMARY KEY NOT NULL,
            finished_at_us INTEGER NOT NULL,
            model TEXT NOT NULL,
            prompt_tokens INTEGER NOT NULL CHECK (prompt_tokens >= 0),
            completion_tokens INTEGER NOT NULL CHECK (completion_tokens >= 0),
            provider_key TEXT NOT NULL,
            linked INTEGER NOT NULL CHECK (linked IN (0, 1)),
            estimate_micro_usd INTEGER NOT NULL CHECK (estimate_micro_usd >= 0)
        ) STRICT
        """,
        "CREATE INDEX jobs_by_time ON jobs (finished_at_us)",
        """
        CREATE TABLE provider_keys (
            public_text TEXT PRIMARY KEY NOT NULL,
            first_used_at_us INTEGER NOT NULL
        ) STRICT
        """,
    ),
)
"""Step n brings a journal from `PRAGMA user_version` n to n + 1. Steps are added, never changed."""

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_NO_ROOM = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})
_HEADER = b"SQLite format 3\0"


class JournalError(DarkbloomError):
    """The journal cannot be opened, read or written."""


class JournalDamagedError(JournalError):
    """The journal's file is corrupt. It is left as it is."""


class JournalFullError(JournalError):
    """The disk does not take the entry. The entries before it are safe."""


def connect(database: str) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time, to a path, a `file:` URI or memory."""
    # Every statement is its own transaction unless BEGIN says otherwise.
    return sqlite3.connect(
        database,
        uri=database.startswith("file:"),
        isolation_level=None,
        timeout=BUSY_TIMEOUT_S,
        check_same_thread=False,
    )


def open_for_writing(path: Path) -> sqlite3.Connection:
    """The file at `path`, made if absent, checked, durable and of the present layout.

    Raises:
        JournalDamagedError: It is corrupt. It was not changed.
        JournalError: It cannot be opened, or a newer version of this program made it.
    """
    with mapped(path):
        private_directory(path.parent)
        # Made by us, so that SQLite's own files beside it inherit the mode.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, PRIVATE_FILE))
        _check_header(path)
        connection = connect(f"{path.absolute().as_uri()}?mode=rw")
        with closed_on_error(connection):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            # These two have an effect on macOS only.
            connection.execute("PRAGMA fullfsync = 1")
            connection.execute("PRAGMA checkpoint_fullfsync = 1")
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise _damaged(path, "SQLite's own check failed")
            migrate(connection, path)
        return connection


def _check_header(path: Path) -> None:
    # Before SQLite sees the file: it deletes a write-ahead log beside what it takes for no
    # database, and that log may hold the last entries.
    with path.open("rb") as file:
        start = file.read(len(_HEADER))
    log = path.with_name(f"{path.name}-wal")
    if not start:
        if log.exists() and log.stat().st_size:
            raise _damaged(path, "the file is empty, its write-ahead log is not")
    elif start != _HEADER:
        raise _damaged(path, "it is not an SQLite database")


def version_of(connection: sqlite3.Connection, path: Path) -> int:
    """The number of the file's layout.

    Raises:
        JournalError: A newer version of this program made it.
    """
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise JournalError(
            f"The journal {path} was made by a newer version of this program",
            why=f"its layout is number {version}, this version knows {len(MIGRATIONS)}",
            next_step="upgrade: `pip install -U darkbloom-provider`",
        )
    return version


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the file to the present layout, all steps or none."""
    connection.execute("BEGIN IMMEDIATE")
    for number in range(version_of(connection, path), len(MIGRATIONS)):
        for statement in MIGRATIONS[number]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number + 1}")
    connection.execute("COMMIT")


def set_aside(path: Path, now: datetime) -> Path:
    """Rename a damaged file, and SQLite's own files beside it; where to. Nothing is overwritten."""
    name = f"{path.name}.damaged-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    aside = path.with_name(name)
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{name}-{number}")
    # The database goes last: beside a write-ahead log that is not its own, a new one would replay
    # foreign pages.
    with mapped(path):
        for suffix in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


def _damaged(path: Path, why: str) -> JournalDamagedError:
    return JournalDamagedError(
        f"The journal {path} is damaged",
        why=why,
        next_step="restart the provider: it sets the file aside, deletes nothing and begins a new "
        "one; the coordinator's figures are not affected",
    )


@contextlib.contextmanager
def closed_on_error(connection: sqlite3.Connection) -> Iterator[None]:
    """Let go of the file if the block fails."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into this module's errors."""
    try:
        yield
    except sqlite3.Error as error:
        # The low byte is the kind; the rest says which system call.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in _DAMAGED:
            raise _damaged(path, str(error)) from error
        if code in _NO_ROOM:
            raise JournalFullError(
                f"The journal {path} cannot take another entry",
                why=str(error),
                next_step=f"make room on the disk that holds {path.parent}",
            ) from error
        raise JournalError(
            f"The journal {path} cannot be used",
            why=str(error),
            next_step=f"check that {path} is yours and that its disk can be written",
        ) from error
    except OSError as error:
        raise JournalError(
            f"The journal {path} cannot be used",
            why=error.strerror,
            next_step=f"check that {path.parent} is yours and that its disk can be written",
        ) from error
