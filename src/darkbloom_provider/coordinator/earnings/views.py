"""Every view of money, in one place: command line, console and leaderboard read these queries.

Field names are those of the replies. Amounts are micro-USD. Lifetime figures are sums of credited
jobs and are never reduced by spending; balances are the ledger's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    cast,
    distinct,
    func,
    select,
)

from darkbloom_provider.coordinator.accounts.pseudonyms import pseudonym
from darkbloom_provider.coordinator.ledger.earning_totals import EVERYTHING, EarningsFilter, earned
from darkbloom_provider.coordinator.ledger.reservations import wallet_account
from darkbloom_provider.coordinator.store.schema import (
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
SKIPPED_ROW_BY_ROW: Final = 1_000

_HOUR: Final = timedelta(hours=1) // MICROSECOND


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


def total(column: ColumnElement[int]) -> ColumnElement[int]:
    """The sum of a column; 0 of nothing."""
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
    wanted = chosen or EVERYTHING
    lifetime = earned_sum(connection, EVERYTHING, account_id=account_id)
    own = earnings.c.account_id == account_id
    left, offset = skipped(connection, account_id, wanted, offset)
    return EarningsPage(
        rows=_newest(connection, own, limit=limit, offset=offset, chosen=left),
        lifetime=lifetime,
        filtered=lifetime
        if wanted == EVERYTHING
        else earned_sum(connection, wanted, account_id=account_id),
    )


def node_earnings(connection: Connection, provider_key: str, *, limit: int) -> EarningsPage:
    """What was earned under one provider key, newest first."""
    wanted = EarningsFilter(provider_key=provider_key)
    found = earned_sum(connection, wanted)
    own = earnings.c.provider_key == provider_key
    return EarningsPage(_newest(connection, own, limit=limit, chosen=EVERYTHING), found, found)


def earned_sum(
    connection: Connection, chosen: EarningsFilter, *, account_id: str | None = None
) -> Sum:
    """What was earned in all, by one account or by everybody."""
    found = earned(chosen, account_id=account_id).c
    micro_usd, count = connection.execute(select(total(found.amount), total(found.jobs))).one()
    return Sum(micro_usd, count)


def skipped(
    connection: Connection, account_id: str, chosen: EarningsFilter, offset: int
) -> tuple[EarningsFilter, int]:
    """What is left of a filter, and how many rows to skip in it, after whole days were skipped.

    Nobody walks over a year's rows to reach its first: the totals know how many each day has.
    """
    if offset < SKIPPED_ROW_BY_ROW:
        return chosen, offset
    end = chosen.end
    for day in reversed(earnings_series(connection, account_id, bucket="day", chosen=chosen)):
        if offset < day.jobs:
            break
        end, offset = day.start, offset - day.jobs
    return replace(chosen, end=end), offset


def _newest(
    connection: Connection,
    own: ColumnElement[bool],
    *,
    limit: int,
    offset: int = 0,
    chosen: EarningsFilter,
) -> list[EarningRow]:
    if limit == 0:
        return []
    rows = connection.execute(
        select(earnings)
        .where(own, *chosen.conditions())
        .order_by(earnings.c.created_at.desc(), earnings.c.id.desc())
        .limit(limit)
        .offset(offset)
    )
    return [_earning(row) for row in rows]


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
    if bucket == "day":
        found = earned(chosen, account_id=account_id).c
        start, count = cast(found.day, found.amount.type).label("start"), total(found.jobs)
        conditions: list[ColumnElement[bool]] = []
    else:
        found = earnings.c
        instant = cast(found.created_at, found.amount.type)
        start, count = (instant - instant % _HOUR).label("start"), func.count()
        conditions = [found.account_id == account_id, *chosen.conditions()]
    query = (
        select(
            start,
            total(found.amount).label("amount"),
            count.label("jobs"),
            total(found.prompt_tokens).label("prompt"),
            total(found.completion_tokens).label("completion"),
        )
        .where(*conditions)
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
    micro_usd, count = connection.execute(
        select(total(wallet_payouts.c.amount), func.count()).where(
            wallet_payouts.c.address == wallet
        )
    ).one()
    lifetime = Sum(micro_usd, count)
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
    found = earned(EarningsFilter(start=since)).c
    amount = total(found.amount).label("earnings")
    tokens = total(found.prompt_tokens + found.completion_tokens).label("tokens")
    count = total(found.jobs).label("jobs")
    order = {"earnings": amount, "tokens": tokens, "jobs": count}[metric]
    query = (
        select(found.account_id, amount, tokens, count)
        .group_by(found.account_id)
        .order_by(order.desc(), found.account_id)
        .limit(limit)
    )
    return [
        LeaderboardRow(rank, pseudonym(row.account_id), row.earnings, row.tokens, row.jobs)
        for rank, row in enumerate(connection.execute(query), start=1)
    ]


def network_totals(connection: Connection, *, since: datetime | None) -> NetworkTotals:
    """What all linked machines together earned since a time."""
    found = earned(EarningsFilter(start=since)).c
    query = select(
        total(found.amount),
        total(found.prompt_tokens + found.completion_tokens),
        total(found.jobs),
        func.count(distinct(found.account_id)),
    )
    amount, tokens, count, owners = connection.execute(query).one()
    return NetworkTotals(amount, tokens, count, owners)
