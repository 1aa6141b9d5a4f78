"""Where the ledger is kept: one SQLite file, or a PostgreSQL database that coordinators share.

Both behave alike. Writers take turns, one transaction at a time, on SQLite by its own lock and on
PostgreSQL by an advisory one; readers see a snapshot that nothing changes; what was committed is
on disk. So the rules of money are written once, and tested once on each.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final, Protocol

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError

from darkbloom_provider import paths
from darkbloom_provider.errors import AlreadyRunningError, DarkbloomError, UsageError

READERS: Final = 2
_CACHE_KIB: Final = 32_768
_CHECKPOINT_PAGES: Final = 8_000
BUSY_TIMEOUT_MS: Final = 5_000
"""How long a writer waits for its turn."""


class LedgerUnavailableError(DarkbloomError):
    """The database cannot be read or written now. Nothing of the operation was kept."""


class Storage(Protocol):
    """An opened database, before anything is known of its tables."""

    writer: Engine
    """One connection. A transaction on it excludes every other writer, of other processes too."""
    reader: Engine
    """Connections whose transactions are snapshots, and which cannot write."""

    @property
    def alone(self) -> bool:
        """Whether no coordinator uses the database now, so that it may be migrated."""

    def hold(self, run: int) -> None:
        """Let others see, until `close` or our death, that this run of a coordinator lives."""

    def live_runs(self, connection: Connection) -> set[int]:
        """The runs of coordinators that live now, this process's own included."""

    def ticket(self, connection: Connection) -> str | None:
        """What to ask `committed` for if the commit's answer is lost; None if it cannot be."""

    def committed(self, ticket: str) -> bool:
        """Whether the transaction of that ticket was committed.

        Raises:
            LedgerUnavailableError: It cannot be found out now.
        """

    def close(self) -> None:
        """Close every connection and give up the hold."""


def open_storage(where: str | Path, *, beside: bool) -> Storage:
    """The storage at a path or URL, made if it is a file that does not exist.

    Raises:
        AlreadyRunningError: Another process has the file open, and this one works not just beside.
        LedgerUnavailableError: It cannot be reached.
        UsageError: There is no storage like that.
    """
    if isinstance(where, Path):
        return SqliteStorage(where.absolute(), beside=beside)
    if "://" not in where:
        return SqliteStorage(Path(where).absolute(), beside=beside)
    url = parse_url(where)
    if url.get_backend_name() == "postgresql":
        # Only here, so that nobody needs the driver who does not use it.
        from darkbloom_provider.coordinator.store.postgres import PostgresStorage  # noqa: PLC0415

        return PostgresStorage(url)
    return SqliteStorage(Path(url.database or "").absolute(), beside=beside)


def parse_url(text: str) -> URL:
    """A database URL that this program can use, checked without opening anything.

    Raises:
        UsageError: It is something else. A password in it is not repeated.
    """
    try:
        url = make_url(text.replace("postgres://", "postgresql://", 1))
    except ArgumentError:
        raise _no_such_storage("it is not a database URL") from None
    if url.drivername in {"postgresql", "postgresql+psycopg"}:
        return url.set(drivername="postgresql+psycopg")
    if url.drivername != "sqlite" or url.database in {None, "", ":memory:"}:
        raise _no_such_storage(f"the given database is {url.render_as_string(hide_password=True)}")
    return url


def _no_such_storage(why: str) -> UsageError:
    return UsageError(
        "The coordinator keeps its ledger in a SQLite file or in PostgreSQL",
        why=why,
        next_step="give sqlite:////absolute/path.sqlite3 or postgresql+psycopg://USER@HOST/NAME",
    )


def unavailable(reason: str) -> LedgerUnavailableError:
    """The error for a database that cannot be used now. `reason` carries no values."""
    return LedgerUnavailableError(
        "The coordinator's ledger is not available",
        why=reason,
        next_step="check the disk or the server that holds it, then try again",
    )


class SqliteStorage:
    """One file, held by one coordinator at a time."""

    def __init__(self, path: Path, *, beside: bool) -> None:
        try:
            paths.private_directory(path.parent)
            # The write-ahead log takes over the mode of the file it belongs to.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, paths.PRIVATE_FILE))
            self._lock, self._alone = _locked(path, beside=beside)
        except OSError as error:
            raise unavailable(error.strerror or type(error).__name__) from error
        self._run: set[int] = set()
        self.writer = sqlite_engine(path, writes=True)
        self.reader = sqlite_engine(path, writes=False)

    @property
    def alone(self) -> bool:
        """Whether no coordinator uses the file."""
        return self._alone

    def hold(self, run: int) -> None:
        """The file's lock says it already."""
        self._run = {run}

    def live_runs(self, connection: Connection) -> set[int]:  # noqa: ARG002 - the lock knows
        """Only this process, if it is a coordinator: the file's lock lets no second one in."""
        return self._run

    def ticket(self, connection: Connection) -> None:  # noqa: ARG002 - as the interface has it
        """None: no commit's answer is ever lost in the same process."""
        return

    def committed(self, ticket: str) -> bool:
        """Never asked, for want of a ticket."""
        raise unavailable(f"no transaction {ticket} is known")

    def close(self) -> None:
        """Close the file and let others have it."""
        self.reader.dispose()
        self.writer.dispose()
        os.close(self._lock)


def _locked(path: Path, *, beside: bool) -> tuple[int, bool]:
    """Hold the database for this process: a second one would refund the first one's open jobs.

    Returns the lock's descriptor and whether this process is the only one, which it must be unless
    it only works `beside` a coordinator.
    """
    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, paths.PRIVATE_FILE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if beside:
            return lock, False
        os.close(lock)
        raise AlreadyRunningError(
            "Another coordinator is using this ledger",
            why=f"{path} is locked",
            next_step="stop the other coordinator, or give this one a directory of its own",
        ) from None
    except BaseException:
        os.close(lock)
        raise
    return lock, True


def sqlite_engine(path: Path, *, writes: bool) -> Engine:
    """Connections to a SQLite file that lose nothing once committed, and never share a lock."""
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        pool_size=1 if writes else READERS,
        max_overflow=0,
        # A broken connection is replaced; the errors of a statement never show its values.
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: DBAPIConnection, _record: object) -> None:
        # The driver's own transactions begin too late and never around a read: we begin ourselves.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout = {BUSY_TIMEOUT_MS}",
            "journal_mode = WAL",
            "synchronous = FULL",
            f"cache_size = -{_CACHE_KIB}",
            # Each checkpoint waits for the disk twice; the default is every few dozen jobs.
            f"wal_autocheckpoint = {_CHECKPOINT_PAGES}",
            # macOS: fsync alone does not reach the platter. Without effect elsewhere.
            "fullfsync = ON",
            "checkpoint_fullfsync = ON",
            "foreign_keys = ON",
            f"query_only = {'OFF' if writes else 'ON'}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


# SQLAlchemy's own nested transactions cost as much as several statements of a job.


def savepoint(connection: Connection) -> None:
    """Begin an operation that may be undone alone."""
    connection.exec_driver_sql("SAVEPOINT operation")


def release(connection: Connection) -> None:
    """Keep what the operation did, as far as the transaction is kept."""
    connection.exec_driver_sql("RELEASE SAVEPOINT operation")


def roll_back(connection: Connection) -> None:
    """Undo what the operation did."""
    connection.exec_driver_sql("ROLLBACK TO SAVEPOINT operation")
