"""Withdrawals in the books: asked for, on their way, paid, or failed and credited back.

Every function works inside the caller's transaction. A withdrawal only moves forward, whatever
order news about it arrives in: pending → transferred → paid, and failed is the end from any of
them (a bank may send money back days after it was reported as paid). The owner's account is
debited once, with the gross amount, and credited back at most once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, insert, select, update

from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.ledger.books import LedgerError, Movement
from darkbloom_provider.coordinator.payouts.rail import Method, Order, Receipt
from darkbloom_provider.coordinator.payouts.receivers import PayoutAccount
from darkbloom_provider.coordinator.rails.rail import MICRO_PER_CENT
from darkbloom_provider.coordinator.store.schema import withdrawals
from darkbloom_provider.protocol.money import format_usd

MINIMUM: Final = 1_000_000
"""The least that can be withdrawn, micro-USD."""
INSTANT_FEE_BPS: Final = 150
INSTANT_FEE_MINIMUM: Final = 500_000
LEASE: Final = timedelta(minutes=1)
"""Whoever takes a step has this long before another one may."""

Status = Literal["pending", "transferred", "paid", "failed"]
_OPEN: Final = ("pending", "transferred")


class InsufficientWithdrawableError(LedgerError):
    """The withdrawable part of the balance is smaller. Nothing has moved."""


class AmountError(LedgerError):
    """An amount that cannot be withdrawn. Nothing has moved."""


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """One withdrawal as it stands. Amounts in micro-USD; `amount` = `fee` + `net`."""

    id: str
    account_id: str
    rail: str
    external_id: str
    destination_type: str
    destination_last4: str
    amount: int
    fee: int
    net: int
    method: Method
    status: Status
    transfer_id: str | None
    payout_id: str | None
    arrival_at: datetime | None
    failure_reason: str
    refunded: bool
    reversal: Literal["", "due", "done"]
    tries: int
    """Calls of the rail, since the last one that was answered, whose outcome is unknown."""
    payout_attempt: int
    next_step_at: datetime | None
    created_at: datetime
    updated_at: datetime

    @property
    def cents(self) -> int:
        """What is sent. The fraction of a cent below it stays with the platform."""
        return self.net // MICRO_PER_CENT

    @property
    def order(self) -> Order:
        """What the rail needs to know."""
        return Order(
            withdrawal_id=self.id,
            external_id=self.external_id,
            destination_last4=self.destination_last4,
            method=self.method,
            cents=self.cents,
            created_at=self.created_at,
            attempt=self.payout_attempt,
        )

    @property
    def receipt(self) -> Receipt | None:
        """The payout that is on its way."""
        if self.payout_id is None:
            return None
        return Receipt(self.payout_id, self.arrival_at or self.updated_at)


def fee_of(amount: int, method: Method) -> int:
    """What a withdrawal costs, in micro-USD: instant 1.5 %, at least $0.50; standard nothing.

    >>> fee_of(10_000_000, "instant"), fee_of(50_000_000, "instant"), fee_of(50, "standard")
    (500000, 750000, 0)
    """
    if method == "standard":
        return 0
    return max(amount * INSTANT_FEE_BPS // 10_000, INSTANT_FEE_MINIMUM)


def request(
    connection: Connection,
    receiver: PayoutAccount,
    *,
    withdrawal_id: str,
    rail: str,
    amount: int,
    method: Method,
    now: datetime,
) -> Withdrawal:
    """Debit the gross amount and record the withdrawal. The caller takes the first step.

    Raises:
        AmountError: The amount is below the minimum, or nothing would be left of it.
        InsufficientWithdrawableError: Less may be withdrawn.
    """
    fee = fee_of(amount, method)
    net = amount - fee
    if amount < MINIMUM or net < MICRO_PER_CENT:
        raise AmountError(f"The least that can be withdrawn is {format_usd(MINIMUM, 2)}")
    balance = books.balance_of(connection, receiver.account_id)
    available = min(balance.balance, balance.withdrawable)
    if amount > available:
        raise InsufficientWithdrawableError(
            f"Only {format_usd(available)} of the balance can be withdrawn"
        )
    connection.execute(
        insert(withdrawals).values(
            id=withdrawal_id,
            account_id=receiver.account_id,
            rail=rail,
            external_id=receiver.external_id,
            destination_type=receiver.onboarding.destination_type,
            destination_last4=receiver.onboarding.destination_last4,
            amount=amount,
            fee=fee,
            net=net,
            method=method,
            status="pending",
            failure_reason="",
            refunded=False,
            reversal="",
            tries=0,
            payout_attempt=0,
            next_step_at=now + LEASE,
            created_at=now,
            updated_at=now,
        )
    )
    movement = Movement(
        type="stripe_payout",
        reference=reference(withdrawal_id),
        source=receiver.account_id,
        target=books.WITHDRAWALS,
        amount=amount,
        source_withdrawable=amount,
    )
    books.move(connection, movement, now)
    return get(connection, withdrawal_id)


def reference(withdrawal_id: str) -> str:
    """What the ledger's entries of a withdrawal refer to."""
    return f"stripe_withdraw:{withdrawal_id}"


def transferred(
    connection: Connection, withdrawal_id: str, transfer_id: str, *, now: datetime
) -> Withdrawal:
    """The rail has moved the money to the receiver's account there."""
    row = get(connection, withdrawal_id)
    changes: dict[str, Any] = {"transfer_id": transfer_id, "tries": 0}
    if row.status == "pending":
        changes["status"] = "transferred"
    if row.status == "failed" and row.transfer_id is None:
        # Refunded before the transfer was known: the rail still has money of ours.
        changes |= {"reversal": "due", "next_step_at": now}
    return _change(connection, row, changes, now)


def sent(
    connection: Connection, withdrawal_id: str, receipt: Receipt, *, ask_at: datetime, now: datetime
) -> Withdrawal:
    """The rail has taken on the payout."""
    row = get(connection, withdrawal_id)
    changes = {"payout_id": receipt.payout_id, "arrival_at": receipt.arrival_at, "tries": 0}
    if row.status == "transferred":
        changes["next_step_at"] = max(ask_at, now)
    return _change(connection, row, changes, now)


def paid(connection: Connection, withdrawal_id: str, *, now: datetime) -> Withdrawal:
    """The money has arrived. After a failure this is old news."""
    row = get(connection, withdrawal_id)
    if row.status not in _OPEN:
        return row
    for movement in _arrival(row):
        books.move(connection, movement, now)
    return _change(connection, row, {"status": "paid", "next_step_at": None}, now)


def failed(
    connection: Connection, withdrawal_id: str, reason: str, *, now: datetime, returned: bool
) -> Withdrawal:
    """The money will not arrive: credit the gross amount back, fee included, withdrawable.

    `returned` says that the rail has given the money back, or never took it. Otherwise it is still
    on the receiver's account there and must be taken back, or they would have it twice.
    """
    row = get(connection, withdrawal_id)
    if row.status == "failed":
        if returned and row.reversal == "due":
            return _change(connection, row, {"reversal": "done", "next_step_at": None}, now)
        return row
    if row.status == "paid":
        for movement in _arrival(row):
            back = Movement(
                type="withdrawal_returned",
                reference=movement.reference,
                source=movement.target,
                target=movement.source,
                amount=movement.amount,
            )
            books.move(connection, back, now)
    refund = Movement(
        type="refund",
        reference=reference(row.id),
        source=books.WITHDRAWALS,
        target=row.account_id,
        amount=row.amount,
        target_withdrawable=row.amount,
    )
    books.move(connection, refund, now)
    changes = {
        "status": "failed",
        "refunded": True,
        "failure_reason": reason,
        "tries": 0,
        "reversal": "" if returned else "due",
        "next_step_at": None if returned else now + LEASE,
    }
    return _change(connection, row, changes, now)


def reversed_(connection: Connection, withdrawal_id: str, *, now: datetime) -> Withdrawal:
    """The money of a failed payout is back from the receiver's account at the rail."""
    row = get(connection, withdrawal_id)
    return _change(connection, row, {"reversal": "done", "next_step_at": None}, now)


def _arrival(row: Withdrawal) -> list[Movement]:
    sent_micro_usd = row.cents * MICRO_PER_CENT
    return [
        Movement(
            type="withdrawal_paid",
            reference=reference(row.id),
            source=books.WITHDRAWALS,
            target=books.PAID_OUT,
            amount=sent_micro_usd,
        ),
        Movement(
            type="withdrawal_fee",
            reference=reference(row.id),
            source=books.WITHDRAWALS,
            target=books.PLATFORM,
            amount=row.amount - sent_micro_usd,
        ),
    ]


def postpone(
    connection: Connection,
    withdrawal_id: str,
    until: datetime,
    *,
    now: datetime,
    unanswered: bool = False,
    refused: bool = False,
) -> Withdrawal:
    """Take the next step later: after silence of the rail, or after it refused a payout."""
    row = get(connection, withdrawal_id)
    changes = {
        "tries": row.tries + 1 if unanswered else 0,
        "payout_attempt": row.payout_attempt + refused,
        "next_step_at": until,
    }
    return _change(connection, row, changes, now)


def lease_due(
    connection: Connection, rail: str, *, now: datetime, limit: int
) -> Sequence[Withdrawal]:
    """The withdrawals whose next step is due, given to this caller alone for a while."""
    rows = connection.execute(
        select(withdrawals)
        .where(withdrawals.c.rail == rail, withdrawals.c.next_step_at <= now)
        .order_by(withdrawals.c.next_step_at, withdrawals.c.id)
        .limit(limit)
    ).all()
    for row in rows:
        connection.execute(
            update(withdrawals).where(withdrawals.c.id == row.id).values(next_step_at=now + LEASE)
        )
    return [_withdrawal(row) for row in rows]


def get(connection: Connection, withdrawal_id: str) -> Withdrawal:
    """A withdrawal that exists."""
    return _withdrawal(
        connection.execute(select(withdrawals).where(withdrawals.c.id == withdrawal_id)).one()
    )


def find(
    connection: Connection,
    rail: str,
    external_id: str,
    *,
    withdrawal_id: str = "",
    payout_id: str | None = None,
    transfer_id: str | None = None,
) -> Withdrawal | None:
    """The withdrawal a rail speaks of, if it is one of that receiver's (if the rail named one)."""
    for column, value in (
        (withdrawals.c.id, withdrawal_id or None),
        (withdrawals.c.payout_id, payout_id),
        (withdrawals.c.transfer_id, transfer_id),
    ):
        if value is None:
            continue
        query = select(withdrawals).where(column == value, withdrawals.c.rail == rail)
        if external_id:
            query = query.where(withdrawals.c.external_id == external_id)
        row = connection.execute(query).one_or_none()
        if row is not None:
            return _withdrawal(row)
    return None


def history(connection: Connection, account_id: str, *, limit: int) -> list[Withdrawal]:
    """Somebody's withdrawals, newest first."""
    rows = connection.execute(
        select(withdrawals)
        .where(withdrawals.c.account_id == account_id)
        .order_by(withdrawals.c.created_at.desc(), withdrawals.c.id)
        .limit(limit)
    )
    return [_withdrawal(row) for row in rows]


def _change(
    connection: Connection, row: Withdrawal, changes: dict[str, Any], now: datetime
) -> Withdrawal:
    connection.execute(
        update(withdrawals).where(withdrawals.c.id == row.id).values(updated_at=now, **changes)
    )
    return get(connection, row.id)


def _withdrawal(row: Row[Any]) -> Withdrawal:
    return Withdrawal(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
