"""Running totals say what the earnings say, for every span, and the audit would notice if not."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Row, delete, select, update

from darkbloom_provider.coordinator.accounts.pseudonyms import pseudonym
from darkbloom_provider.coordinator.earnings import owner_views, views
from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.ledger.earning_totals import EarningsFilter, midnight
from darkbloom_provider.coordinator.store.schema import earning_totals, earnings
from support.books import LINKED, MACHINE, NOON, OWNER, Clock, Shop, add_up_again, fresh_engine

DAY = timedelta(days=1)
ACCOUNTS = (OWNER, "another-owner")
MODELS = ("model-1", "model-2")
KEYS = ("key-1", "key-2")
JOBS = 60


@pytest.fixture
def books(place: Path | str) -> Iterator[Engine]:
    """Jobs of a week, some of them at midnight, in the order of a shuffled clock."""
    engine = fresh_engine(place)
    chance = random.Random(5)
    with engine.begin() as connection:
        clock = Clock()
        shop = Shop(connection, clock=clock)
        shop.deposit(10_000_000)
        for number in range(JOBS):
            clock.now = NOON + chance.randrange(7) * DAY
            if number % 4:
                clock.now += chance.randrange(24 * 3600) * timedelta(seconds=1)
            else:
                clock.now = midnight(clock.now)
            serving = replace(
                LINKED,
                account_id=chance.choice(ACCOUNTS),
                provider_key=chance.choice(KEYS),
                machine_id=chance.choice((MACHINE, None)),
            )
            shop.reserve(f"r{number}", 10_000)
            shop.settle(f"r{number}", 0, 1_000 + number, serving=serving)
        # Both models, as only the rows and their totals are read here.
        half = earnings.c.id % 2 == 0
        connection.execute(update(earnings).where(half).values(model=MODELS[0]))
        connection.execute(update(earnings).where(~half).values(model=MODELS[1]))
        add_up_again(connection)
    yield engine
    engine.dispose()


def _filters() -> list[EarningsFilter]:
    chance = random.Random(7)
    instants = [NOON + chance.randrange(-24, 9 * 24) * timedelta(hours=1) for _ in range(12)]
    instants += [midnight(instant) for instant in instants[:6]]
    spans: list[tuple[datetime | None, datetime | None]] = [(None, None)]
    spans += [(one, None) for one in instants[:3]]
    spans += [(None, one) for one in instants[:3]]
    spans += [(min(pair), max(pair)) for pair in itertools.pairwise(instants)]
    return [
        EarningsFilter(start, end, model, key)
        for (start, end), model, key in zip(
            spans,
            itertools.cycle((None, MODELS[0], None)),
            itertools.cycle((None, None, KEYS[0], KEYS[1])),
            strict=False,
        )
    ]


def _chosen(rows: Sequence[Row[Any]], chosen: EarningsFilter) -> list[Row[Any]]:
    return [
        row
        for row in rows
        if (chosen.start is None or row.created_at >= chosen.start)
        and (chosen.end is None or row.created_at < chosen.end)
        and chosen.model in {None, row.model}
        and chosen.provider_key in {None, row.provider_key}
    ]


def _by(rows: Sequence[Row[Any]], key: Callable[[Row[Any]], Any]) -> dict[Any, list[Row[Any]]]:
    found = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return found


def _amount(rows: Sequence[Row[Any]]) -> int:
    return sum(row.amount for row in rows)


def test_every_span_has_the_sum_of_its_earnings(books: Engine) -> None:
    with books.begin() as connection:
        rows = connection.execute(select(earnings)).all()
        assert len(rows) == JOBS
        for chosen in _filters():
            wanted = _chosen(rows, chosen)
            own = [row for row in wanted if row.account_id == OWNER]
            assert views.earned_sum(connection, chosen) == views.Sum(_amount(wanted), len(wanted))
            page = views.account_earnings(connection, OWNER, limit=3, chosen=chosen)
            assert page.filtered == views.Sum(_amount(own), len(own))
            days = views.earnings_series(connection, OWNER, bucket="day", chosen=chosen)
            assert [(p.start, p.amount_micro_usd, p.jobs) for p in days] == [
                (day, _amount(some), len(some))
                for day, some in sorted(_by(own, lambda row: midnight(row.created_at)).items())
            ]


def test_pages_far_from_the_newest_row_hold_the_same_rows(
    books: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pages(connection: Connection, chosen: EarningsFilter) -> list[list[str]]:
        return [
            [
                row.job_id
                for row in owner_views.history(
                    connection, OWNER, chosen=chosen, limit=4, offset=offset
                )
            ]
            for offset in (0, 3, 11, 29, JOBS + 1)
        ]

    with books.begin() as connection:
        for chosen in _filters():
            monkeypatch.setattr(views, "SKIPPED_ROW_BY_ROW", 10**9)
            walked = pages(connection, chosen)
            monkeypatch.setattr(views, "SKIPPED_ROW_BY_ROW", 1)
            assert pages(connection, chosen) == walked


def test_leaderboard_and_network_count_every_window_exactly(books: Engine) -> None:
    with books.begin() as connection:
        rows = connection.execute(select(earnings)).all()
        for since in [chosen.start for chosen in _filters()]:
            wanted = _chosen(rows, EarningsFilter(start=since))
            owners = _by(wanted, lambda row: row.account_id)
            totals = views.network_totals(connection, since=since)
            assert totals == views.NetworkTotals(
                _amount(wanted),
                sum(row.prompt_tokens + row.completion_tokens for row in wanted),
                len(wanted),
                len(owners),
            )
            board = views.leaderboard(connection, metric="jobs", since=since, limit=9)
            assert {(line.pseudonym, line.jobs) for line in board} == {
                (pseudonym(owner), len(some)) for owner, some in owners.items()
            }


def test_machines_know_their_first_and_last_earning(books: Engine) -> None:
    with books.begin() as connection:
        rows = connection.execute(select(earnings).where(earnings.c.account_id == OWNER)).all()
        machines = _by(rows, lambda row: row.machine_id)
        for machine in owner_views.earned_by_machine(connection, OWNER):
            own = machines.pop(machine.machine_id)
            times = [row.created_at for row in own]
            assert machine.earned == views.Sum(_amount(own), len(own))
            assert (machine.first_at, machine.last_at) == (min(times), max(times))
        assert not machines


@pytest.mark.parametrize("change", ["more", "missing", "invented", "late"])
def test_the_audit_finds_a_total_that_is_not_its_earnings(books: Engine, change: str) -> None:
    totals = earning_totals.c
    with books.begin() as connection:
        # The models of the jobs themselves were not changed, and no rule compares them.
        assert audit(connection) == []
        one = connection.execute(select(earning_totals).limit(1)).one()
        match change:
            case "more":
                connection.execute(update(earning_totals).values(amount=totals.amount + 1))
            case "late":
                connection.execute(update(earning_totals).values(last_at=one.last_at + 30 * DAY))
            case "missing":
                connection.execute(delete(earning_totals).where(totals.day == one.day))
            case "invented":
                connection.execute(earning_totals.insert().values(**one._asdict() | {"model": "x"}))
        assert any(one.account_id in finding for finding in audit(connection))


def test_the_totals_kept_job_by_job_are_those_of_the_migration(books: Engine) -> None:
    with books.begin() as connection:
        shop = Shop(connection)
        shop.reserve("one more", 10_000)
        shop.settle("one more", 5, 50)
        kept = connection.execute(select(earning_totals)).all()
        add_up_again(connection)
        assert set(connection.execute(select(earning_totals)).all()) == set(kept)
