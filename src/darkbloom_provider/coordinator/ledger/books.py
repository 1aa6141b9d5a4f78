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
_READ = select(accounts.c.id, accounts.c.kind, accounts.c.balance, accounts.c.withdrawable).where(
    accounts.c.id.in_(bindparam("accounts", expanding=True))
)
_CHANGE = (
    update(accounts)
    .where(accounts.c.id == bindparam("account"))
    .values(balance=bindparam("new_balance"), withdrawable=bindparam("new_withdrawable"))
)
_TRANSFER = insert(transfers).returning(transfers.c.id, sort_by_parameter_order=True)
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
        raise _another_kind(known)


def move(connection: Connection, movement: Movement, now: datetime) -> None:
    """Write one transfer with its two entries. Moving nothing writes nothing.

    Raises:
        LedgerError: An account would go below zero or out of range, or does not exist.
    """
    sheet = Sheet(connection, (movement.source, movement.target))
    sheet.move([movement], now)
    sheet.write()


class Sheet:
    """Accounts that money moves between in one transaction: read once, and written once.

    For the many movements of many jobs. Movements count from `move` on, for this sheet, and are
    in the books after `write`; nothing else may write to them in between.
    """

    def __init__(self, connection: Connection, account_ids: Iterable[str] = ()) -> None:
        """Read these accounts, as far as they are there. Any other is read when it is needed."""
        self._connection = connection
        self._held: dict[str, _Held | None] = {}
        self._opened: dict[str, datetime] = {}
        self._changed: set[str] = set()
        self._transfers: list[dict[str, object]] = []
        self._entries: list[list[dict[str, object]]] = []
        """Two of each transfer."""
        self._read(dict.fromkeys(account_ids))

    def balance_of(self, account_id: str) -> Balance:
        """What an account holds after the movements so far. An unknown account holds nothing."""
        held = self._account(account_id)
        return NOTHING if held is None else held.balance

    def move(
        self,
        movements: Iterable[Movement],
        now: datetime,
        opening: Mapping[str, AccountKind] | None = None,
    ) -> None:
        """Make transfers, one after the other, each with its two entries. All of them, or none.

        Accounts that are not there are opened first: those named in `opening`, and internal ones.

        Raises:
            LedgerError: An account would go below zero or out of range, does not exist, or is of
                another kind than it is to be opened as.
        """
        moving = [movement for movement in movements if movement.amount]
        if any(movement.amount < 0 for movement in moving):
            raise LedgerError("Money moves forward only", why="a negative amount was asked for")
        touched = {a for movement in moving for a in (movement.source, movement.target)}
        kinds: dict[str, AccountKind] = dict.fromkeys(touched & INTERNAL, "internal")
        kinds |= opening or {}
        fresh = {a: _Held(kind, NOTHING) for a, kind in kinds.items() if self._is_new(a, kind)}
        after = dict(fresh)
        entered = []
        for movement in moving:
            pair = []
            for account_id, change in (
                (movement.source, Balance(-movement.amount, -movement.source_withdrawable)),
                (movement.target, Balance(movement.amount, movement.target_withdrawable)),
            ):
                held = after.get(account_id) or self._account(account_id)
                if held is None:
                    raise LedgerError("There is no such account")
                after[account_id] = new = _after(held, change)
                pair.append(
                    {
                        "account_id": account_id,
                        "amount": change.balance,
                        "withdrawable": change.withdrawable,
                        "balance_after": new.balance.balance,
                    }
                )
            entered.append(pair)
        self._held |= after
        self._changed |= touched
        self._opened |= dict.fromkeys(fresh, now)
        self._transfers += (
            {"type": movement.type, "reference": movement.reference, "created_at": now}
            for movement in moving
        )
        self._entries += entered

    def write(self) -> None:
        """Put everything into the books. Once."""
        execute = self._connection.execute
        if self._opened:
            execute(
                _OPEN,
                [
                    {
                        "id": account_id,
                        "kind": held.kind,
                        "balance": held.balance.balance,
                        "withdrawable": held.balance.withdrawable,
                        "created_at": since,
                    }
                    for account_id, since in self._opened.items()
                    if (held := self._held[account_id]) is not None
                ],
            )
        if not self._transfers:
            return
        written = execute(_TRANSFER, self._transfers).scalars()
        for transfer_id, pair in zip(written, self._entries, strict=True):
            for entry in pair:
                entry["transfer_id"] = transfer_id
        changed = [
            {
                "account": account_id,
                "new_balance": held.balance.balance,
                "new_withdrawable": held.balance.withdrawable,
            }
            for account_id in self._changed - self._opened.keys()
            if (held := self._held[account_id]) is not None
        ]
        if changed:
            execute(_CHANGE, changed)
        execute(_ENTRY, [entry for pair in self._entries for entry in pair])

    def _account(self, account_id: str) -> _Held | None:
        if account_id not in self._held:
            self._read([account_id])
        return self._held[account_id]

    def _is_new(self, account_id: str, kind: AccountKind) -> bool:
        held = self._account(account_id)
        if held is not None and held.kind != kind:
            raise _another_kind(held.kind)
        return held is None

    def _read(self, account_ids: Collection[str]) -> None:
        if not account_ids:
            return
        self._held |= dict.fromkeys(account_ids)
        for account_id, kind, balance, withdrawable in self._connection.execute(
            _READ, {"accounts": list(account_ids)}
        ):
            self._held[account_id] = _Held(kind, Balance(balance, withdrawable))


@dataclass(frozen=True, slots=True)
class _Held:
    kind: AccountKind
    balance: Balance


def _after(held: _Held, change: Balance) -> _Held:
    """What an account holds after a change.

    Raises:
        LedgerError: It may not.
    """
    balance = held.balance.balance + change.balance
    withdrawable = held.balance.withdrawable + change.withdrawable
    if held.kind != "internal" and not 0 <= withdrawable <= balance:
        raise InsufficientFundsError(needed=-change.balance, available=held.balance.balance)
    if abs(balance) > MAX_MICRO_USD:
        raise LedgerError("The amount is out of range")
    return _Held(held.kind, Balance(balance, withdrawable))


def _another_kind(kind: str) -> LedgerError:
    return LedgerError("An account cannot change its kind", why=f"it is a {kind} account")
