"""What a checkout is: the outside party where somebody pays for credit.

Making a checkout moves no money. Only its word that it was paid does, and that word comes at least
once, in any order, and perhaps before our own call was answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

CheckoutState = Literal["open", "paid", "expired"]


@dataclass(frozen=True, slots=True)
class CheckoutOrder:
    """One deposit, as a checkout needs to know it."""

    deposit_id: str
    account_id: str
    cents: int
    return_url: str
    """Where the payer goes afterwards, whether they paid or not."""
    email: str = ""
    referral_code: str = ""
    host: str = ""
    """This coordinator, for people who look at the payment later."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """A page, good once, where the payer pays."""

    external_id: str
    url: str


@dataclass(frozen=True, slots=True)
class CheckoutReport:
    """What became of a checkout. `cents` is what was really paid."""

    state: CheckoutState
    cents: int = 0
    payment_id: str | None = None


@dataclass(frozen=True, slots=True)
class Reversal:
    """Money of a payment that went back, or that a bank wants back. In cents, all told so far."""

    refunded: int | None = None
    disputed: int | None = None


@dataclass(frozen=True, slots=True)
class CheckoutEvent:
    """One signed message. What it is not about is None or empty."""

    id: str
    type: str
    deposit_id: str = ""
    """From our own metadata: known before the checkout's id has reached us."""
    external_id: str | None = None
    payment_id: str | None = None
    report: CheckoutReport | None = None
    reversal: Reversal | None = None


class CheckoutRail(Protocol):
    """Takes payments in.

    Every method that calls the rail raises `RailRefusedError` or `RailUnknownError`.
    """

    name: str
    sandbox: bool
    """Whether no money moves. Every reply and page says so."""

    async def open(self, order: CheckoutOrder) -> Checkout:
        """A checkout for a deposit. Repeating it makes no second one."""

    async def report(self, external_id: str) -> CheckoutReport | None:
        """What became of a checkout; None if the rail knows no better than we do."""

    def event(self, body: bytes, signature: str | None, *, now: datetime) -> CheckoutEvent:
        """Read a webhook.

        Raises:
            BadEventError: It is not the rail's, or too old.
        """

    async def close(self) -> None:
        """Close connections."""
