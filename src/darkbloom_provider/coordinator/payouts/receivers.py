"""Where people are paid to: their accounts at a payout rail, and how far each is set up.

Every function works inside the caller's transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Connection, insert, select, update

from darkbloom_provider.coordinator.payouts.rail import Onboarding, OnboardingStatus
from darkbloom_provider.coordinator.store.schema import payout_accounts


@dataclass(frozen=True, slots=True)
class PayoutAccount:
    """Where somebody is paid to."""

    account_id: str
    external_id: str
    onboarding: Onboarding


def payout_account(connection: Connection, account_id: str, rail: str) -> PayoutAccount | None:
    """Where somebody is paid to by this rail, if they have begun to say."""
    row = connection.execute(
        select(payout_accounts).where(
            payout_accounts.c.account_id == account_id, payout_accounts.c.rail == rail
        )
    ).one_or_none()
    if row is None:
        return None
    onboarding = Onboarding(
        cast("OnboardingStatus", row.status),
        row.destination_type,
        row.destination_last4,
        row.instant_eligible,
    )
    return PayoutAccount(row.account_id, row.external_id, onboarding)


def open_payout_account(
    connection: Connection, account_id: str, rail: str, external_id: str, *, now: datetime
) -> None:
    """Remember somebody's account at a rail, unless one is remembered already."""
    if payout_account(connection, account_id, rail) is None:
        connection.execute(
            insert(payout_accounts).values(
                account_id=account_id,
                rail=rail,
                external_id=external_id,
                updated_at=now,
                **_stored(Onboarding("pending")),
            )
        )


def note_onboarding(
    connection: Connection, rail: str, external_id: str, onboarding: Onboarding, *, now: datetime
) -> bool:
    """Remember how far somebody is. False if nobody here has that account."""
    changed = connection.execute(
        update(payout_accounts)
        .where(payout_accounts.c.rail == rail, payout_accounts.c.external_id == external_id)
        .values(updated_at=now, **_stored(onboarding))
    )
    return changed.rowcount == 1


def _stored(onboarding: Onboarding) -> dict[str, Any]:
    return {
        "status": onboarding.status,
        "destination_type": onboarding.destination_type,
        "destination_last4": onboarding.destination_last4,
        "instant_eligible": onboarding.instant_eligible,
    }
