"""Deposits as an operator looks at them: whose each is, how it stands, and what is left of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, func, or_, select

from darkbloom_provider.coordinator.deposits.ledger import Deposit
from darkbloom_provider.coordinator.store.schema import accounts, deposits, users

Standing = Literal["pending", "expired", "paid", "partly refunded", "refunded", "disputed"]


@dataclass(frozen=True, slots=True)
class ListedDeposit:
    """One deposit and who made it."""

    deposit: Deposit
    email: str
    """Empty if the account has no user."""
    balance: int
    """What the account holds now, micro-USD."""


def standing(deposit: Deposit) -> Standing:
    """How a deposit stands, the worst of it first."""
    if deposit.disputed:
        return "disputed"
    if deposit.refunded:
        return "refunded" if deposit.refunded >= deposit.credited else "partly refunded"
    return "paid" if deposit.status == "completed" else deposit.status


def listed(
    connection: Connection, *, limit: int, only_reversed: bool = False
) -> list[ListedDeposit]:
    """Deposits, newest first.

    Args:
        connection: Inside the caller's transaction.
        limit: How many at most.
        only_reversed: Only those of which a bank took something back, or wants to.
    """
    query = (
        select(
            deposits,
            func.coalesce(users.c.email, "").label("email"),
            func.coalesce(accounts.c.balance, 0).label("balance"),
        )
        .outerjoin(users, users.c.account_id == deposits.c.account_id)
        .outerjoin(accounts, accounts.c.id == deposits.c.account_id)
        .order_by(deposits.c.created_at.desc(), deposits.c.id)
        .limit(limit)
    )
    if only_reversed:
        query = query.where(_reversed())
    return [_listed(dict(row)) for row in connection.execute(query).mappings()]


def count_reversed(connection: Connection) -> int:
    """How many deposits a bank took something back of, or wants to."""
    query = select(func.count()).select_from(deposits).where(_reversed())
    return connection.execute(query).scalar_one()


def _reversed() -> ColumnElement[bool]:
    return or_(deposits.c.refunded > 0, deposits.c.disputed > 0)


def _listed(row: dict[str, Any]) -> ListedDeposit:
    email, balance = row.pop("email"), row.pop("balance")
    return ListedDeposit(Deposit(**row), email, balance)
