"""A ledger that cannot be written: consumers get 503, nothing is half-written, and it passes."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Connection

from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.server import RunningCoordinator
from darkbloom_provider.coordinator.store.database import Database
from support.desk import error_of
from support.network import network
from support.postgres import Server
from support.scripted_provider import WALLET, Job, scripted_provider

Fault = Callable[[RunningCoordinator], Awaitable[None]]


async def pragma(coordinator: RunningCoordinator, words: str) -> None:
    """Change the writer's own connection."""

    def operation(connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA {words}").close()

    await coordinator.services.db.write(operation)


async def fill(coordinator: RunningCoordinator) -> None:
    """No page more than there is now, as on a full disk."""

    def pages(connection: Connection) -> int:
        count: int = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        return count

    await pragma(coordinator, f"max_page_count = {await coordinator.services.db.read(pages)}")


async def protect(coordinator: RunningCoordinator) -> None:
    """As on a file system that was mounted read-only after an error."""
    await pragma(coordinator, "query_only = ON")


async def mend(database: Database) -> None:
    """Room again, and write access."""
    # The fault forbids the transaction that would end it.
    engine = database._storage.writer
    raw = engine.raw_connection()
    try:
        for words in ("query_only = OFF", "max_page_count = 1000000"):
            raw.cursor().execute(f"PRAGMA {words}").close()
    finally:
        raw.close()


async def answer(job: Job) -> None:
    await job.accept()
    await job.answer("Hello", usage=(1000, 2000))
    await job.complete(1000, 2000)


def unavailable(reply: httpx.Response) -> bool:
    if reply.status_code == 200:
        return False
    assert error_of(reply)[0] == 503, reply.text
    assert "sqlite" not in reply.text.lower()
    return True


@pytest.mark.parametrize("fault", [fill, protect])
async def test_while_nothing_can_be_written_consumers_get_503_and_it_recovers(
    tmp_path: Path, fault: Fault
) -> None:
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, answer, wallet_address=WALLET),
    ):
        assert (await net.ask()).status_code == 200
        await fault(net.coordinator)
        served = 1
        # The last pages may have room for a few more rows.
        for _ in range(300):
            reply = await net.ask()
            if unavailable(reply):
                break
            served += 1
        else:
            raise AssertionError("the ledger never ran full")
        database = net.coordinator.services.db
        assert await database.read(audit) == []
        # What can be read is still answered.
        assert (await net.http.get("/v1/payments/balance")).status_code == 200

        await mend(database)
        await net.idle()
        await net.coordinator.books.close_leftovers()
        assert (await net.ask()).status_code == 200
        assert await net.spent() == (served + 1) * 450
        assert net.coordinator.books.unclosed == set()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_ledger_lost_before_the_settlement_costs_the_consumer_nothing(
    tmp_path: Path, stream: bool
) -> None:
    lost = False

    async def cut(job: Job) -> None:
        nonlocal lost
        await job.accept()
        await (job.say("Hel") if stream else job.answer("Hello", usage=(1000, 2000)))
        if not lost:
            lost = True
            await protect(net.coordinator)
        await job.complete(1000, 2000)

    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, cut, wallet_address=WALLET),
    ):
        if stream:
            _, told = await net.stream()
            assert "[DONE]" not in told
            assert "error" in told[-1]
        else:
            assert unavailable(await net.ask())
        database = net.coordinator.services.db
        assert await database.read(audit) == []
        await mend(database)
        assert await net.coordinator.books.close_leftovers() == 1
        assert (await net.spent(), await net.balance(WALLET)) == (0, 0)
        assert await net.job_states() == ["refunded"]
        assert (await net.ask()).status_code == 200
        assert (await net.spent(), await net.balance(WALLET)) == (450, 450)


async def test_a_database_server_that_goes_away_is_503_and_its_return_is_noticed(
    tmp_path: Path, postgres: Server, postgres_url: str
) -> None:
    async with (
        network(tmp_path, database=postgres_url) as net,
        scripted_provider(net.ws_url, answer, wallet_address=WALLET),
    ):
        assert (await net.ask()).status_code == 200
        postgres.stop(signal.SIGQUIT)
        try:
            assert unavailable(await net.ask())
        finally:
            postgres.start()
        assert (await net.ask()).status_code == 200
        await net.coordinator.books.close_leftovers()
        assert (await net.spent(), await net.balance(WALLET)) == (900, 900)
