"""Double entry: the one place where a balance changes.

A movement takes from one account and gives to another, in the same transaction. Real accounts
(people and wallets) can never go below zero; internal ones are the other side of the world: what
has been paid in, what is reserved, what nobody claimed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from sqlalchemy import Connection, bindparam, insert, select, update

from darkbloom_provider.coordinator.store.schema import accounts, entries, transfers
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.protocol.money import MAX_MICRO_USD, format_usd

# Built once: putting a statement together costs several times what it takes to run it.
_BALANCE = select(accounts.c.balance, accounts.c.withdrawable).where(
    accounts.c.id == bindparam("account")
)
_KIND = select(accounts.c.kind).where(accounts.c.id == bindparam("account"))
_OPEN = insert(accounts)
_HELD = select(accounts.c.id, accounts.c.kind, accounts.c.balance, accounts.c.withdrawable).where(
    accounts.c.id.in_(bindparam("accounts", expanding=True))
)
_HOLD = (
    update(accounts)
    .where(accounts.c.id == bindparam("account"))
    .values(balance=bindparam("holds"), withdrawable=bindparam("may_withdraw"))
)
_TRANSFER = insert(transfers).returning(transfers.c.id)
_ENTRY = insert(entries)

AccountKind = Literal["user", "wallet", "internal"]

DEPOSITS: Final = "internal:deposits"
"""Where money paid in comes from; minus this is what people have deposited."""
GRANTS: Final = "internal:grants"
"""Where credit given away by the operator comes from."""
RESERVATIONS: Final = "internal:reservations"
"""Holds what open requests have set aside."""
UNCLAIMED: Final = "internal:unclaimed"
"""Holds the share of jobs served by a session with neither account nor wallet."""
PLATFORM: Final = "platform"
"""The operator's fees."""
WITHDRAWALS: Final = "internal:withdrawals"
"""Holds what is on its way to a bank, fees included."""
PAID_OUT: Final = "internal:paid_out"
"""Where money that reached a bank went."""
INTERNAL: Final = frozenset(
    {DEPOSITS, GRANTS, RESERVATIONS, UNCLAIMED, PLATFORM, WITHDRAWALS, PAID_OUT}
)


class LedgerError(DarkbloomError):
    """The books do not allow what was asked. Nothing has moved."""


class InsufficientFundsError(LedgerError):
    """An account holds less than is needed."""

    def __init__(self, *, needed: int, available: int) -> None:
        super().__init__(
            "Not enough credit for this request",
            why=f"it may cost up to {format_usd(needed)}, the balance is {format_usd(available)}",
            next_step="add credit, or ask for fewer tokens with max_tokens",
        )
        self.needed = needed
        self.available = available


@dataclass(frozen=True, slots=True)
class Balance:
    """An account's money in micro-USD; `withdrawable` is a part of `balance`."""

    balance: int
    withdrawable: int


NOTHING: Final = Balance(0, 0)


@dataclass(frozen=True, slots=True)
class Movement:
    """Money on its way between two accounts.

    The withdrawable parts say how much of the source's and the target's withdrawable money changes
    by: earned money is withdrawable, deposits and refunds of deposits are not.
    """

    type: str
    reference: str
    source: str
    target: str
    amount: int
    source_withdrawable: int = 0
    target_withdrawable: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """An account as it was read in the transaction that is about to change it."""

    kind: str
    balance: Balance


def balance_of(connection: Connection, account_id: str) -> Balance:
    """What an account holds. An unknown account holds nothing."""
    row = connection.execute(_BALANCE, {"account": account_id}).one_or_none()
    return NOTHING if row is None else Balance(row.balance, row.withdrawable)


def has_entry(connection: Connection, account_id: str, reference: str) -> bool:
    """Whether an account has an entry of a transfer with this reference."""
    query = (
        select(entries.c.id)
        .join(transfers, transfers.c.id == entries.c.transfer_id)
        .where(transfers.c.reference == reference, entries.c.account_id == account_id)
    )
    return connection.execute(query.limit(1)).first() is not None


def kind_of(connection: Connection, account_id: str) -> str | None:
    """What sort of account this is; None if there is none."""
    return connection.execute(_KIND, {"account": account_id}).scalar_one_or_none()


def open_account(connection: Connection, account_id: str, kind: AccountKind, now: datetime) -> None:
    """Make an empty account unless it is there.

    Raises:
        LedgerError: It exists and is of another kind.
    """
    known = kind_of(connection, account_id)
    if known is None:
        row = {"id": account_id, "kind": kind, "balance": 0, "withdrawable": 0, "created_at": now}
        connection.execute(_OPEN, row)
    elif known != kind:
        raise LedgerError("An account cannot change its kind", why=f"it is a {known} account")


def move(connection: Connection, movement: Movement, now: datetime) -> None:
    """Write one transfer with its two entries. Moving nothing writes nothing.

    Raises:
        LedgerError: An account would go below zero or out of range, or does not exist.
    """
    move_all(connection, [movement], now)


def move_all(
    connection: Connection,
    movements: Iterable[Movement],
    now: datetime,
    held: Mapping[str, Held] | None = None,
) -> None:
    """Write transfers, one after the other, as `move` does. All of them, or it raises.

    Each account is read and written once, however many of them touch it. `held` are the accounts
    if the caller has read them already, in the same transaction: see `look_up`.
    """
    moving = [movement for movement in movements if movement.amount]
    if not moving:
        return
    if any(movement.amount < 0 for movement in moving):
        raise LedgerError("Money moves forward only", why="a negative amount was asked for")
    touched = dict.fromkeys(a for m in moving for a in (m.source, m.target))
    if held is None:
        held = look_up(connection, touched, now)
    if not touched.keys() <= held.keys():
        raise LedgerError("There is no such account")
    now_held = {account_id: held[account_id].balance for account_id in touched}
    entered = []
    for movement in moving:
        transfer = {"type": movement.type, "reference": movement.reference, "created_at": now}
        transfer_id = connection.execute(_TRANSFER, transfer).scalar_one()
        for account_id, change in (
            (movement.source, Balance(-movement.amount, -movement.source_withdrawable)),
            (movement.target, Balance(movement.amount, movement.target_withdrawable)),
        ):
            after = _after(held[account_id].kind, now_held[account_id], change)
            now_held[account_id] = after
            entered.append(
                {
                    "transfer_id": transfer_id,
                    "account_id": account_id,
                    "amount": change.balance,
                    "withdrawable": change.withdrawable,
                    "balance_after": after.balance,
                }
            )
    connection.execute(
        _HOLD,
        [
            {"account": account_id, "holds": new.balance, "may_withdraw": new.withdrawable}
            for account_id, new in now_held.items()
        ],
    )
    connection.execute(_ENTRY, entered)


def look_up(connection: Connection, account_ids: Collection[str], now: datetime) -> dict[str, Held]:
    """The accounts of these that there are; the internal ones are made at their first use."""
    held = _held(connection, account_ids)
    missing = INTERNAL.intersection(account_ids) - held.keys()
    if not missing:
        return held
    for account_id in missing:
        open_account(connection, account_id, "internal", now)
    return _held(connection, account_ids)


def _held(connection: Connection, account_ids: Collection[str]) -> dict[str, Held]:
    rows = connection.execute(_HELD, {"accounts": list(account_ids)})
    return {
        account_id: Held(kind, Balance(balance, withdrawable))
        for account_id, kind, balance, withdrawable in rows
    }


def _after(kind: str, held: Balance, change: Balance) -> Balance:
    """What an account holds after a change.

    Raises:
        LedgerError: It may not.
    """
    balance = held.balance + change.balance
    withdrawable = held.withdrawable + change.withdrawable
    if kind != "internal" and not 0 <= withdrawable <= balance:
        raise InsufficientFundsError(needed=-change.balance, available=held.balance)
    if abs(balance) > MAX_MICRO_USD:
        raise LedgerError("The amount is out of range")
    return Balance(balance, withdrawable)
