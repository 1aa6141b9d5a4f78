"""What only PostgreSQL can do: many coordinators on one ledger, and a server that goes away."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from darkbloom_provider.coordinator.earnings import views
from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.ledger.books import Balance, InsufficientFundsError
from darkbloom_provider.coordinator.store import storage
from darkbloom_provider.coordinator.store.database import Database, LedgerUnavailableError
from darkbloom_provider.errors import UsageError
from support.books import CONSUMER, NOON, Shop, opened
from support.cut_proxy import cut_proxy
from support.postgres import Server


async def balance(db: Database) -> Balance:
    return await db.read(lambda c: books.balance_of(c, CONSUMER))


async def test_two_coordinators_share_one_ledger_without_losing_a_write(postgres_url: str) -> None:
    async with opened(postgres_url) as one, opened(postgres_url) as two:
        assert one.run != two.run
        await asyncio.gather(
            *(db.write(lambda c: Shop(c).deposit(1)) for _ in range(50) for db in (one, two))
        )
        assert await balance(one) == await balance(two) == Balance(100, 0)
        assert await one.read(audit) == []


async def test_the_last_dollar_is_spent_once_whoever_takes_it(postgres_url: str) -> None:
    async with opened(postgres_url) as one, opened(postgres_url) as two:
        await one.write(lambda c: Shop(c).deposit(1_000))
        results = await asyncio.gather(
            *(
                db.write(lambda c, name=f"{n}-{db.run}": Shop(c).reserve(name, 1_000))  # type: ignore[misc]  # mypy cannot infer a default's type
                for n in range(5)
                for db in (one, two)
            ),
            return_exceptions=True,
        )
        refused = [r for r in results if isinstance(r, InsufficientFundsError)]
        assert (results.count(None), len(refused)) == (1, 9)
        assert await two.read(audit) == []


async def test_a_coordinator_that_starts_refunds_the_requests_of_the_dead_only(
    postgres_url: str,
) -> None:
    async with opened(postgres_url) as living, opened(postgres_url) as dying:
        await living.write(lambda c: Shop(c).deposit(1_000))
        await living.write(lambda c: Shop(c).reserve("living", 300, run=living.run))
        await dying.write(lambda c: Shop(c).reserve("dying", 200, run=dying.run))
        await living.write(lambda c: Shop(c).reserve("before runs were counted", 100))
        assert await living.recover(now=NOON) == 1
        await dying.close()
        async with opened(postgres_url) as starting:
            assert await starting.recover(now=NOON) == 1
            assert await balance(starting) == Balance(700, 0)
            assert await starting.read(audit) == []


async def test_a_coordinator_is_still_alive_after_its_connection_was_replaced(
    postgres_url: str,
) -> None:
    async with opened(postgres_url) as db, opened(postgres_url) as other:
        await db.write(lambda c: Shop(c).deposit(1_000))
        await db.write(lambda c: Shop(c).reserve("open", 300, run=db.run))
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        await other.write(lambda c: c.execute(text(cut)).all())
        await db.write(lambda c: Shop(c).deposit(1))
        assert await other.recover(now=NOON) == 0


@pytest.mark.parametrize("kept", [True, False])
async def test_a_commit_whose_answer_was_lost_is_looked_up_not_guessed(
    postgres: Server, postgres_url: str, kept: bool
) -> None:
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as directory,
        cut_proxy(Path(directory), postgres.directory / ".s.PGSQL.5432") as proxy,
    ):
        url = postgres_url.replace(str(postgres.directory), directory)
        async with opened(url) as db:
            await db.write(lambda c: Shop(c).deposit(5))
            # Cut with the commit, or with the question just before it.
            proxy.cut_after = b"COMMIT\0" if kept else b"pg_current_xact_id"
            write = db.write(lambda c: Shop(c).deposit(7))
            if kept:
                await write
            else:
                with pytest.raises(LedgerUnavailableError):
                    await write
            assert proxy.cuts == 1
            assert await balance(db) == Balance(12 if kept else 5, 0)
            await db.write(lambda c: Shop(c).deposit(1))
            assert await db.read(audit) == []


async def test_a_server_that_is_gone_is_a_typed_error_and_its_return_is_noticed(
    postgres: Server, postgres_url: str
) -> None:
    async with opened(postgres_url) as db:
        await db.write(lambda c: Shop(c).deposit(5))
        postgres.stop(signal.SIGQUIT)
        try:
            for _ in range(2):
                with pytest.raises(LedgerUnavailableError) as failed:
                    await db.write(lambda c: Shop(c).deposit(7))
                assert failed.value.next_step
                with pytest.raises(LedgerUnavailableError):
                    await balance(db)
            with pytest.raises(LedgerUnavailableError):
                await Database.open(postgres_url)
        finally:
            postgres.start()
        await db.write(lambda c: Shop(c).deposit(1))
        assert await balance(db) == Balance(6, 0)
        assert await db.read(audit) == []


async def test_a_server_that_became_read_only_is_a_typed_error_and_passes(
    postgres_url: str,
) -> None:
    def on_a_standby(connection: Connection) -> None:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        Shop(connection).deposit(7)

    async with opened(postgres_url) as db:
        with pytest.raises(LedgerUnavailableError) as failed:
            await db.write(on_a_standby)
        assert "read-only" in str(failed.value)
        assert await balance(db) == books.NOTHING
        await db.write(lambda c: Shop(c).deposit(7))
        assert await balance(db) == Balance(7, 0)


async def test_a_coordinator_of_another_version_is_not_migrated_under_its_feet(
    postgres_url: str,
) -> None:
    async with opened(postgres_url) as db:
        delete = text("DELETE FROM schema_migrations WHERE number > 1")
        await db.write(lambda c: c.execute(delete).close())
        for beside in (True, False):
            with pytest.raises(UsageError, match="another version"):
                await Database.open(postgres_url, beside_server=beside)


async def test_text_that_postgresql_cannot_hold_finds_nothing(postgres_url: str) -> None:
    async with opened(postgres_url) as db:
        page = await db.read(lambda c: views.node_earnings(c, "a\0b", limit=1))
        assert page.rows == []


def test_the_two_spellings_of_a_postgresql_url_mean_the_same_driver() -> None:
    for spelling in ("postgres", "postgresql", "postgresql+psycopg"):
        url = storage.parse_url(f"{spelling}://me@host/books")
        assert url.drivername == "postgresql+psycopg"
