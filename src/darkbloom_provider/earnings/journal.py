"""The local record of completed jobs, one SQLite file, and of every provider key ever used.

The coordinator does not tell a provider what a job paid, so each amount here is an estimate: the
tokens times the last known price. What `record` has returned from is on the disk: WAL with
`synchronous=FULL`, and `fullfsync` on macOS, where an ordinary fsync stops at the drive's cache.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from darkbloom_provider import logs
from darkbloom_provider.earnings.journal_file import (
    MIGRATIONS,
    JournalDamagedError,
    closed_on_error,
    connect,
    mapped,
    migrate,
    open_for_writing,
    set_aside,
    version_of,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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
    """Sums over the jobs in the journal, in micro-USD."""

    jobs: int
    micro_usd: int
    unclaimed_micro_usd: int = 0
    """Of jobs done since the machine was last linked: no account has been credited with these."""


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
            return cls(path, open_for_writing(path))
        except JournalDamagedError:
            aside = set_aside(path, now())
        logs.get("earnings").error(
            "the journal was damaged; it was set aside and a new one begun", kept_as=str(aside)
        )
        return cls(path, open_for_writing(path), set_aside=aside)

    @classmethod
    def view(cls, path: Path) -> Journal:
        """Open for reading, also while the daemon writes. No file is an empty journal.

        Raises:
            JournalDamagedError: The file is corrupt.
            JournalError: It cannot be read, or a newer version of this program made it.
        """
        with mapped(path):
            if path.exists():
                connection = connect(f"{path.absolute().as_uri()}?mode=ro")
                with closed_on_error(connection):
                    if version_of(connection, path) == len(MIGRATIONS):
                        return cls(path, connection)
                # The daemon has made the file this very moment and no table yet.
                connection.close()
            connection = connect(":memory:")
            with closed_on_error(connection):
                migrate(connection, path)
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
        with self._lock, mapped(self.path):
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
        with self._lock, mapped(self.path):
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
        with self._lock, mapped(self.path):
            self._connection.execute(
                "INSERT INTO provider_keys VALUES (?, ?) ON CONFLICT (public_text) DO NOTHING",
                (public_text, _microseconds(at)),
            )

    def totals(self) -> JournalTotals:
        """Sums over all jobs."""
        query = """
            SELECT count(*), coalesce(sum(estimate_micro_usd), 0), coalesce(
                sum(estimate_micro_usd) FILTER (
                    WHERE finished_at_us > (
                        SELECT coalesce(max(finished_at_us), -1) FROM jobs WHERE linked
                    )
                ), 0)
            FROM jobs
        """
        (row,) = self._rows(query)
        return JournalTotals(jobs=row[0], micro_usd=row[1], unclaimed_micro_usd=row[2])

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
        with self._lock, mapped(self.path):
            return self._connection.execute(query, values).fetchall()


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
