"""What the pages of one account show, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection

from darkbloom_provider.coordinator.accounts import people
from darkbloom_provider.coordinator.earnings import owner_views
from darkbloom_provider.coordinator.earnings.owner_views import HistoryRow, Spending
from darkbloom_provider.coordinator.earnings.views import Sum
from darkbloom_provider.coordinator.ledger.earning_totals import EarningsFilter
from darkbloom_provider.coordinator.store.database import Database
from support.books import CONSUMER, LINKED, MACHINE, NOON, OWNER, QWEN, Clock, Shop, opened

HOUR = timedelta(hours=1)
EVERYTHING = EarningsFilter()
OTHER = "b" * 32


WORKERS = (MACHINE, MACHINE, OTHER, None, MACHINE)
"""Which machine does each of five jobs, an hour apart; None never gave an identity."""


@pytest.fixture
async def database(place: Path | str) -> AsyncIterator[Database]:
    clock = Clock()

    def fill(connection: Connection) -> None:
        shop = Shop(connection, clock=clock)
        for account in (OWNER, CONSUMER):
            people.create_user(
                connection, account_id=account, email=f"{account}@example.org", now=NOON
            )
        shop.deposit(1_000_000)
        for number, machine in enumerate(WORKERS, start=1):
            shop.reserve(f"r{number}", 10_000)
            serving = replace(LINKED, machine_id=machine)
            shop.settle(f"r{number}", 0, 1_000 * number, serving=serving)
            clock.forward(HOUR)

    async with opened(place, clock) as database:
        await database.write(fill)
        yield database


async def test_history_goes_on_where_a_page_ended(database: Database) -> None:
    def page(connection: Connection, after: HistoryRow | None) -> list[HistoryRow]:
        return owner_views.history(connection, OWNER, chosen=EVERYTHING, limit=2, after=after)

    def in_pages(connection: Connection) -> list[HistoryRow]:
        rows = page(connection, None)
        while more := page(connection, rows[-1]):
            rows += more
        return rows

    whole = await database.read(
        lambda c: owner_views.history(c, OWNER, chosen=EVERYTHING, limit=100)
    )
    assert await database.read(in_pages) == whole
    assert [row.amount for row in whole] == [3_900, 3_120, 2_340, 1_560, 780]
    assert [row.machine_id for row in whole] == list(reversed(WORKERS))


async def test_machines_are_ranked_by_what_they_earned(database: Database) -> None:
    machines = await database.read(lambda c: owner_views.earned_by_machine(c, OWNER))
    assert [(m.machine_id, m.earned) for m in machines] == [
        (MACHINE, Sum(6_240, 3)),
        (None, Sum(3_120, 1)),
        (OTHER, Sum(2_340, 1)),
    ]
    assert (machines[0].first_at, machines[0].last_at) == (NOON, NOON + 4 * HOUR)


async def test_sums_since_a_time_include_it(database: Database) -> None:
    since = NOON + 3 * HOUR
    found = await database.read(lambda c: owner_views.earned_since(c, OWNER, since))
    assert found == Sum(7_020, 2)


async def test_models_are_those_that_earned(database: Database) -> None:
    assert await database.read(lambda c: owner_views.models_earned(c, OWNER)) == [QWEN]
    assert await database.read(lambda c: owner_views.models_earned(c, CONSUMER)) == []


async def test_spending_is_the_consumers_side_of_the_same_jobs(database: Database) -> None:
    spent = await database.read(lambda c: owner_views.spending(c, CONSUMER))
    assert spent == Spending(11_700, 5, 15_000)
    points = await database.read(
        lambda c: owner_views.spending_series(c, CONSUMER, since=NOON - timedelta(days=1))
    )
    assert [(p.start.day, p.amount_micro_usd, p.jobs) for p in points] == [(1, 11_700, 5)]
    assert await database.read(lambda c: owner_views.spending(c, OWNER)) == Spending(0, 0, 0)
