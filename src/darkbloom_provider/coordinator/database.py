"""The coordinator's database: one writer thread, reader threads, and no wait on the event loop.

All writes pass through one thread in the order they were asked for. What has piled up while the
disk was busy shares one commit (group commit): each operation runs in a savepoint of its own, and
nobody is told of success before the commit is on disk.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError, OperationalError

from darkbloom_provider import logs, paths
from darkbloom_provider.coordinator import migrations
from darkbloom_provider.errors import AlreadyRunningError, DarkbloomError, UsageError

T = TypeVar("T")

MAX_WAITING_WRITES: Final = 1024
"""Operations that may wait for the writer. Further callers wait in turn, on the event loop."""
MAX_BATCH: Final = 64
"""Operations that may share one commit."""
READERS: Final = 2
BUSY_TIMEOUT_MS: Final = 5_000

_log = logs.get("coordinator")


class LedgerUnavailableError(DarkbloomError):
    """The database cannot be read or written now. Nothing of the operation was kept."""


@dataclass(slots=True)
class _Write(Generic[T]):
    """An operation on its way through the writer thread, and where its outcome goes."""

    operation: Callable[[Connection], T]
    future: Future[T] = field(default_factory=Future)


@dataclass(slots=True)
class _Outcome:
    """What one operation of a batch came to, held back until the commit."""

    value: Any = None
    error: BaseException | None = None


class _StorageFailedError(Exception):
    """The database itself failed; whatever the transaction held is gone."""


class Database:
    """One SQLite database, opened and migrated. Use `open`, and `close` when done.

    An operation is a function of a `Connection`. It must have no other effect, for it runs on
    another thread and may run a second time when a neighbour in its batch failed.
    """

    def __init__(self, writer: Engine, reader: Engine, lock: int) -> None:
        self._writer_engine = writer
        self._reader_engine = reader
        self._lock = lock
        self._waiting: queue.Queue[_Write[Any] | None] = queue.Queue()
        self._slots = asyncio.Semaphore(MAX_WAITING_WRITES)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="ledger-read")
        # A daemon: a process that dies without closing must not hang on it. SQLite survives that.
        self._writer = threading.Thread(
            target=self._write_forever, name="ledger-write", daemon=True
        )
        self._closed = False
        self._writer.start()

    @classmethod
    async def open(
        cls,
        where: str | Path,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        beside_server: bool = False,
    ) -> Database:
        """Open the database file or `sqlite:///` URL, creating and migrating it as needed.

        Args:
            where: The file.
            clock: The time, for the record of migrations.
            beside_server: For short work of the operator, which a running coordinator allows:
                SQLite itself keeps the two apart. Nothing is migrated under its feet.

        Raises:
            AlreadyRunningError: Another process has it open.
            NewerDatabaseError: A newer version of this program wrote it.
            LedgerUnavailableError: It cannot be read or written.
            UsageError: The URL is not a SQLite file.
        """
        return await asyncio.to_thread(cls._open, _file_of(where), clock, beside=beside_server)

    @classmethod
    def _open(cls, path: Path, clock: Callable[[], datetime], *, beside: bool) -> Database:
        try:
            paths.private_directory(path.parent)
            # The write-ahead log takes over the mode of the file it belongs to.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, paths.PRIVATE_FILE))
            lock, alone = _locked(path, beside=beside)
        except OSError as error:
            raise _unavailable(error.strerror or type(error).__name__) from error
        writer, reader = sqlite_engine(path, writes=True), sqlite_engine(path, writes=False)
        try:
            if alone:
                migrations.migrate(writer, clock)
            else:
                _same_schema(writer)
        except BaseException as error:
            writer.dispose()
            os.close(lock)
            if isinstance(error, DatabaseError):
                raise _unavailable(_reason(error)) from error
            raise
        return cls(writer, reader, lock)

    async def write(self, operation: Callable[[Connection], T]) -> T:
        """Run `operation` in a transaction and return its result once that is on disk.

        What `operation` raises is raised here, and nothing it did is kept. If the caller is
        cancelled, an operation already begun is still finished; operations keep their order, so a
        caller that must undo can simply write again.

        Raises:
            LedgerUnavailableError: The disk is full, read-only or gone. Later calls may succeed.
        """
        async with self._slots:
            if self._closed:
                raise _unavailable("it is closed")
            write = _Write(operation)
            self._waiting.put_nowait(write)
            return await asyncio.wrap_future(write.future)

    async def read(self, operation: Callable[[Connection], T]) -> T:
        """Run `operation` on a consistent snapshot that it cannot change.

        Raises:
            LedgerUnavailableError: The database cannot be read.
        """
        if self._closed:
            raise _unavailable("it is closed")
        return await asyncio.wrap_future(self._readers.submit(self._read, operation))

    async def close(self) -> None:
        """Finish every write that was asked for, then close. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._waiting.put_nowait(None)
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        self._writer.join()
        self._readers.shutdown()
        self._reader_engine.dispose()
        self._writer_engine.dispose()
        os.close(self._lock)

    def _read(self, operation: Callable[[Connection], T]) -> T:
        try:
            with self._reader_engine.begin() as connection:
                return operation(connection)
        except DatabaseError as error:
            if _is_storage(error):
                raise _unavailable(_reason(error)) from error
            raise

    def _write_forever(self) -> None:
        closing = False
        while not closing:
            batch = [self._waiting.get()]
            while len(batch) < MAX_BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            closing = None in batch
            # An operation whose caller has gone before it began is left out.
            live = [w for w in batch if w is not None and w.future.set_running_or_notify_cancel()]
            if live:
                self._commit(live)

    def _commit(self, batch: Sequence[_Write[Any]]) -> None:
        """Run a batch in one transaction; one by one if the batch as a whole did not work."""
        outcomes: list[_Outcome] = []
        try:
            with self._writer_engine.begin() as connection:
                outcomes = [_attempt(connection, write.operation) for write in batch]
        except _StorageFailedError as failure:
            if len(batch) > 1:
                # One operation's failure must not take its neighbours with it.
                for write in batch:
                    self._commit([write])
                return
            _fail(batch, failure.__cause__ or failure)
        except BaseException as error:  # noqa: BLE001 - a failed begin or commit: its callers are told
            _fail(batch, error)
        else:
            for write, outcome in zip(batch, outcomes, strict=True):
                if outcome.error is None:
                    write.future.set_result(outcome.value)
                else:
                    write.future.set_exception(outcome.error)


def _attempt(connection: Connection, operation: Callable[[Connection], Any]) -> _Outcome:
    try:
        savepoint = connection.begin_nested()
        try:
            value = operation(connection)
            savepoint.commit()
        except BaseException as error:
            if isinstance(error, DatabaseError) and _is_storage(error):
                # SQLite may have rolled everything back by itself, this savepoint included.
                raise
            savepoint.rollback()
            return _Outcome(error=error)
    except DatabaseError as error:
        raise _StorageFailedError from error
    return _Outcome(value=value)


def _fail(batch: Sequence[_Write[Any]], cause: BaseException) -> None:
    reason = _reason(cause)
    _log.error("ledger_write_failed", reason=reason, operations=len(batch))
    for write in batch:
        error = _unavailable(reason)
        error.__cause__ = cause
        write.future.set_exception(error)


def _is_storage(error: DatabaseError) -> bool:
    """Whether the database failed, rather than the statement or what it was given."""
    return type(error) is DatabaseError or isinstance(error, OperationalError)


def _reason(error: BaseException) -> str:
    # `orig` is SQLite's own short sentence; str(error) would carry the statement's values.
    return str(getattr(error, "orig", None) or type(error).__name__)


def _unavailable(reason: str) -> LedgerUnavailableError:
    return LedgerUnavailableError(
        "The coordinator's ledger is not available",
        why=reason,
        next_step="check the disk that holds the coordinator's directory, then try again",
    )


def _file_of(where: str | Path) -> Path:
    if isinstance(where, Path):
        return where.absolute()
    url = make_url(where) if "://" in where else URL.create("sqlite", database=where)
    if url.get_backend_name() != "sqlite" or url.database in {None, "", ":memory:"}:
        raise UsageError(
            "The coordinator keeps its ledger in a SQLite file",
            why=f"the given database is {url.render_as_string(hide_password=True)}",
            next_step="give a path, or a URL like sqlite:////absolute/path.sqlite3",
        )
    return Path(url.database or "").absolute()


def _same_schema(engine: Engine) -> None:
    """Refuse to work beside a coordinator of another version."""
    newest = max((step.number for step in migrations.shipped()), default=0)
    with engine.begin() as connection:
        at = migrations.current(connection)
    if at != newest:
        raise UsageError(
            "The coordinator that uses this ledger is another version of darkbloom",
            why=f"its schema is {at}, this version knows {newest}",
            next_step="restart the coordinator with this version, then try again",
        )


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
