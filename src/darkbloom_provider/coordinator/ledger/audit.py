"""Proves that the books are right. Every rule is a query or two; no finding means it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Table, and_, case, cast, func, or_, select

from darkbloom_provider.coordinator.accounts import referrals
from darkbloom_provider.coordinator.deposits.ledger import ENTRY_TYPE
from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.ledger.earning_totals import DAY, UNNAMED_MACHINE
from darkbloom_provider.coordinator.rails.rail import MICRO_PER_CENT
from darkbloom_provider.coordinator.store.schema import (
    EPOCH,
    MICROSECOND,
    accounts,
    deposits,
    earning_totals,
    earnings,
    entries,
    jobs,
    transfers,
    wallet_payouts,
    withdrawals,
)
from darkbloom_provider.protocol import money
from darkbloom_provider.protocol.money import Price


@dataclass(frozen=True, slots=True)
class Verdict:
    """One rule, over how many things it was checked, and each that breaks it."""

    rule: str
    subject: str
    checked: int
    findings: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Rule:
    promise: str
    subject: Table
    findings: Callable[[Connection], Iterator[str]]


def report(connection: Connection) -> list[Verdict]:
    """Check every rule, on one snapshot."""
    return [
        Verdict(
            rule.promise,
            rule.subject.name.replace("_", " "),
            connection.execute(select(func.count()).select_from(rule.subject)).scalar_one(),
            list(rule.findings(connection)),
        )
        for rule in _RULES
    ]


def audit(connection: Connection) -> list[str]:
    """What is wrong with the books, one sentence each, naming accounts and jobs."""
    return [finding for verdict in report(connection) for finding in verdict.findings]


def _total(column: ColumnElement[int]) -> ColumnElement[int]:
    return func.coalesce(func.sum(column), 0)


def _sum_is_zero(connection: Connection) -> Iterator[str]:
    total = connection.execute(select(_total(accounts.c.balance))).scalar_one()
    if total != 0:
        yield f"all balances together are {total}, not zero"


def _transfers_balance(connection: Connection) -> Iterator[str]:
    query = (
        select(transfers.c.id)
        .outerjoin(entries, entries.c.transfer_id == transfers.c.id)
        .group_by(transfers.c.id)
        .having(or_(func.count(entries.c.id) != 2, _total(entries.c.amount) != 0))  # noqa: PLR2004 - double entry
    )
    for transfer in connection.execute(query).scalars():
        yield f"transfer {transfer} is not two opposite entries"


def _balances_follow_from_entries(connection: Connection) -> Iterator[str]:
    query = (
        select(accounts.c.id)
        .outerjoin(entries, entries.c.account_id == accounts.c.id)
        .group_by(accounts.c.id, accounts.c.balance, accounts.c.withdrawable)
        .having(
            or_(
                _total(entries.c.amount) != accounts.c.balance,
                _total(entries.c.withdrawable) != accounts.c.withdrawable,
            )
        )
    )
    for account in connection.execute(query).scalars():
        yield f"account {account} does not hold the sum of its entries"
    last = select(func.max(entries.c.id)).group_by(entries.c.account_id)
    stale = (
        select(accounts.c.id)
        .join(entries, entries.c.account_id == accounts.c.id)
        .where(entries.c.id.in_(last), entries.c.balance_after != accounts.c.balance)
    )
    for account in connection.execute(stale).scalars():
        yield f"account {account} does not hold what its last entry says"


def _withdrawable_is_within_bounds(connection: Connection) -> Iterator[str]:
    query = select(accounts.c.id).where(
        accounts.c.kind != "internal",
        or_(accounts.c.withdrawable < 0, accounts.c.withdrawable > accounts.c.balance),
    )
    for account in connection.execute(query).scalars():
        yield f"account {account} could pay out more than it holds, or less than nothing"


def _reservations_are_held(connection: Connection) -> Iterator[str]:
    open_jobs = connection.execute(
        select(_total(jobs.c.reserved)).where(jobs.c.state == "reserved")
    ).scalar_one()
    held = books.balance_of(connection, books.RESERVATIONS).balance
    if open_jobs != held:
        yield f"open reservations are {open_jobs}, but {held} is set aside"


def _jobs_cost_their_tokens(connection: Connection) -> Iterator[str]:
    closed = select(jobs).where(jobs.c.job_id.is_not(None))
    for job in connection.execute(closed):
        price = Price(job.input_price, job.output_price)
        asked = money.cost(job.prompt_tokens, job.completion_tokens, price, minimum=job.minimum)
        if job.cost != min(asked, job.reserved):
            yield f"job {job.job_id} cost {job.cost}, its tokens {asked}"


def _jobs_moved_what_they_say(connection: Connection) -> Iterator[str]:
    def moved(entry_type: str) -> ColumnElement[int]:
        credit = and_(transfers.c.type == entry_type, entries.c.amount > 0)
        return _total(case((credit, entries.c.amount), else_=0))

    query = (
        select(jobs.c.job_id)
        .outerjoin(transfers, transfers.c.reference == jobs.c.job_id)
        .outerjoin(entries, entries.c.transfer_id == transfers.c.id)
        .where(jobs.c.job_id.is_not(None))
        .group_by(jobs.c.job_id, jobs.c.payout, jobs.c.fee, jobs.c.reserved, jobs.c.cost)
        .having(
            or_(
                moved("payout") != jobs.c.payout,
                moved("platform_fee") + moved(referrals.REWARD_TYPE) != jobs.c.fee,
                moved("refund") != jobs.c.reserved - jobs.c.cost,
            )
        )
    )
    for job in connection.execute(query).scalars():
        yield f"job {job} did not move what it says"


def _jobs_are_credited_once(connection: Connection) -> Iterator[str]:
    for table, label in ((earnings, "earning"), (wallet_payouts, "wallet payout")):
        wrong = (
            select(table.c.job_id)
            .outerjoin(jobs, jobs.c.job_id == table.c.job_id)
            .where(or_(jobs.c.job_id.is_(None), jobs.c.payout != table.c.amount))
        )
        for job in connection.execute(wrong).scalars():
            yield f"the {label} of job {job} is not what the job paid"
    credited = _credits(connection)
    paid = select(jobs.c.job_id).where(jobs.c.beneficiary.is_not(None))
    for job in connection.execute(paid).scalars():
        if credited.get(job) != 1:
            yield f"job {job} was credited {credited.get(job, 0)} times"


def _credits(connection: Connection) -> dict[str, Any]:
    """How many records, other than settled ones, each job has."""
    unsettled = select(wallet_payouts.c.job_id).where(wallet_payouts.c.settled.is_(False))
    rows = select(earnings.c.job_id).union_all(unsettled).subquery()
    query = select(rows.c.job_id, func.count().label("n")).group_by(rows.c.job_id)
    return {row.job_id: row.n for row in connection.execute(query)}


def _wallets_hold_what_is_unsettled(connection: Connection) -> Iterator[str]:
    unsettled = case((wallet_payouts.c.settled.is_(False), wallet_payouts.c.amount), else_=0)
    query = (
        select(accounts.c.id)
        .outerjoin(wallet_payouts, wallet_payouts.c.address == accounts.c.id)
        .where(accounts.c.kind == "wallet")
        .group_by(accounts.c.id, accounts.c.balance)
        .having(_total(unsettled) != accounts.c.balance)
    )
    for account in connection.execute(query).scalars():
        yield f"wallet {account} does not hold its unsettled payouts"


def _totals_are_sums_of_earnings(connection: Connection) -> Iterator[str]:
    rows, totals = earnings.c, earning_totals.c
    instant = cast(rows.created_at, rows.amount.type)
    day = instant - instant % (DAY // MICROSECOND)
    machine = func.coalesce(rows.machine_id, UNNAMED_MACHINE)
    key = (rows.account_id, day, rows.model, rows.provider_key, machine)
    figures = (
        _total(rows.amount),
        func.count(),
        _total(rows.prompt_tokens),
        _total(rows.completion_tokens),
        cast(func.min(rows.created_at), rows.amount.type),
        cast(func.max(rows.created_at), rows.amount.type),
    )
    kept = select(
        totals.account_id,
        cast(totals.day, totals.amount.type),
        totals.model,
        totals.provider_key,
        totals.machine_id,
        totals.amount,
        totals.jobs,
        totals.prompt_tokens,
        totals.completion_tokens,
        cast(totals.first_at, totals.amount.type),
        cast(totals.last_at, totals.amount.type),
    )
    added_up = {tuple(row) for row in connection.execute(select(*key, *figures).group_by(*key))}
    wrong = {tuple(row) for row in connection.execute(kept)} ^ added_up
    for account, start in sorted({row[:2] for row in wrong}):
        yield f"the total of account {account} on {EPOCH + start * MICROSECOND:%Y-%m-%d} is wrong"


def _withdrawals_are_held(connection: Connection) -> Iterator[str]:
    cents = withdrawals.c.net - withdrawals.c.net % MICRO_PER_CENT
    for account, amount, states in (
        (books.WITHDRAWALS, withdrawals.c.amount, ("pending", "transferred")),
        (books.PAID_OUT, cents, ("paid",)),
    ):
        listed = connection.execute(
            select(_total(amount)).where(withdrawals.c.status.in_(states))
        ).scalar_one()
        held = books.balance_of(connection, account).balance
        if listed != held:
            yield f"withdrawals that are {' or '.join(states)} are {listed}, {account} holds {held}"


def _withdrawals_moved_what_they_say(connection: Connection) -> Iterator[str]:
    def moved(entry_type: str) -> ColumnElement[int]:
        on_owner = and_(
            transfers.c.type == entry_type, entries.c.account_id == withdrawals.c.account_id
        )
        return _total(case((on_owner, entries.c.amount), else_=0))

    query = (
        select(withdrawals.c.id)
        .outerjoin(transfers, transfers.c.reference == "stripe_withdraw:" + withdrawals.c.id)
        .outerjoin(entries, entries.c.transfer_id == transfers.c.id)
        .group_by(withdrawals.c.id, withdrawals.c.amount, withdrawals.c.refunded)
        .having(
            or_(
                moved("stripe_payout") != -withdrawals.c.amount,
                moved("refund")
                != case((withdrawals.c.refunded.is_(True), withdrawals.c.amount), else_=0),
            )
        )
    )
    for withdrawal in connection.execute(query).scalars():
        yield f"withdrawal {withdrawal} did not move what it says"


def _deposits_were_credited_once(connection: Connection) -> Iterator[str]:
    booked = and_(transfers.c.type == ENTRY_TYPE, entries.c.account_id == deposits.c.account_id)
    moved = _total(case((booked, entries.c.amount), else_=0))
    query = (
        select(deposits.c.id)
        .outerjoin(transfers, transfers.c.reference == "stripe:" + deposits.c.external_id)
        .outerjoin(entries, entries.c.transfer_id == transfers.c.id)
        .group_by(deposits.c.id, deposits.c.credited)
        .having(moved != deposits.c.credited)
    )
    for deposit in connection.execute(query).scalars():
        yield f"deposit {deposit} was not credited with what was paid"
    sold = connection.execute(select(_total(deposits.c.credited))).scalar_one()
    credited = connection.execute(
        select(_total(entries.c.amount))
        .join(transfers, transfers.c.id == entries.c.transfer_id)
        .where(transfers.c.type == ENTRY_TYPE, entries.c.amount > 0)
    ).scalar_one()
    if sold != credited:
        yield f"deposits come to {sold}, but {credited} was credited for them"


_RULES: Final = (
    _Rule("all balances together are zero", accounts, _sum_is_zero),
    _Rule("each transfer is two opposite entries", transfers, _transfers_balance),
    _Rule("each balance is the sum of its entries", entries, _balances_follow_from_entries),
    _Rule("nobody can withdraw more than they hold", accounts, _withdrawable_is_within_bounds),
    _Rule("open reservations are set aside", jobs, _reservations_are_held),
    _Rule("each job cost its tokens", jobs, _jobs_cost_their_tokens),
    _Rule("each job moved what it says", jobs, _jobs_moved_what_they_say),
    _Rule("each job was credited once", earnings, _jobs_are_credited_once),
    _Rule("each total is the sum of its earnings", earning_totals, _totals_are_sums_of_earnings),
    _Rule("wallets hold what is unsettled", wallet_payouts, _wallets_hold_what_is_unsettled),
    _Rule("each deposit was credited once", deposits, _deposits_were_credited_once),
    _Rule("withdrawals are on their way or paid", withdrawals, _withdrawals_are_held),
    _Rule("each withdrawal moved what it says", withdrawals, _withdrawals_moved_what_they_say),
)
