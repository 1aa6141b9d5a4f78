"""Invite codes: credit that the operator gives away, and a way in where sign-up needs one.

Source: the network's invites. A code is redeemed once by an account, its credit cannot be
withdrawn, and both happen in one transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select, update

from darkbloom_provider.coordinator.accounts.people import RandomHex
from darkbloom_provider.coordinator.accounts.referrals import public_code
from darkbloom_provider.coordinator.ledger import reservations
from darkbloom_provider.coordinator.ledger.books import Balance
from darkbloom_provider.coordinator.rest.refusals import RefusalError
from darkbloom_provider.coordinator.store.schema import invite_redemptions, invites
from darkbloom_provider.protocol.money import MAX_MICRO_USD

MAX_USES: Final = 1_000_000
_DRAWN_BYTES: Final = 4


class InviteError(RefusalError):
    """An invite that cannot be made or redeemed."""


@dataclass(frozen=True, slots=True)
class Invite:
    """One code."""

    code: str
    amount: int
    """Micro-USD that each redemption is worth; 0 for a code that only lets somebody sign up."""
    max_uses: int
    used_count: int
    active: bool
    created_at: datetime
    expires_at: datetime | None


def create(
    connection: Connection,
    *,
    amount: int,
    random_hex: RandomHex,
    now: datetime,
    code: str = "",
    max_uses: int = 1,
    expires_at: datetime | None = None,
) -> Invite:
    """Make an invite. Without a code of the operator's choice one is drawn.

    Raises:
        InviteError: The code is misspelled or taken, or a figure makes no sense.
    """
    if not 0 <= amount <= MAX_MICRO_USD // MAX_USES:
        raise InviteError("The amount of an invite is out of range")
    if max_uses > MAX_USES:
        raise InviteError(f"An invite can be used {MAX_USES} times at most")
    if expires_at is not None and expires_at <= now:
        raise InviteError("The invite would have expired already")
    try:
        chosen = public_code(code or f"INV-{random_hex(_DRAWN_BYTES)}")
    except ValueError as error:
        raise InviteError(f"The code cannot be used: {error}") from None
    if _find(connection, chosen) is not None:
        raise InviteError(
            f"The code {chosen} is taken", status=HTTPStatus.CONFLICT, error_type="conflict"
        )
    invite = Invite(chosen, amount, max(max_uses, 1), 0, True, now, expires_at)
    connection.execute(
        insert(invites).values(
            code=invite.code,
            amount=invite.amount,
            max_uses=invite.max_uses,
            used_count=0,
            active=True,
            created_at=now,
            expires_at=expires_at,
        )
    )
    return invite


def list_invites(connection: Connection) -> list[Invite]:
    """Every invite, newest first."""
    query = select(invites).order_by(invites.c.created_at.desc(), invites.c.code)
    return [_invite(row) for row in connection.execute(query)]


def deactivate(connection: Connection, code: str) -> bool:
    """Let nobody redeem a code any more. False if there is no such code."""
    result = connection.execute(
        update(invites).where(invites.c.code == code.strip().upper()).values(active=False)
    )
    return result.rowcount == 1


def redeem(
    connection: Connection, code: str, *, account_id: str, now: datetime
) -> tuple[Invite, Balance]:
    """Credit an account with an invite. The invite as it was, and the new balance.

    Raises:
        InviteError: 404 `not_found` for an unknown code; 400 for one that is inactive, expired,
            used up, or already redeemed by this account.
    """
    invite = usable(connection, code, now=now)
    once = select(invite_redemptions.c.code).where(
        invite_redemptions.c.code == invite.code, invite_redemptions.c.account_id == account_id
    )
    if connection.execute(once).first() is not None:
        raise InviteError("This account has already used this invite code")
    counted = connection.execute(
        update(invites)
        .where(invites.c.code == invite.code, invites.c.used_count < invites.c.max_uses)
        .values(used_count=invites.c.used_count + 1)
    )
    if counted.rowcount != 1:
        raise InviteError("This invite code is used up")
    connection.execute(
        insert(invite_redemptions).values(code=invite.code, account_id=account_id, redeemed_at=now)
    )
    balance = reservations.deposit(
        connection,
        account_id,
        invite.amount,
        now=now,
        entry_type="invite_credit",
        reference=f"invite:{invite.code}",
    )
    return invite, balance


def usable(connection: Connection, code: str, *, now: datetime) -> Invite:
    """An invite that somebody can still use.

    Raises:
        InviteError: As `redeem`.
    """
    row = _find(connection, code.strip().upper())
    if row is None:
        raise InviteError(
            "This invite code is not known", status=HTTPStatus.NOT_FOUND, error_type="not_found"
        )
    if not row.active:
        raise InviteError("This invite code is no longer active")
    if row.expires_at is not None and row.expires_at <= now:
        raise InviteError("This invite code has expired")
    if row.used_count >= row.max_uses:
        raise InviteError("This invite code is used up")
    return _invite(row)


def _find(connection: Connection, code: str) -> Row[Any] | None:
    return connection.execute(select(invites).where(invites.c.code == code)).one_or_none()


def _invite(row: Row[Any]) -> Invite:
    return Invite(
        row.code,
        row.amount,
        row.max_uses,
        row.used_count,
        row.active,
        row.created_at,
        row.expires_at,
    )
