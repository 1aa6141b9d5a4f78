"""What a payout rail is: the outside party that carries money to somebody's bank.

After a call whose outcome nobody knows, the same call is made again with the same key, which a rail
must answer as the first one was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, Protocol

Method = Literal["standard", "instant"]
ETA: Final[Mapping[Method, str]] = {"standard": "1-2 business days", "instant": "~30 minutes"}
"""How long the money takes, as replies and pages say it. Source: the network's withdrawal reply."""
OnboardingStatus = Literal["pending", "ready", "restricted", "rejected"]
DestinationType = Literal["", "bank", "card"]
PayoutState = Literal["in_transit", "paid", "failed"]


@dataclass(frozen=True, slots=True)
class Onboarding:
    """How far somebody's account at the rail is, and where money would go."""

    status: OnboardingStatus
    destination_type: DestinationType = ""
    destination_last4: str = ""
    instant_eligible: bool = False
    currently_due: tuple[str, ...] = ()
    """What the rail still wants to know, in its own words."""


@dataclass(frozen=True, slots=True)
class Order:
    """One withdrawal, as a rail needs to know it."""

    withdrawal_id: str
    external_id: str
    """The receiver's account at the rail."""
    destination_last4: str
    method: Method
    cents: int
    created_at: datetime
    attempt: int = 0
    """How many payouts of this transfer the rail has refused already."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A payout that the rail took on."""

    payout_id: str
    arrival_at: datetime


@dataclass(frozen=True, slots=True)
class PayoutReport:
    """What became of a payout."""

    state: PayoutState
    reason: str = ""
    """For a failed one, `code: message`."""


@dataclass(frozen=True, slots=True)
class RailEvent:
    """One signed message of the rail. What it is not about is None or empty."""

    id: str
    type: str
    external_id: str = ""
    withdrawal_id: str = ""
    """From our own metadata: known even before the payout's id has reached us."""
    payout_id: str | None = None
    transfer_id: str | None = None
    report: PayoutReport | None = None
    onboarding: Onboarding | None = None


class PayoutRail(Protocol):
    """Carries withdrawals out.

    Every method that calls the rail raises `RailRefusedError` or `RailUnknownError`.
    """

    name: str
    sandbox: bool
    """Whether no money moves. Every reply and page says so."""
    patience: timedelta
    """How long after a payout should have arrived to ask about it, if nobody told us."""
    key_lifetime: timedelta
    """For so long a repeated call is recognized. Later, look before repeating."""

    async def open_account(self, account_id: str, email: str, country: str) -> str:
        """Make an account for a receiver; its id there. Repeating it makes no second one."""

    async def onboarding_link(self, external_id: str, *, return_url: str, refresh_url: str) -> str:
        """An address, good once, where the receiver gives their details."""

    async def onboarding(self, external_id: str) -> Onboarding | None:
        """How far the receiver is; None if the rail knows no better than we do."""

    async def transfer(self, order: Order) -> str:
        """Move the money to the receiver's account; the transfer's id."""

    async def find_transfer(self, order: Order) -> str | None:
        """The transfer of this order, if there is one."""

    async def pay_out(self, order: Order) -> Receipt:
        """Send what was transferred on to the bank or card."""

    async def find_payout(self, order: Order) -> Receipt | None:
        """The payout of this attempt, if there is one."""

    async def report(self, order: Order, receipt: Receipt) -> PayoutReport:
        """What became of a payout."""

    async def reverse(self, order: Order, transfer_id: str) -> None:
        """Take a transfer back after its payout failed. Repeating it takes nothing more."""

    def event(self, body: bytes, signature: str | None, *, now: datetime) -> RailEvent:
        """Read a webhook.

        Raises:
            BadEventError: It is not the rail's, or too old.
        """

    async def close(self) -> None:
        """Close connections."""
