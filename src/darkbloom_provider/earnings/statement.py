"""What the owner has earned, as one frozen value from exactly one source.

Sources are never mixed: an account's figures, those of this machine's provider keys, those of a
wallet address, and the local journal's estimates all count different things.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from darkbloom_provider.account.replies import (
    AccountEarnings,
    EarningRow,
    NodeEarnings,
    WalletEarnings,
)
from darkbloom_provider.earnings.journal import JobRecord, JournalTotals

LOGIN_HINT = (
    "These are local estimates; run `darkbloom login` to link this machine, so that its earnings "
    "can be withdrawn."
)
OFFLINE_HINT = (
    "Run `darkbloom earnings` again when the coordinator answers: its figures are the ones that "
    "are paid."
)
NODE_NOTE = (
    "This coordinator shows a machine no balance: these are the lifetime figures of this machine's "
    "provider keys. For the account's, set DARKBLOOM_API_KEY to a key made in the console."
)

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class Source(enum.StrEnum):
    """Where a statement's figures come from."""

    ACCOUNT = "account"
    NODE = "node"
    WALLET = "wallet"
    JOURNAL = "journal"
    """Estimates made on this machine."""


@dataclass(frozen=True, slots=True)
class CoordinatorLine:
    """Whether the coordinator answers, and how many providers it says are connected."""

    url: str
    online: bool
    providers: int | None = None


@dataclass(frozen=True, slots=True)
class Payout:
    """What one job paid (or, from the journal, should pay), in micro-USD."""

    amount_micro_usd: int
    model: str
    job_id: str
    at: datetime | None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Statement:
    """The owner's money. Amounts are micro-USD; None means not known, which is not zero.

    Attributes:
        total_micro_usd: Lifetime earnings; spending and withdrawals do not lower it.
        jobs: Credited jobs (from the journal: completed ones).
        payouts: The newest, newest first.
        notes: Lines for the owner, beyond the figures.
    """

    source: Source
    coordinator: CoordinatorLine
    balance_micro_usd: int | None
    total_micro_usd: int
    jobs: int
    payouts: tuple[Payout, ...]
    withdrawable_micro_usd: int | None = None
    notes: tuple[str, ...] = ()


def from_account(reply: AccountEarnings, coordinator: CoordinatorLine, limit: int) -> Statement:
    """The statement of a whole account: all its machines, its balance, its deposits."""
    return Statement(
        source=Source.ACCOUNT,
        coordinator=coordinator,
        balance_micro_usd=reply.available_balance_micro_usd,
        withdrawable_micro_usd=reply.withdrawable_balance_micro_usd,
        total_micro_usd=reply.total_micro_usd,
        jobs=reply.count,
        payouts=_newest(map(_earned, reply.earnings), limit),
    )


def from_nodes(
    replies: Sequence[NodeEarnings],
    coordinator: CoordinatorLine,
    limit: int,
    notes: tuple[str, ...] = (NODE_NOTE,),
) -> Statement:
    """The statement of this machine: the sum over the keys its provider has used. No balance."""
    return Statement(
        source=Source.NODE,
        coordinator=coordinator,
        balance_micro_usd=None,
        total_micro_usd=sum(reply.total_micro_usd for reply in replies),
        jobs=sum(reply.count for reply in replies),
        payouts=_newest((_earned(row) for reply in replies for row in reply.earnings), limit),
        notes=notes,
    )


def from_wallet(reply: WalletEarnings, coordinator: CoordinatorLine, limit: int) -> Statement:
    """The statement of a wallet address: what this machine earned while it was not linked."""
    payouts = (
        Payout(row.amount_micro_usd, row.model, row.job_id, row.timestamp) for row in reply.payouts
    )
    address = reply.wallet_address
    note = f"Earned before this machine was linked, and kept under its wallet address {address}."
    return Statement(
        source=Source.WALLET,
        coordinator=coordinator,
        balance_micro_usd=reply.balance_micro_usd,
        total_micro_usd=reply.total_earned_micro_usd,
        jobs=reply.total_jobs,
        payouts=_newest(payouts, limit),
        notes=(note,),
    )


def from_journal(
    totals: JournalTotals,
    recent: Iterable[JobRecord],
    coordinator: CoordinatorLine,
    limit: int,
    *,
    linked: bool,
) -> Statement:
    """The local estimates.

    An account's balance is the coordinator's to say. A machine without an account has spent and
    withdrawn nothing: its balance is what it has earned since it was last linked.
    """
    payouts = (
        Payout(
            job.estimate_micro_usd,
            job.model,
            job.job_id,
            job.finished_at,
            job.prompt_tokens,
            job.completion_tokens,
        )
        for job in recent
    )
    notes = [] if coordinator.online else [OFFLINE_HINT]
    if not linked:
        notes.append(LOGIN_HINT)
    elif coordinator.online:
        notes.append("These are local estimates: this coordinator shows nothing for this machine.")
    return Statement(
        source=Source.JOURNAL,
        coordinator=coordinator,
        balance_micro_usd=None if linked else totals.unclaimed_micro_usd,
        total_micro_usd=totals.micro_usd,
        jobs=totals.jobs,
        payouts=_newest(payouts, limit),
        notes=tuple(notes),
    )


def with_note(statement: Statement, note: str) -> Statement:
    """The same statement with one line more for the owner."""
    return replace(statement, notes=(*statement.notes, note))


def _earned(row: EarningRow) -> Payout:
    return Payout(
        row.amount_micro_usd,
        row.model,
        row.job_id,
        row.created_at,
        row.prompt_tokens,
        row.completion_tokens,
    )


def _newest(payouts: Iterable[Payout], limit: int) -> tuple[Payout, ...]:
    # Coordinators list some views oldest first. The sort is stable, so equal times keep the order.
    newest = sorted(payouts, key=lambda payout: payout.at or _LONG_AGO, reverse=True)
    return tuple(newest[: max(limit, 0)])
