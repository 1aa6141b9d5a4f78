"""The coordinator's database: one writer thread, reader threads, and no wait on the event loop.

All writes pass through one thread in the order they were asked for. What has piled up while the
disk was busy shares one commit (group commit): each operation runs in a savepoint of its own, or in
one with its neighbours if they can be joined (`Joining`), and nobody is told of success before the
commit is on disk.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DatabaseError, DBAPIError, InternalError, OperationalError

from darkbloom_provider import logs
from darkbloom_provider.coordinator.ledger import reservations
from darkbloom_provider.coordinator.store import migrations
from darkbloom_provider.coordinator.store.storage import (
    READERS,
    LedgerUnavailableError,
    Storage,
    open_storage,
    release,
    roll_back,
    savepoint,
    unavailable,
)
from darkbloom_provider.errors import UsageError

__all__ = ["Database", "LedgerUnavailableError"]

T = TypeVar("T")

MAX_WAITING_WRITES: Final = 1024
"""Operations that may wait for the writer. Further callers wait in turn, on the event loop."""
MAX_BATCH: Final = 64
"""Operations that may share one commit."""

_log = logs.get("coordinator")


class Joining(Protocol):
    """An operation that shares its statements with its neighbours of the same kind in a batch."""

    @property
    def together(self) -> Callable[[Connection, Sequence[Any]], Sequence[Any]]:
        """Carries out several of them, in order; gives each one's value, or its error."""


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
    """The coordinator's database, opened and migrated. Use `open`, and `close` when done.

    An operation is a function of a `Connection`. It must have no other effect, for it runs on
    another thread and may run a second time when a neighbour in its batch failed.
    """

    def __init__(self, storage: Storage, run: int) -> None:
        self._storage = storage
        self.run = run
        """The number of this coordinator's run; 0 for work beside one."""
        self._waiting: queue.Queue[_Write[Any] | None] = queue.Queue()
        self._slots = asyncio.Semaphore(MAX_WAITING_WRITES)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="ledger-read")
        # A daemon: a process that dies without closing must not hang on it. The database survives.
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
        """Open the database file or URL, creating and migrating it as needed.

        Args:
            where: The file, or a `sqlite:///` or `postgresql+psycopg://` URL.
            clock: The time, for the record of migrations.
            beside_server: For short work of the operator, which a running coordinator allows:
                the database itself keeps the two apart. Nothing is migrated under its feet.

        Raises:
            AlreadyRunningError: Another process has the file open.
            NewerDatabaseError: A newer version of this program wrote it.
            LedgerUnavailableError: It cannot be read or written.
            UsageError: There is no database like that, or its schema is in use by others.
        """
        return await asyncio.to_thread(cls._open, where, clock, beside=beside_server)

    @classmethod
    def _open(cls, where: str | Path, clock: Callable[[], datetime], *, beside: bool) -> Database:
        storage = open_storage(where, beside=beside)
        try:
            if storage.alone:
                migrations.migrate(storage.writer, clock)
            else:
                _same_schema(storage.writer)
            run = 0 if beside else _begin_run(storage, clock())
        except BaseException as error:
            storage.close()
            if isinstance(error, DatabaseError):
                raise unavailable(_reason(error)) from error
            raise
        return cls(storage, run)

    async def recover(self, *, now: datetime) -> int:
        """Refund the open reservations of coordinators that died; how many there were.

        Raises:
            LedgerUnavailableError: The ledger cannot be written now.
        """

        def operation(connection: Connection) -> int:
            living = self._storage.live_runs(connection)
            return reservations.recover_open_reservations(connection, living=living, now=now)

        return await self.write(operation)

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
                raise unavailable("it is closed")
            write = _Write(operation)
            self._waiting.put_nowait(write)
            return await asyncio.wrap_future(write.future)

    async def read(self, operation: Callable[[Connection], T]) -> T:
        """Run `operation` on a consistent snapshot that it cannot change.

        Raises:
            LedgerUnavailableError: The database cannot be read.
        """
        if self._closed:
            raise unavailable("it is closed")
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
        self._storage.close()

    def _read(self, operation: Callable[[Connection], T]) -> T:
        try:
            with self._storage.reader.begin() as connection:
                return operation(connection)
        except DatabaseError as error:
            if _is_storage(error):
                raise unavailable(_reason(error)) from error
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
        try:
            outcomes = self._transact(batch)
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

    def _transact(self, batch: Sequence[_Write[Any]]) -> list[_Outcome]:
        """Run a batch and commit it; returns once that is on disk, else raises."""
        with self._storage.writer.connect() as connection, connection.begin() as transaction:
            outcomes = [
                outcome
                for together, writes in itertools.groupby(batch, key=_together)
                for outcome in _attempt_all(connection, together, [w.operation for w in writes])
            ]
            ticket = self._storage.ticket(connection)
            try:
                transaction.commit()
            except DBAPIError as error:
                if ticket is None or not error.connection_invalidated:
                    raise
                _log.warning("commit_answer_lost", reason=_reason(error))
                lost = error
            else:
                return outcomes
        # The server may have committed and the answer got lost: money must not be guessed at.
        if self._storage.committed(ticket):
            return outcomes
        raise lost


def _together(write: _Write[Any]) -> Callable[[Connection, Sequence[Any]], Sequence[Any]] | None:
    """How an operation is carried out with its neighbours; None if it stays alone."""
    return getattr(write.operation, "together", None)


def _attempt_all(
    connection: Connection,
    together: Callable[[Connection, Sequence[Any]], Sequence[Any]] | None,
    operations: Sequence[Callable[[Connection], Any]],
) -> list[_Outcome]:
    if together is not None and len(operations) > 1:
        joined = _attempt(connection, lambda c: together(c, operations))
        if joined.error is None:
            return [
                _Outcome(error=value) if isinstance(value, BaseException) else _Outcome(value)
                for value in joined.value
            ]
        # A statement was refused, for one of them: which one shows when each is on its own.
    return [_attempt(connection, operation) for operation in operations]


def _attempt(connection: Connection, operation: Callable[[Connection], Any]) -> _Outcome:
    try:
        savepoint(connection)
        try:
            value = operation(connection)
            release(connection)
        except BaseException as error:
            if isinstance(error, DatabaseError) and _is_storage(error):
                # SQLite may have rolled everything back by itself, this savepoint included.
                raise
            roll_back(connection)
            return _Outcome(error=error)
    except DatabaseError as error:
        raise _StorageFailedError from error
    return _Outcome(value=value)


def _fail(batch: Sequence[_Write[Any]], cause: BaseException) -> None:
    reason = _reason(cause)
    _log.error("ledger_write_failed", reason=reason, operations=len(batch))
    for write in batch:
        error = unavailable(reason)
        error.__cause__ = cause
        write.future.set_exception(error)


def _is_storage(error: DatabaseError) -> bool:
    """Whether the database failed, rather than the statement or what it was given."""
    return type(error) is DatabaseError or isinstance(error, (OperationalError, InternalError))


def _reason(error: BaseException) -> str:
    if isinstance(error, LedgerUnavailableError):
        return error.why or error.what
    # `orig` is the driver's own sentence; str(error) would carry the statement's values. A second
    # line of PostgreSQL's quotes the statement or the row.
    return str(getattr(error, "orig", None) or type(error).__name__).partition("\n")[0]


def _begin_run(storage: Storage, now: datetime) -> int:
    with storage.writer.begin() as connection:
        run = reservations.begin_run(connection, now=now)
    storage.hold(run)
    return run


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
