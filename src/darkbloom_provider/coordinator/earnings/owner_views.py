"""What the pages of one account show beyond the API's replies: its machines, models and spending.

As everywhere, amounts are micro-USD, times are UTC, and sums are of credited jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import ColumnElement, Connection, cast, func, select, tuple_

from darkbloom_provider.coordinator.earnings.views import (
    SeriesPoint,
    Sum,
    UsageRow,
    earned_sum,
    skipped,
    total,
)
from darkbloom_provider.coordinator.ledger.earning_totals import UNNAMED_MACHINE, EarningsFilter
from darkbloom_provider.coordinator.store.schema import (
    EPOCH,
    MICROSECOND,
    Instant,
    earning_totals,
    earnings,
    jobs,
)

UsageOrder = Literal["newest", "oldest", "dearest", "cheapest"]

_DAY = timedelta(days=1) // MICROSECOND


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One credited job, with the machine that did it."""

    id: int
    created_at: datetime
    model: str
    machine_id: str | None
    """The machine's lasting identity; None if it never gave one."""
    job_id: str
    prompt_tokens: int
    completion_tokens: int
    amount: int


@dataclass(frozen=True, slots=True)
class MachineEarnings:
    """What one machine of an account earned."""

    machine_id: str | None
    earned: Sum
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True)
class Spending:
    """What an account paid for, in all."""

    cost: int
    jobs: int
    tokens: int


def earned_since(
    connection: Connection, account_id: str, since: datetime, *, machine_id: str | None = None
) -> Sum:
    """What an account's machines, or one of them, earned since a time."""
    chosen = EarningsFilter(start=since, machine_id=machine_id)
    return earned_sum(connection, chosen, account_id=account_id)


def models_earned(connection: Connection, account_id: str) -> list[str]:
    """The models an account ever earned with, by name."""
    totals = earning_totals.c
    query = select(totals.model).where(totals.account_id == account_id).distinct()
    return sorted(connection.execute(query).scalars())


def history(
    connection: Connection,
    account_id: str,
    *,
    chosen: EarningsFilter,
    limit: int,
    offset: int = 0,
    after: HistoryRow | None = None,
) -> list[HistoryRow]:
    """Credited jobs, newest first; with `after`, those that come after it in that order."""
    chosen, offset = skipped(connection, account_id, chosen, offset)
    conditions: list[ColumnElement[bool]] = [
        earnings.c.account_id == account_id,
        *chosen.conditions(),
    ]
    if after is not None:
        place = tuple_(earnings.c.created_at, earnings.c.id)
        conditions.append(place < (after.created_at, after.id))
    query = (
        select(earnings)
        .where(*conditions)
        .order_by(earnings.c.created_at.desc(), earnings.c.id.desc())
        .limit(limit)
        .offset(offset)
    )
    return [
        HistoryRow(
            row.id,
            row.created_at,
            row.model,
            row.machine_id,
            row.job_id,
            row.prompt_tokens,
            row.completion_tokens,
            row.amount,
        )
        for row in connection.execute(query)
    ]


def earned_by_machine(connection: Connection, account_id: str) -> list[MachineEarnings]:
    """What each machine of an account earned, the best first."""
    totals = earning_totals.c
    amount = total(totals.amount)
    query = (
        select(
            totals.machine_id,
            amount.label("amount"),
            total(totals.jobs).label("jobs"),
            func.min(totals.first_at, type_=Instant).label("first_at"),
            func.max(totals.last_at, type_=Instant).label("last_at"),
        )
        .where(totals.account_id == account_id)
        .group_by(totals.machine_id)
        .order_by(amount.desc(), totals.machine_id)
    )
    return [
        MachineEarnings(
            None if row.machine_id == UNNAMED_MACHINE else row.machine_id,
            Sum(row.amount, row.jobs),
            row.first_at,
            row.last_at,
        )
        for row in connection.execute(query)
    ]


def spending(connection: Connection, account_id: str) -> Spending:
    """What an account paid for since it was opened."""
    query = select(
        total(jobs.c.cost), func.count(), total(jobs.c.prompt_tokens + jobs.c.completion_tokens)
    ).where(*_paid(account_id))
    cost, count, tokens = connection.execute(query).one()
    return Spending(cost, count, tokens)


def spending_series(
    connection: Connection, account_id: str, *, since: datetime
) -> list[SeriesPoint]:
    """What an account paid by day (UTC), oldest first. A day without jobs has no point."""
    instant = cast(jobs.c.closed_at, jobs.c.cost.type)
    start = (instant - instant % _DAY).label("start")
    query = (
        select(
            start,
            total(jobs.c.cost).label("amount"),
            func.count().label("jobs"),
            total(jobs.c.prompt_tokens).label("prompt"),
            total(jobs.c.completion_tokens).label("completion"),
        )
        .where(*_paid(account_id), jobs.c.closed_at >= since)
        .group_by(start)
        .order_by(start)
    )
    return [
        SeriesPoint(
            EPOCH + row.start * MICROSECOND, row.amount, row.jobs, row.prompt, row.completion
        )
        for row in connection.execute(query)
    ]


def usage_page(
    connection: Connection, account_id: str, *, order: UsageOrder, limit: int, offset: int
) -> Sequence[UsageRow]:
    """The requests an account paid for, in the order asked for."""
    ordering = {
        "newest": (jobs.c.closed_at.desc(), jobs.c.job_id.desc()),
        "oldest": (jobs.c.closed_at, jobs.c.job_id),
        "dearest": (jobs.c.cost.desc(), jobs.c.job_id),
        "cheapest": (jobs.c.cost, jobs.c.job_id),
    }[order]
    query = select(jobs).where(*_paid(account_id)).order_by(*ordering).limit(limit).offset(offset)
    return [
        UsageRow(
            row.job_id, row.model, row.prompt_tokens, row.completion_tokens, row.cost, row.closed_at
        )
        for row in connection.execute(query)
    ]


def _paid(account_id: str) -> list[ColumnElement[bool]]:
    return [jobs.c.account_id == account_id, jobs.c.job_id.is_not(None)]
