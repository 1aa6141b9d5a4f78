"""Orders that are carried out together come to what they come to one by one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, event, select

from darkbloom_provider.coordinator.accounts import people
from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.ledger.books import LedgerError, balance_of
from darkbloom_provider.coordinator.ledger.reservations import (
    Order,
    Refund,
    Reserve,
    Serving,
    Settle,
    carry_out,
    deposit,
)
from darkbloom_provider.coordinator.offer import prices
from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.coordinator.store import schema
from darkbloom_provider.protocol.money import Price
from support.books import NOON, QWEN_PRICE, WALLET, fresh_engine, opened

PEOPLE = ("ann", "bob", "eve")
RESERVATIONS = ("r1", "r2", "r3", "r4")
POLICY = Policy(fee_percent=7, referral_percent=20, personal_prices=True)
TABLES = (
    *(schema.accounts, schema.transfers, schema.entries, schema.jobs),
    *(schema.earnings, schema.earning_totals, schema.wallet_payouts),
)

moments = st.integers(0, 3).map(lambda hours: NOON + timedelta(hours=9 * hours))
servings = st.builds(
    Serving,
    provider_id=st.just("session"),
    provider_key=st.sampled_from(["k1", "k2"]),
    account_id=st.sampled_from([*PEOPLE, "platform", None]),
    wallet_address=st.sampled_from([WALLET, "0x" + "2" * 40, None]),
    machine_id=st.sampled_from(["m1", None]),
)
reservations = st.sampled_from(RESERVATIONS)
orders = st.one_of(
    st.builds(
        Reserve,
        reservation_id=reservations,
        account_id=st.sampled_from([*PEOPLE, "nobody", "internal:reservations"]),
        model=st.sampled_from(["m", "n"]),
        amount=st.integers(-1, 600),
        now=moments,
        run=st.integers(0, 2),
    ),
    st.builds(
        Settle,
        reservation_id=reservations,
        job_id=st.sampled_from(["j1", "j2", "j3"]),
        serving=servings,
        prompt_tokens=st.integers(-1, 3000),
        completion_tokens=st.integers(0, 900) | st.just(2**70),
        price=st.sampled_from([QWEN_PRICE, Price(0, 0)]),
        policy=st.just(POLICY),
        now=moments,
        partial=st.booleans(),
    ),
    st.builds(Refund, reservation_id=reservations, now=moments),
)


def one_by_one(connection: Connection, asked: Sequence[Order[Any]]) -> list[object]:
    results: list[object] = []
    for order in asked:
        try:
            results.append(order(connection))
        except LedgerError as error:
            results.append(error)
    return results


def told(results: Sequence[object]) -> list[object]:
    return [(type(r), r.args) if isinstance(r, LedgerError) else r for r in results]


def furnish(connection: Connection) -> None:
    for who in PEOPLE:
        people.create_user(connection, account_id=who, email=f"{who}@example.org", now=NOON)
    deposit(connection, "ann", 1000, now=NOON)
    deposit(connection, "bob", 700, now=NOON, entry_type="admin_reward")
    connection.execute(
        schema.referrers.insert().values(account_id="eve", code="eve", created_at=NOON)
    )
    connection.execute(
        schema.referrals.insert().values(account_id="ann", referrer="eve", created_at=NOON)
    )
    prices.set_price(connection, "bob", "n", Price(200_000, 900_000), now=NOON)


def books(connection: Connection) -> list[list[Any]]:
    return [
        list(map(tuple, connection.execute(select(table).order_by(*table.primary_key))))
        for table in TABLES
    ]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    directory, numbers = tmp_path_factory.mktemp("together"), itertools.count()
    return lambda: directory / f"{next(numbers)}.sqlite3"


@settings(max_examples=60, deadline=None)
@given(asked=st.lists(orders, max_size=14), cuts=st.sets(st.integers(0, 14)))
def test_together_orders_do_what_they_do_one_by_one(
    fresh: Callable[[], Path], asked: list[Order[Any]], cuts: set[int]
) -> None:
    edges = sorted({0, len(asked)} | {cut for cut in cuts if cut < len(asked)})
    groups = [asked[start:end] for start, end in itertools.pairwise(edges)]
    seen = []
    for carry in (one_by_one, carry_out):
        engine = fresh_engine(fresh())
        with engine.begin() as connection:
            furnish(connection)
            results = [r for group in groups for r in carry(connection, group)]
            seen.append((told(results), books(connection)))
            assert audit(connection) == []
        engine.dispose()
    assert seen[0] == seen[1]


async def test_what_piles_up_at_the_writer_shares_its_statements(place: Path | str) -> None:
    statements: list[str] = []
    hold = asyncio.Event()
    loop = asyncio.get_running_loop()

    async with opened(place) as database:
        await database.write(furnish)
        engine = database._storage.writer
        event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

        def wait(connection: Connection) -> None:
            del connection
            asyncio.run_coroutine_threadsafe(hold.wait(), loop).result(30)

        first = asyncio.ensure_future(database.write(wait))
        await asyncio.sleep(0)
        asked = [
            Reserve(reservation_id=f"r{n}", account_id="ann", model="m", amount=300, now=NOON)
            for n in range(20)
        ]
        waiting = [asyncio.ensure_future(database.write(order)) for order in asked]
        await asyncio.sleep(0)
        hold.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        await first
        # 1,000 are there: three times 300 can be reserved, and the others are told why not.
        assert results[:3] == [None] * 3
        assert all(isinstance(result, LedgerError) for result in results[3:])
        changing = [s for s in statements if s.startswith(("INSERT", "UPDATE"))]
        assert len(changing) < 8
        found = await database.read(audit)
        assert found == []


async def test_one_that_the_database_refuses_does_not_take_the_others_with_it(
    place: Path | str,
) -> None:
    hold = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with opened(place) as database:
        await database.write(furnish)

        def wait(connection: Connection) -> None:
            del connection
            asyncio.run_coroutine_threadsafe(hold.wait(), loop).result(30)

        first = asyncio.ensure_future(database.write(wait))
        await asyncio.sleep(0)
        no_model = cast("str", None)
        asked = [
            Reserve(reservation_id="r", account_id="ann", model="m", amount=10, now=NOON),
            Reserve(reservation_id="s", account_id="ann", model=no_model, amount=9, now=NOON),
            Reserve(reservation_id="t", account_id="ann", model="m", amount=8, now=NOON),
        ]
        waiting = [asyncio.ensure_future(database.write(order)) for order in asked]
        await asyncio.sleep(0)
        hold.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        await first
        assert [isinstance(result, Exception) for result in results] == [False, True, False]
        assert await database.read(audit) == []
        held = await database.read(lambda connection: balance_of(connection, "ann"))
        assert held.balance == 1000 - 18
