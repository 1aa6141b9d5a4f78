"""The checkout that takes no money: for trying out a private network, and for tests."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from darkbloom_provider.coordinator.deposits.rail import (
    Checkout,
    CheckoutEvent,
    CheckoutOrder,
    CheckoutReport,
)
from darkbloom_provider.coordinator.rails.rail import BadEventError

CHECKOUT_PATH: Final = "/sandbox/deposits/"


class SandboxCheckout:
    """Pretends. Whoever holds a checkout's link decides on its page whether it was paid."""

    name = "sandbox"
    sandbox = True

    def __init__(self, *, base_url: str = "") -> None:
        self._base_url = base_url

    async def open(self, order: CheckoutOrder) -> Checkout:
        """The coordinator's own page. Never an address of the real rail."""
        # The deposit's id is random, and only its owner is told: the link needs no other secret.
        return Checkout(
            f"cs_mock_{order.deposit_id}",
            f"{self._base_url}{CHECKOUT_PATH}{order.deposit_id}",
        )

    async def report(self, external_id: str) -> CheckoutReport | None:  # noqa: ARG002 - the interface's
        """What was chosen on the page is in the ledger, and nowhere else."""
        return None

    def event(self, body: bytes, signature: str | None, *, now: datetime) -> CheckoutEvent:  # noqa: ARG002 - the interface's
        """Refused: nobody could have signed it."""
        raise BadEventError("The sandbox sends no webhooks")

    async def close(self) -> None:
        """Nothing is open."""


def chosen(deposit_id: str, cents: int, *, paid: bool) -> CheckoutEvent:
    """What the page tells the desk."""
    report = CheckoutReport("paid", cents) if paid else CheckoutReport("expired")
    kind = f"sandbox.{report.state}"
    return CheckoutEvent(f"{kind}:{deposit_id}", kind, deposit_id, report=report)
