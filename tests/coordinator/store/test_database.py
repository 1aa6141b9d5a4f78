"""The database keeps its promises: durable, ordered, never blocking, and honest when it cannot."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select, text
from sqlalchemy.exc import ProgrammingError

from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.ledger.books import Balance, InsufficientFundsError
from darkbloom_provider.coordinator.store import database
from darkbloom_provider.coordinator.store.database import Database, LedgerUnavailableError
from darkbloom_provider.coordinator.store.schema import accounts
from darkbloom_provider.errors import AlreadyRunningError, UsageError
from support.books import CONSUMER, NOON, Shop, opened


def deposit(amount: int) -> Callable[[Connection], None]:
    return lambda connection: Shop(connection).deposit(amount)


def holds(connection: Connection) -> Balance:
    return books.balance_of(connection, CONSUMER)


async def test_data_survives_a_reopen(place: Path | str) -> None:
    async with opened(place) as db:
        await db.write(deposit(7))
    async with opened(place) as db:
        assert await db.read(holds) == Balance(7, 0)


async def test_the_file_is_durable_and_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "ledger.sqlite3"

    def pragmas(connection: Connection) -> dict[str, object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "fullfsync", "checkpoint_fullfsync")
        return {n: connection.exec_driver_sql(f"PRAGMA {n}").scalar_one() for n in names}

    async with opened(path) as db:
        assert await db.write(pragmas) == {
            "journal_mode": "wal",
            "synchronous": 2,
            "foreign_keys": 1,
            "fullfsync": 1,
            "checkpoint_fullfsync": 1,
        }
        modes = {file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
        assert modes == {0o600}
        assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_a_write_that_fails_leaves_nothing_and_its_neighbours_alone(
    place: Path | str,
) -> None:
    def half(connection: Connection) -> None:
        Shop(connection).deposit(1_000)
        raise InsufficientFundsError(needed=2, available=1)

    async with opened(place) as db:
        results = await asyncio.gather(
            db.write(deposit(1)), db.write(half), db.write(deposit(2)), return_exceptions=True
        )
        assert isinstance(results[1], InsufficientFundsError)
        assert await db.read(holds) == Balance(3, 0)


async def test_writes_that_pile_up_share_one_commit_and_keep_their_order(place: Path | str) -> None:
    begun, go = threading.Event(), threading.Event()
    order: list[int] = []

    def slow(connection: Connection) -> None:
        begun.set()
        go.wait(10)

    def nth(n: int) -> Callable[[Connection], int]:
        def operation(connection: Connection) -> int:
            order.append(n)
            Shop(connection).deposit(1)
            return n

        return operation

    async with opened(place) as db:
        first = asyncio.create_task(db.write(slow))
        await asyncio.to_thread(begun.wait, 10)
        rest = [asyncio.create_task(db.write(nth(n))) for n in range(20)]
        await asyncio.sleep(0)
        # The loop is free while the writer waits: reads go on.
        assert await db.read(holds) == books.NOTHING
        go.set()
        await asyncio.gather(first, *rest)
        assert order == list(range(20))
        assert await db.read(holds) == Balance(20, 0)


async def test_a_failing_statement_does_not_take_its_batch_with_it(place: Path | str) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        begun.set()
        go.wait(10)

    def nonsense(connection: Connection) -> None:
        connection.execute(text("SELECT * FROM nowhere"))

    async with opened(place) as db:
        first = asyncio.create_task(db.write(slow))
        await asyncio.to_thread(begun.wait, 10)
        others = [asyncio.create_task(db.write(op)) for op in (deposit(1), nonsense, deposit(2))]
        await asyncio.sleep(0)
        go.set()
        _, *results = await asyncio.gather(first, *others, return_exceptions=True)
        # SQLite cannot tell a wrong statement from a broken file; PostgreSQL can.
        assert isinstance(results[1], (LedgerUnavailableError, ProgrammingError))
        assert results[0] is None
        assert results[2] is None
        assert await db.read(holds) == Balance(3, 0)


async def test_a_caller_cancelled_before_its_turn_moves_nothing(place: Path | str) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        begun.set()
        go.wait(10)

    async with opened(place) as db:
        first = asyncio.create_task(db.write(slow))
        await asyncio.to_thread(begun.wait, 10)
        gone = asyncio.create_task(db.write(deposit(5)))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        go.set()
        await first
        await db.write(deposit(1))
        assert await db.read(holds) == Balance(1, 0)


async def test_a_write_already_begun_is_finished_when_its_caller_is_cancelled(
    place: Path | str,
) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        begun.set()
        go.wait(10)
        Shop(connection).deposit(5)

    async with opened(place) as db:
        first = asyncio.create_task(db.write(slow))
        await asyncio.to_thread(begun.wait, 10)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        go.set()
        await db.write(deposit(1))
        assert await db.read(holds) == Balance(6, 0)


async def test_a_full_disk_is_a_typed_error_and_passes(tmp_path: Path) -> None:
    def limit(connection: Connection) -> int:
        pages: int = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        return connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}").scalar_one() or 0

    def lift(connection: Connection) -> int:
        return connection.exec_driver_sql("PRAGMA max_page_count = 1000000").scalar_one() or 0

    def hoard(connection: Connection) -> None:
        Shop(connection).deposit(1)
        rows = [
            {"id": f"{n}-{'x' * 500}", "kind": "user", "balance": 0, "withdrawable": 0}
            for n in range(2_000)
        ]
        connection.execute(insert(accounts), [{**row, "created_at": NOON} for row in rows])

    async with opened(tmp_path / "l.sqlite3") as db:
        await db.write(deposit(3))
        await db.write(limit)
        with pytest.raises(LedgerUnavailableError) as failed:
            await db.write(hoard)
        assert failed.value.why == "database or disk is full"
        assert failed.value.next_step
        assert await db.read(holds) == Balance(3, 0)
        await db.write(lift)
        await db.write(hoard)
        assert await db.read(holds) == Balance(4, 0)


async def test_a_write_on_the_reading_side_is_refused(place: Path | str) -> None:
    async with opened(place) as db:
        with pytest.raises(LedgerUnavailableError):
            await db.read(deposit(1))
        assert await db.read(holds) == books.NOTHING


async def test_a_second_coordinator_on_the_same_ledger_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path / "l.sqlite3"):
        with pytest.raises(AlreadyRunningError):
            await Database.open(tmp_path / "l.sqlite3")
    async with opened(tmp_path / "l.sqlite3"):
        pass


async def test_a_file_that_is_no_database_is_a_typed_error(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite3"
    path.write_bytes(b"this is not a database, but it is long enough to look at" * 20)
    for _ in range(2):  # the lock is given back
        with pytest.raises(LedgerUnavailableError):
            await Database.open(path)


async def test_a_directory_that_cannot_be_made_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerUnavailableError):
        await Database.open(tmp_path / "file" / "l.sqlite3")


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:secret@h/d",
        "postgresql+asyncpg://u:secret@h/d",
        "sqlite://",
        "sqlite:///:memory:",
        "://secret",
    ],
)
async def test_an_unusable_database_is_refused_and_a_password_never_shown(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        await Database.open(url)
    assert "secret" not in str(refused.value)
    assert refused.value.next_step


async def test_a_url_opens_the_same_file_as_its_path(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite3"
    db = await Database.open(f"sqlite:///{path}")
    await db.write(deposit(1))
    await db.close()
    async with opened(path) as again:
        assert await again.read(holds) == Balance(1, 0)


async def test_closing_finishes_what_was_asked_and_refuses_what_comes_later(
    place: Path | str,
) -> None:
    db = await Database.open(place)
    writes = [asyncio.create_task(db.write(deposit(1))) for _ in range(100)]
    await asyncio.sleep(0)
    await db.close()
    await db.close()
    await asyncio.gather(*writes)
    with pytest.raises(LedgerUnavailableError):
        await db.write(deposit(1))
    with pytest.raises(LedgerUnavailableError):
        await db.read(holds)
    async with opened(place) as again:
        assert await again.read(holds) == Balance(100, 0)


async def test_more_writes_than_may_wait_all_get_their_turn(place: Path | str) -> None:
    def one(connection: Connection) -> int:
        one: int = connection.execute(select(1)).scalar_one()
        return one

    async with opened(place) as db:
        many = await asyncio.gather(
            *(db.write(one) for _ in range(database.MAX_WAITING_WRITES + 50))
        )
    assert sum(many) == database.MAX_WAITING_WRITES + 50


async def test_an_error_never_shows_the_values_of_a_statement(place: Path | str) -> None:
    def twice(connection: Connection) -> None:
        connection.execute(text("SELECT :secret FROM nowhere"), {"secret": "eigeninference-abc"})

    async with opened(place) as db:
        with pytest.raises((LedgerUnavailableError, ProgrammingError)) as failed:
            await db.write(twice)
    assert "eigeninference-abc" not in f"{failed.value} {failed.value.__cause__}"
