"""The rail that moves no money: for trying out a private network, and for tests.

It settles on a clock, and fails for the bank accounts that Stripe's documentation gives for tests
(https://docs.stripe.com/connect/testing#account-numbers): their last four digits decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from darkbloom_provider.coordinator.payouts.rail import (
    Onboarding,
    Order,
    PayoutReport,
    RailEvent,
    Receipt,
)
from darkbloom_provider.coordinator.rails.rail import BadEventError, RailRefusedError

DEFAULT_DELAY: Final = timedelta(hours=24)
SETUP_PATH: Final = "/sandbox/payouts/"
_TOKEN_BYTES: Final = 16
_MAX_LINKS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Destination:
    """A pretended bank account or card that the set-up page offers."""

    label: str
    onboarding: Onboarding
    failure: str = ""
    """Why payouts to it fail; empty if they arrive."""


def _bank(last4: str) -> Onboarding:
    return Onboarding("ready", "bank", last4)


DESTINATIONS: Final = {
    "bank": Destination("Bank account", _bank("4242")),
    "card": Destination("Debit card", Onboarding("ready", "card", "5556", instant_eligible=True)),
    "no_account": Destination(
        "Bank account that does not exist", _bank("1116"), "no_account: there is no such account"
    ),
    "account_closed": Destination(
        "Bank account that was closed", _bank("1113"), "account_closed: the account was closed"
    ),
}
_FAILURES: Final = {d.onboarding.destination_last4: d.failure for d in DESTINATIONS.values()}


class SandboxRail:
    """Pretends. All it knows follows from the order and the time."""

    name = "sandbox"
    sandbox = True
    patience = timedelta(0)
    key_lifetime = timedelta.max

    def __init__(
        self, now: Callable[[], datetime], *, base_url: str = "", delay: timedelta = DEFAULT_DELAY
    ) -> None:
        self._now = now
        self._base_url = base_url
        self._delay = delay

    async def open_account(self, account_id: str, email: str, country: str) -> str:  # noqa: ARG002 - the interface's
        """An id made of the receiver's address."""
        return "acct_mock_" + (email or account_id).replace("@", "_at_")

    async def onboarding_link(self, external_id: str, *, return_url: str, refresh_url: str) -> str:  # noqa: ARG002 - the interface's
        """The coordinator's own page. Never an address of the real rail."""
        return f"{self._base_url}{SETUP_PATH}"

    async def onboarding(self, external_id: str) -> Onboarding | None:  # noqa: ARG002 - the interface's
        """What was chosen on the page is in the ledger, and nowhere else."""
        return None

    async def transfer(self, order: Order) -> str:
        """Nothing moves."""
        return f"tr_mock_wd-tr-{order.withdrawal_id}"

    async def find_transfer(self, order: Order) -> str | None:
        """Always there."""
        return await self.transfer(order)

    async def pay_out(self, order: Order) -> Receipt:
        """Arrives after the delay."""
        if order.method == "instant" and _FAILURES.get(order.destination_last4):
            raise RailRefusedError("The destination takes no instant payouts", code="unsupported")
        return Receipt(f"po_mock_wd-po-{order.withdrawal_id}", self._now() + self._delay)

    async def find_payout(self, order: Order) -> Receipt | None:  # noqa: ARG002 - the interface's
        """None: a new one does no harm."""
        return None

    async def report(self, order: Order, receipt: Receipt) -> PayoutReport:
        """Paid or failed once its time has come."""
        if self._now() < receipt.arrival_at:
            return PayoutReport("in_transit")
        failure = _FAILURES.get(order.destination_last4, "")
        return PayoutReport("failed", failure) if failure else PayoutReport("paid")

    async def reverse(self, order: Order, transfer_id: str) -> None:
        """Nothing moved."""

    def event(self, body: bytes, signature: str | None, *, now: datetime) -> RailEvent:  # noqa: ARG002 - the interface's
        """Refused: nobody could have signed it."""
        raise BadEventError("The sandbox sends no webhooks")

    async def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class Visit:
    """Whose link it is, and where they go afterwards."""

    external_id: str
    return_url: str


class SandboxSetup:
    """Links to the page, each good until it was used or this process ends."""

    def __init__(self, random_hex: Callable[[int], str]) -> None:
        self._random_hex = random_hex
        self._visits: dict[str, Visit] = {}

    def link(self, base: str, external_id: str, return_url: str) -> str:
        """A new link for one receiver."""
        while len(self._visits) >= _MAX_LINKS:
            self._visits.pop(next(iter(self._visits)))
        token = self._random_hex(_TOKEN_BYTES)
        self._visits[token] = Visit(external_id, return_url)
        return base + token

    def visit(self, token: str) -> Visit | None:
        """Whose link this is."""
        return self._visits.get(token)

    def use_up(self, token: str) -> None:
        """A link is good once."""
        self._visits.pop(token, None)
