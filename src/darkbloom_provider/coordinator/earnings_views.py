"""Every view of money, in one place: command line, console and leaderboard read these queries.

Field names are those of the replies. Amounts are micro-USD. Lifetime figures are sums of credited
jobs and are never reduced by spending; balances are the ledger's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Table,
    cast,
    distinct,
    func,
    select,
)

from darkbloom_provider.coordinator.ledger import wallet_account
from darkbloom_provider.coordinator.pseudonyms import pseudonym
from darkbloom_provider.coordinator.schema import (
    EPOCH,
    MICROSECOND,
    accounts,
    earnings,
    entries,
    jobs,
    transfers,
    wallet_payouts,
)

Metric = Literal["earnings", "tokens", "jobs"]
Bucket = Literal["hour", "day"]

MAX_LEDGER_ROWS: Final = 500
MAX_USAGE_ROWS: Final = 100
MAX_PAYOUT_ROWS: Final = 10_000
MAX_POINTS: Final = 10_000

_BUCKETS: Final[dict[Bucket, timedelta]] = {
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
}


@dataclass(frozen=True, slots=True)
class EarningRow:
    """One credited job of a linked machine."""

    id: int
    account_id: str
    provider_id: str
    provider_key: str
    job_id: str
    model: str
    amount_micro_usd: int
    prompt_tokens: int
    completion_tokens: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Sum:
    """How much and from how many jobs."""

    micro_usd: int
    count: int


@dataclass(frozen=True, slots=True)
class EarningsFilter:
    """Which earnings a reader wants: a half-open time span, a model, one machine."""

    start: datetime | None = None
    end: datetime | None = None
    model: str | None = None
    provider_key: str | None = None
    machine_id: str | None = None
    """The machine's lasting identity; its keys change with every start."""

    def conditions(self) -> list[ColumnElement[bool]]:
        """The filter as conditions that must all hold."""
        found = []
        if self.start is not None:
            found.append(earnings.c.created_at >= self.start)
        if self.end is not None:
            found.append(earnings.c.created_at < self.end)
        if self.model is not None:
            found.append(earnings.c.model == self.model)
        if self.provider_key is not None:
            found.append(earnings.c.provider_key == self.provider_key)
        if self.machine_id is not None:
            found.append(earnings.c.machine_id == self.machine_id)
        return found


@dataclass(frozen=True, slots=True)
class EarningsPage:
    """Some earning rows, newest first, with the figures for all of them."""

    rows: Sequence[EarningRow]
    lifetime: Sum
    filtered: Sum


@dataclass(frozen=True, slots=True)
class WalletPayoutRow:
    """One credited job of a machine that was not linked when it worked."""

    id: int
    provider_address: str
    amount_micro_usd: int
    model: str
    job_id: str
    timestamp: datetime
    settled: bool


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One entry of the public ledger."""

    id: int
    account_id: str
    type: str
    amount_micro_usd: int
    balance_after: int
    reference: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class WalletEarnings:
    """What a wallet address earned. Payouts oldest first, ledger newest first."""

    address: str
    lifetime: Sum
    payouts: Sequence[WalletPayoutRow]
    ledger: Sequence[LedgerRow]


@dataclass(frozen=True, slots=True)
class LeaderboardRow:
    """One owner's place among all owners."""

    rank: int
    pseudonym: str
    earnings_micro_usd: int
    tokens: int
    jobs: int


@dataclass(frozen=True, slots=True)
class NetworkTotals:
    """What all linked machines earned in a window."""

    earnings_micro_usd: int
    tokens: int
    jobs: int
    active_accounts: int


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One request that a consumer paid for."""

    job_id: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    cost_micro_usd: int
    timestamp: datetime


@dataclass(frozen=True, slots=True)
class SeriesPoint:
    """What was earned from `start` for one hour or day. A span without jobs has no point."""

    start: datetime
    amount_micro_usd: int
    jobs: int
    prompt_tokens: int
    completion_tokens: int


def _sum(column: ColumnElement[int]) -> ColumnElement[int]:
    # Cast: PostgreSQL sums integers into NUMERIC.
    return cast(func.coalesce(func.sum(column), 0), earnings.c.amount.type)


def account_earnings(
    connection: Connection,
    account_id: str,
    *,
    limit: int,
    offset: int = 0,
    chosen: EarningsFilter | None = None,
) -> EarningsPage:
    """What an account's machines earned, newest first."""
    own = earnings.c.account_id == account_id
    return _page(connection, own, limit=limit, offset=offset, chosen=chosen or EarningsFilter())


def node_earnings(connection: Connection, provider_key: str, *, limit: int) -> EarningsPage:
    """What was earned under one provider key, newest first."""
    own = earnings.c.provider_key == provider_key
    return _page(connection, own, limit=limit, offset=0, chosen=EarningsFilter())


def _page(
    connection: Connection,
    own: ColumnElement[bool],
    *,
    limit: int,
    offset: int,
    chosen: EarningsFilter,
) -> EarningsPage:
    conditions = chosen.conditions()
    lifetime = _totals(connection, earnings, [own])
    filtered = _totals(connection, earnings, [own, *conditions]) if conditions else lifetime
    rows = connection.execute(
        select(earnings)
        .where(own, *conditions)
        .order_by(earnings.c.created_at.desc(), earnings.c.id.desc())
        .limit(limit)
        .offset(offset)
    )
    return EarningsPage([_earning(row) for row in rows], lifetime, filtered)


def _totals(connection: Connection, table: Table, conditions: list[ColumnElement[bool]]) -> Sum:
    query = select(_sum(table.c.amount), func.count()).select_from(table).where(*conditions)
    micro_usd, count = connection.execute(query).one()
    return Sum(micro_usd, count)


def _earning(row: Row[Any]) -> EarningRow:
    return EarningRow(
        id=row.id,
        account_id=row.account_id,
        provider_id=row.provider_id,
        provider_key=row.provider_key,
        job_id=row.job_id,
        model=row.model,
        amount_micro_usd=row.amount,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        created_at=row.created_at,
    )


def earnings_series(
    connection: Connection, account_id: str, *, bucket: Bucket, chosen: EarningsFilter
) -> list[SeriesPoint]:
    """An account's earnings by hour or day (UTC), oldest first, at most the newest `MAX_POINTS`."""
    width = _BUCKETS[bucket] // MICROSECOND
    instant = cast(earnings.c.created_at, earnings.c.amount.type)
    start = (instant - instant % width).label("start")
    query = (
        select(
            start,
            _sum(earnings.c.amount).label("amount"),
            func.count().label("jobs"),
            _sum(earnings.c.prompt_tokens).label("prompt"),
            _sum(earnings.c.completion_tokens).label("completion"),
        )
        .where(earnings.c.account_id == account_id, *chosen.conditions())
        .group_by(start)
        .order_by(start.desc())
        .limit(MAX_POINTS)
    )
    points = [
        SeriesPoint(
            EPOCH + row.start * MICROSECOND, row.amount, row.jobs, row.prompt, row.completion
        )
        for row in connection.execute(query)
    ]
    return points[::-1]


def wallet_earnings(connection: Connection, address: str) -> WalletEarnings:
    """What a wallet address earned while its machine was not linked.

    Only addresses shaped like one are looked up: nobody reads a person's ledger here.
    """
    wallet = wallet_account(address)
    if wallet is None:
        return WalletEarnings(address, Sum(0, 0), [], [])
    newest = connection.execute(
        select(wallet_payouts)
        .where(wallet_payouts.c.address == wallet)
        .order_by(wallet_payouts.c.id.desc())
        .limit(MAX_PAYOUT_ROWS)
    ).all()
    payouts = [
        WalletPayoutRow(
            row.id, row.address, row.amount, row.model, row.job_id, row.created_at, row.settled
        )
        for row in reversed(newest)
    ]
    lifetime = _totals(connection, wallet_payouts, [wallet_payouts.c.address == wallet])
    return WalletEarnings(wallet, lifetime, payouts, ledger_rows(connection, wallet))


def ledger_rows(
    connection: Connection, account_id: str, *, limit: int = MAX_LEDGER_ROWS
) -> list[LedgerRow]:
    """An account's ledger, newest first. Internal accounts have no public ledger."""
    query = (
        select(entries, transfers.c.type, transfers.c.reference, transfers.c.created_at)
        .join(transfers, transfers.c.id == entries.c.transfer_id)
        .join(accounts, accounts.c.id == entries.c.account_id)
        .where(entries.c.account_id == account_id, accounts.c.kind != "internal")
        .order_by(entries.c.id.desc())
        .limit(limit)
    )
    return [
        LedgerRow(
            row.id,
            row.account_id,
            row.type,
            row.amount,
            row.balance_after,
            row.reference,
            row.created_at,
        )
        for row in connection.execute(query)
    ]


def usage(connection: Connection, account_id: str) -> list[UsageRow]:
    """The newest requests an account paid for, oldest first."""
    newest = connection.execute(
        select(jobs)
        .where(jobs.c.account_id == account_id, jobs.c.job_id.is_not(None))
        .order_by(jobs.c.closed_at.desc(), jobs.c.job_id.desc())
        .limit(MAX_USAGE_ROWS)
    ).all()
    return [
        UsageRow(
            row.job_id, row.model, row.prompt_tokens, row.completion_tokens, row.cost, row.closed_at
        )
        for row in reversed(newest)
    ]


def leaderboard(
    connection: Connection, *, metric: Metric, since: datetime | None, limit: int
) -> list[LeaderboardRow]:
    """Owners by what their machines earned since a time; ties by account id."""
    amount = _sum(earnings.c.amount).label("earnings")
    tokens = _sum(earnings.c.prompt_tokens + earnings.c.completion_tokens).label("tokens")
    count = func.count().label("jobs")
    order = {"earnings": amount, "tokens": tokens, "jobs": count}[metric]
    query = (
        select(earnings.c.account_id, amount, tokens, count)
        .where(*_since(since))
        .group_by(earnings.c.account_id)
        .order_by(order.desc(), earnings.c.account_id)
        .limit(limit)
    )
    return [
        LeaderboardRow(rank, pseudonym(row.account_id), row.earnings, row.tokens, row.jobs)
        for rank, row in enumerate(connection.execute(query), start=1)
    ]


def network_totals(connection: Connection, *, since: datetime | None) -> NetworkTotals:
    """What all linked machines together earned since a time."""
    query = select(
        _sum(earnings.c.amount),
        _sum(earnings.c.prompt_tokens + earnings.c.completion_tokens),
        func.count(),
        func.count(distinct(earnings.c.account_id)),
    ).where(*_since(since))
    amount, tokens, count, owners = connection.execute(query).one()
    return NetworkTotals(amount, tokens, count, owners)


def _since(since: datetime | None) -> list[ColumnElement[bool]]:
    return [] if since is None else [earnings.c.created_at >= since]
