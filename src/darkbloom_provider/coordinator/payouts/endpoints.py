"""What the endpoints of payouts share: the desk behind them, and how they answer."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from darkbloom_provider.coordinator.accounts.people import Principal, User
from darkbloom_provider.coordinator.payouts import receivers
from darkbloom_provider.coordinator.payouts.desk import PayoutDesk
from darkbloom_provider.coordinator.payouts.receivers import PayoutAccount
from darkbloom_provider.coordinator.rails.rail import RailRefusedError, RailUnknownError
from darkbloom_provider.coordinator.rest.guards import Access
from darkbloom_provider.coordinator.rest.replies import ApiError
from darkbloom_provider.coordinator.rest.shapes import BOOLEAN, optional
from darkbloom_provider.coordinator.services import Services

NOT_CONFIGURED: Final = "payouts are not configured on this coordinator"
USER_OR_MACHINE: Final = Access("user", device_token=True)
"""A person, or a machine of theirs, which may look and not touch."""
SANDBOX: Final = {"sandbox": optional(BOOLEAN)}


class PayoutEndpoints:
    """Endpoints over the same desk."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def desk(self) -> PayoutDesk:
        """The desk.

        Raises:
            ApiError: 503, nobody is paid out here.
        """
        desk = self.services.payouts
        if desk is None:
            raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "billing_error", NOT_CONFIGURED)
        return desk

    async def account(self, desk: PayoutDesk, account_id: str) -> PayoutAccount | None:
        """Where somebody is paid to."""
        return await self.services.db.read(
            lambda c: receivers.payout_account(c, account_id, desk.rail.name)
        )


def user_of(principal: Principal) -> User:
    """The person whom the guard let in."""
    assert principal.user is not None  # noqa: S101 - the guard "user" has seen to it
    return principal.user


def mark(desk: PayoutDesk) -> dict[str, bool]:
    """Says that no money moves, where none does."""
    return {"sandbox": True} if desk.rail.sandbox else {}


def stripe_error(error: RailRefusedError | RailUnknownError) -> ApiError:
    """The reply when the rail refused or did not answer."""
    return ApiError(HTTPStatus.BAD_GATEWAY, "stripe_error", error.what)
