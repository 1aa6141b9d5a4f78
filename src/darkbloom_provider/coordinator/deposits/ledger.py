"""Deposits in the books: asked for, then paid and credited, or given up.

Every function works inside the caller's transaction. A deposit is credited at most once, with what
was paid for it; that it expired before does not matter, for the money came. What a rail takes back
later is noted and told, and does not move the books by itself: the credit may be spent already, and
no account goes below zero.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, insert, select, update

from darkbloom_provider.coordinator.accounts import referrals
from darkbloom_provider.coordinator.accounts.referrals import ReferralError
from darkbloom_provider.coordinator.deposits.rail import CheckoutReport, Reversal
from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.ledger.books import Movement
from darkbloom_provider.coordinator.rails.rail import MICRO_PER_CENT
from darkbloom_provider.coordinator.rest.refusals import RefusalError
from darkbloom_provider.coordinator.store.schema import deposits
from darkbloom_provider.protocol.money import format_usd

MINIMUM: Final = 500_000
"""The least that can be bought, micro-USD."""
MAXIMUM: Final = 999_999_990_000
"""The most that Stripe takes at once."""
ENTRY_TYPE: Final = "stripe_deposit"

Status = Literal["pending", "completed", "expired"]


class DepositAmountError(RefusalError):
    """An amount that cannot be bought."""


@dataclass(frozen=True, slots=True)
class Deposit:
    """One deposit as it stands. Amounts in micro-USD."""

    id: str
    account_id: str
    rail: str
    external_id: str | None
    payment_id: str | None
    amount: int
    """Asked for."""
    credited: int
    """Paid and booked."""
    refunded: int
    disputed: int
    referral_code: str
    status: Status
    created_at: datetime
    completed_at: datetime | None

    @property
    def cents(self) -> int:
        """What is to be paid."""
        return self.amount // MICRO_PER_CENT


def request(
    connection: Connection,
    account_id: str,
    *,
    deposit_id: str,
    rail: str,
    amount: int,
    referral_code: str,
    now: datetime,
) -> Deposit:
    """Record a deposit before anybody is asked to take the money.

    Raises:
        DepositAmountError: Too little, too much, or not in whole cents.
        ReferralError: Nobody has this referral code.
    """
    if amount % MICRO_PER_CENT:
        raise DepositAmountError("amount_usd has at most two decimals")
    if not MINIMUM <= amount <= MAXIMUM:
        raise DepositAmountError(
            f"amount_usd is from {format_usd(MINIMUM, 2)} to {format_usd(MAXIMUM, 2)}"
        )
    if referral_code and not referrals.is_known(connection, referral_code):
        raise ReferralError("This referral code is not known", error_type="invalid_request_error")
    connection.execute(
        insert(deposits).values(
            id=deposit_id,
            account_id=account_id,
            rail=rail,
            amount=amount,
            credited=0,
            refunded=0,
            disputed=0,
            referral_code=referral_code,
            status="pending",
            created_at=now,
        )
    )
    return get(connection, deposit_id)


def get(connection: Connection, deposit_id: str) -> Deposit:
    """A deposit that must be there."""
    return _deposit(connection.execute(select(deposits).where(deposits.c.id == deposit_id)).one())


def find(
    connection: Connection,
    rail: str,
    *,
    deposit_id: str = "",
    external_id: str | None = None,
    payment_id: str | None = None,
) -> Deposit | None:
    """The deposit that news is about: by our own id, else by one of the rail's."""
    for column, value in (
        (deposits.c.id, deposit_id),
        (deposits.c.external_id, external_id),
        (deposits.c.payment_id, payment_id),
    ):
        if value:
            row = connection.execute(
                select(deposits).where(deposits.c.rail == rail, column == value)
            ).first()
            if row is not None:
                return _deposit(row)
    return None


def opened(connection: Connection, deposit_id: str, external_id: str) -> Deposit:
    """The rail has made a checkout for it."""
    return _change(connection, deposit_id, external_id=external_id)


def note(
    connection: Connection,
    deposit: Deposit,
    report: CheckoutReport,
    *,
    external_id: str | None,
    now: datetime,
) -> Deposit:
    """Take in what became of a checkout. Credits once; says nothing new the second time."""
    if deposit.status == "completed":
        return deposit
    if report.state == "paid":
        return _credit(connection, deposit, report, external_id or deposit.external_id, now)
    if report.state == "expired":
        return _change(connection, deposit.id, status="expired")
    return deposit


def note_reversal(
    connection: Connection, deposit: Deposit, reversal: Reversal, *, payment_id: str | None
) -> Deposit:
    """Take in what went back of a payment. A refund only grows, whatever order news arrives in."""
    changed: dict[str, Any] = {}
    if reversal.refunded is not None:
        changed["refunded"] = max(deposit.refunded, reversal.refunded * MICRO_PER_CENT)
    if reversal.disputed is not None:
        changed["disputed"] = reversal.disputed * MICRO_PER_CENT
    if payment_id is not None:
        changed["payment_id"] = payment_id
    return _change(connection, deposit.id, **changed)


def holds_play_money(connection: Connection) -> bool:
    """Whether anybody was credited by the sandbox."""
    query = select(deposits.c.id).where(deposits.c.rail == "sandbox", deposits.c.credited > 0)
    return connection.execute(query.limit(1)).first() is not None


def reference_of(external_id: str) -> str:
    """What a deposit's transfer is called in the ledger."""
    return f"stripe:{external_id}"


def _credit(
    connection: Connection,
    deposit: Deposit,
    report: CheckoutReport,
    external_id: str | None,
    now: datetime,
) -> Deposit:
    amount = report.cents * MICRO_PER_CENT
    named = external_id or deposit.id
    books.open_account(connection, deposit.account_id, "user", now)
    movement = Movement(
        type=ENTRY_TYPE,
        reference=reference_of(named),
        source=books.DEPOSITS,
        target=deposit.account_id,
        amount=amount,
    )
    books.move(connection, movement, now)
    if deposit.referral_code:
        # Referred before, or by themselves: the credit is theirs all the same.
        with contextlib.suppress(ReferralError):
            referrals.apply(
                connection, deposit.referral_code, account_id=deposit.account_id, now=now
            )
    return _change(
        connection,
        deposit.id,
        status="completed",
        credited=amount,
        external_id=named,
        payment_id=report.payment_id or deposit.payment_id,
        completed_at=now,
    )


def _change(connection: Connection, deposit_id: str, **values: object) -> Deposit:
    connection.execute(update(deposits).where(deposits.c.id == deposit_id).values(**values))
    return get(connection, deposit_id)


def _deposit(row: Row[Any]) -> Deposit:
    return Deposit(**row._mapping)  # noqa: SLF001 - SQLAlchemy's documented name
