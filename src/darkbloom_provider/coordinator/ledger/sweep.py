"""Money earned before a machine was linked, moved to the owner's account when it is.

A wallet address is only a claim in a registration, so it is bound to the machine identity that has
always reported it: money of an address that a second machine has named stays where it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from sqlalchemy import Connection, func, insert, select, update

from darkbloom_provider.coordinator.ledger import books, earning_totals
from darkbloom_provider.coordinator.ledger.books import Movement
from darkbloom_provider.coordinator.ledger.reservations import wallet_account
from darkbloom_provider.coordinator.store.schema import (
    wallet_claims,
    wallet_payouts,
    wallet_sightings,
)

_UNKNOWN_MACHINE: Final = ""
"""A registration without a machine identity. It proves nothing, and is remembered as such."""

Verdict = Literal["moved", "nothing", "not_a_wallet", "other_machine", "other_account"]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What `wallet_sweep` did: how much moved (micro-USD), how many jobs, and why not if not.

    `other_machine` and `other_account` leave money where it is and deserve a log line.
    """

    verdict: Verdict
    amount: int = 0
    jobs: int = 0


def observe_wallet(
    connection: Connection, *, address: str | None, machine_id: str | None, now: datetime
) -> None:
    """Remember that a machine reported an address. For every registration, linked or not."""
    account = wallet_account(address)
    if account is None:
        return
    machine = machine_id or _UNKNOWN_MACHINE
    seen = select(wallet_sightings).where(
        wallet_sightings.c.address == account, wallet_sightings.c.machine_id == machine
    )
    if connection.execute(seen).first() is None:
        connection.execute(
            insert(wallet_sightings).values(address=account, machine_id=machine, first_seen=now)
        )


def wallet_sweep(
    connection: Connection,
    *,
    address: str | None,
    account_id: str,
    machine_id: str | None,
    now: datetime,
) -> Sweep:
    """Move a wallet's whole balance to the account its machine was linked to, withdrawable.

    For a registration with a valid device token; `observe_wallet` is part of it. The wallet's
    payout rows are marked settled and become earnings of the account. Repeating it is harmless:
    each balance moves once, and an address belongs to the first account that claimed it.
    """
    wallet = wallet_account(address)
    if wallet is None:
        return Sweep("not_a_wallet")
    observe_wallet(connection, address=wallet, machine_id=machine_id, now=now)
    if not _unsettled(connection, wallet):
        return Sweep("nothing")
    if not machine_id or _machines(connection, wallet) != {machine_id}:
        return Sweep("other_machine")
    books.open_account(connection, account_id, "user", now)
    if not _claim(connection, wallet, account_id, now):
        return Sweep("other_account")
    amount = books.balance_of(connection, wallet).balance
    movement = Movement(
        type="wallet_sweep",
        reference=f"sweep:{wallet}",
        source=wallet,
        target=account_id,
        amount=amount,
        source_withdrawable=amount,
        target_withdrawable=amount,
    )
    books.move(connection, movement, now)
    return Sweep("moved", amount, _rehome(connection, wallet, account_id))


def _unsettled(connection: Connection, wallet: str) -> bool:
    query = select(wallet_payouts.c.id).where(
        wallet_payouts.c.address == wallet, wallet_payouts.c.settled.is_(False)
    )
    return connection.execute(query.limit(1)).first() is not None


def _machines(connection: Connection, wallet: str) -> set[str]:
    # Who worked for the address counts as having reported it, whatever the hub remembered.
    reported = select(wallet_sightings.c.machine_id).where(wallet_sightings.c.address == wallet)
    worked = select(func.coalesce(wallet_payouts.c.machine_id, _UNKNOWN_MACHINE)).where(
        wallet_payouts.c.address == wallet
    )
    return set(connection.execute(reported.union(worked)).scalars())


def _claim(connection: Connection, wallet: str, account_id: str, now: datetime) -> bool:
    owner = connection.execute(
        select(wallet_claims.c.account_id).where(wallet_claims.c.address == wallet)
    ).scalar_one_or_none()
    if owner is None:
        connection.execute(
            insert(wallet_claims).values(address=wallet, account_id=account_id, claimed_at=now)
        )
    return owner in {None, account_id}


def _rehome(connection: Connection, wallet: str, account_id: str) -> int:
    rows = connection.execute(
        select(wallet_payouts)
        .where(wallet_payouts.c.address == wallet, wallet_payouts.c.settled.is_(False))
        .order_by(wallet_payouts.c.id)
    ).all()
    if not rows:
        return 0
    earning_totals.record(
        connection,
        [
            {
                "account_id": account_id,
                "provider_id": row.provider_id,
                "provider_key": row.provider_key,
                "machine_id": row.machine_id,
                "job_id": row.job_id,
                "model": row.model,
                "amount": row.amount,
                "prompt_tokens": row.prompt_tokens,
                "completion_tokens": row.completion_tokens,
                # The time of the work, so that totals by day do not move when a machine is linked.
                "created_at": row.created_at,
            }
            for row in rows
        ],
    )
    connection.execute(
        update(wallet_payouts)
        .where(wallet_payouts.c.address == wallet, wallet_payouts.c.settled.is_(False))
        .values(settled=True)
    )
    return len(rows)
