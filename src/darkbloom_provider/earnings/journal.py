"""The local record of completed jobs, one SQLite file, and of every provider key ever used.

The coordinator does not tell a provider what a job paid, so each amount here is an estimate: the
tokens times the last known price. What `record` has returned from is on the disk: WAL with
`synchronous=FULL`, and `fullfsync` on macOS, where an ordinary fsync stops at the drive's cache.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from darkbloom_provider import logs
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
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class JournalError(DarkbloomError):
    """The journal cannot be opened, read or written."""


class JournalDamagedError(JournalError):
    """The journal's file is corrupt. It is left as it is."""


class JournalFullError(JournalError):
    """The disk does not take the entry. The entries before it are safe."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One completed job.

    Attributes:
        finished_at: When its completion message was sent; with a time zone.
        provider_key: The public key of the provider process that served it, base64.
        linked: Whether the session was linked to an account.
        estimate_micro_usd: What it should pay: cost at the last known price, whole share.
    """

    job_id: str
    finished_at: datetime
    model: str
    prompt_tokens: int
    completion_tokens: int
    provider_key: str
    linked: bool
    estimate_micro_usd: int


@dataclass(frozen=True, slots=True)
class JournalTotals:
    """Sums over all jobs in the journal, in micro-USD."""

    jobs: int
    micro_usd: int


class Journal:
    """The journal of one home. Use as a context manager, or `close()` it.

    Calls block until the disk has answered; they may come from any thread. One process writes (the
    daemon), others may `view` meanwhile.

    Attributes:
        set_aside: Where a damaged file was moved to when this one was opened, or None.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, set_aside: Path | None = None
    ) -> None:
        self.path = path
        self.set_aside = set_aside
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, path: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> Journal:
        """Open for writing, made if absent. A damaged file is renamed, never deleted.

        Args:
            path: The file.
            now: Names the file that a damaged one is set aside as.

        Raises:
            JournalError: It cannot be opened, or a newer version of this program made it.
            JournalFullError: The disk is full.
        """
        try:
            return cls(path, _open_for_writing(path))
        except JournalDamagedError:
            aside = _set_aside(path, now())
        logs.get("earnings").error(
            "the journal was damaged; it was set aside and a new one begun", kept_as=str(aside)
        )
        return cls(path, _open_for_writing(path), set_aside=aside)

    @classmethod
    def view(cls, path: Path) -> Journal:
        """Open for reading, also while the daemon writes. No file is an empty journal.

        Raises:
            JournalDamagedError: The file is corrupt.
            JournalError: It cannot be read, or a newer version of this program made it.
        """
        with _mapped(path):
            if path.exists():
                connection = _connect(f"{path.absolute().as_uri()}?mode=ro")
                with _closed_on_error(connection):
                    if _version(connection, path) == len(MIGRATIONS):
                        return cls(path, connection)
                # The daemon has made the file this very moment and no table yet.
                connection.close()
            connection = _connect(":memory:")
            with _closed_on_error(connection):
                _migrate(connection, path)
            return cls(path, connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        with self._lock, _mapped(self.path):
            self._connection.close()

    def record(self, job: JobRecord) -> bool:
        """Write down a completed job. Once this returns, no crash takes it back.

        Returns:
            False if the job was written down before; it is then left as it was.

        Raises:
            JournalFullError: The disk does not take it.
            JournalError: It cannot be written for another reason.
        """
        row = (
            job.job_id,
            _microseconds(job.finished_at),
            job.model,
            job.prompt_tokens,
            job.completion_tokens,
            job.provider_key,
            job.linked,
            job.estimate_micro_usd,
        )
        with self._lock, _mapped(self.path):
            cursor = self._connection.execute(
                "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (job_id) DO NOTHING",
                row,
            )
            return cursor.rowcount == 1

    def remember_key(self, public_text: str, at: datetime) -> None:
        """Write down a provider key: earnings of a node are asked for by it.

        Raises:
            JournalError: As for `record`.
        """
        with self._lock, _mapped(self.path):
            self._connection.execute(
                "INSERT INTO provider_keys VALUES (?, ?) ON CONFLICT (public_text) DO NOTHING",
                (public_text, _microseconds(at)),
            )

    def totals(self) -> JournalTotals:
        """Sums over all jobs."""
        (row,) = self._rows("SELECT count(*), coalesce(sum(estimate_micro_usd), 0) FROM jobs")
        return JournalTotals(jobs=row[0], micro_usd=row[1])

    def recent(self, limit: int) -> list[JobRecord]:
        """The last `limit` jobs, newest first."""
        query = "SELECT * FROM jobs ORDER BY finished_at_us DESC, rowid DESC LIMIT ?"
        return [
            JobRecord(
                job_id=row[0],
                finished_at=_EPOCH + timedelta(microseconds=row[1]),
                model=row[2],
                prompt_tokens=row[3],
                completion_tokens=row[4],
                provider_key=row[5],
                linked=bool(row[6]),
                estimate_micro_usd=row[7],
            )
            for row in self._rows(query, max(limit, 0))
        ]

    def provider_keys(self) -> tuple[str, ...]:
        """Every provider key this machine has used, newest first."""
        query = "SELECT public_text FROM provider_keys ORDER BY first_used_at_us DESC, rowid DESC"
        return tuple(row[0] for row in self._rows(query))

    def _rows(self, query: str, *values: int) -> list[tuple[Any, ...]]:
        with self._lock, _mapped(self.path):
            return self._connection.execute(query, values).fetchall()


def _connect(database: str) -> sqlite3.Connection:
    # Every statement is its own transaction unless BEGIN says otherwise.
    return sqlite3.connect(
        database,
        uri=database.startswith("file:"),
        isolation_level=None,
        timeout=BUSY_TIMEOUT_S,
        check_same_thread=False,
    )


def _open_for_writing(path: Path) -> sqlite3.Connection:
    with _mapped(path):
        private_directory(path.parent)
        # Made by us, so that SQLite's own files beside it inherit the mode.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, PRIVATE_FILE))
        _check_header(path)
        connection = _connect(f"{path.absolute().as_uri()}?mode=rw")
        with _closed_on_error(connection):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            # These two have an effect on macOS only.
            connection.execute("PRAGMA fullfsync = 1")
            connection.execute("PRAGMA checkpoint_fullfsync = 1")
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise _damaged(path, "SQLite's own check failed")
            _migrate(connection, path)
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


def _version(connection: sqlite3.Connection, path: Path) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise JournalError(
            f"The journal {path} was made by a newer version of this program",
            why=f"its layout is number {version}, this version knows {len(MIGRATIONS)}",
            next_step="upgrade: `pip install -U darkbloom-provider`",
        )
    return version


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for number in range(_version(connection, path), len(MIGRATIONS)):
        for statement in MIGRATIONS[number]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number + 1}")
    connection.execute("COMMIT")


def _set_aside(path: Path, now: datetime) -> Path:
    name = f"{path.name}.damaged-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    aside = path.with_name(name)
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{name}-{number}")
    # The database goes last: beside a write-ahead log that is not its own, a new one would replay
    # foreign pages.
    with _mapped(path):
        for suffix in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _damaged(path: Path, why: str) -> JournalDamagedError:
    return JournalDamagedError(
        f"The journal {path} is damaged",
        why=why,
        next_step="restart the provider: it sets the file aside, deletes nothing and begins a new "
        "one; the coordinator's figures are not affected",
    )


@contextlib.contextmanager
def _closed_on_error(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[None]:
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
