"""Payouts: where the money goes, what a withdrawal costs, and what became of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from darkbloom_provider.coordinator.payouts.rail import ETA
from darkbloom_provider.coordinator.rails.rail import MICRO_PER_CENT
from darkbloom_provider.protocol.money import (
    MICRO_PER_USD,
    decimal_usd,
    format_usd,
    parse_usd,
)

DEFAULT_MINIMUM: Final = 1_000_000

State = Literal["off", "none", "pending", "restricted", "rejected", "ready"]
Tone = Literal["good", "wait", "bad"]

_BADGES: Final[Mapping[State, tuple[str, Tone]]] = {
    "off": ("Not available", "wait"),
    "none": ("Not set up", "wait"),
    "pending": ("Pending", "wait"),
    "restricted": ("Action needed", "bad"),
    "rejected": ("Action needed", "bad"),
    "ready": ("Ready", "good"),
}


@dataclass(frozen=True, slots=True)
class PayoutPanel:
    """How far somebody's payout account is. Amounts in micro-USD."""

    state: State
    badge: str
    tone: Tone
    sandbox: bool = False
    """No money moves."""
    destination: str = ""
    instant: bool = False
    currently_due: tuple[str, ...] = ()
    minimum: int = DEFAULT_MINIMUM
    instant_fee_bps: int = 0
    instant_fee_minimum: int = 0
    withdrawable: int = 0

    @property
    def can_withdraw(self) -> bool:
        """Whether there is enough, and somewhere to send it."""
        return self.state == "ready" and self.withdrawable >= self.minimum

    @property
    def instant_price(self) -> str:
        """What instant costs, in words."""
        percent = f"{self.instant_fee_bps / 100:g} %"
        return f"{percent}, at least {format_usd(self.instant_fee_minimum, 2)}"


@dataclass(frozen=True, slots=True)
class WithdrawalRow:
    """One withdrawal as its owner sees it."""

    created_at: datetime
    amount: int
    fee: int
    net: int
    method: str
    status: str
    tone: Tone
    refunded: bool
    sandbox: bool
    destination: str
    reason: str


@dataclass(frozen=True, slots=True)
class Preview:
    """What a withdrawal would come to."""

    amount: int
    fee: int
    net: int
    method: str
    eta: str
    amount_text: str


@dataclass(frozen=True, slots=True)
class WithdrawView:
    """The withdrawal form, and its preview once there is something to preview."""

    panel: PayoutPanel
    amount_text: str
    method: str
    preview: Preview | None
    key: str
    """Makes sending it twice the same as sending it once."""


def panel(status: Mapping[str, Any], withdrawable: int) -> PayoutPanel:
    """The panel, from the reply of `/v1/billing/stripe/status`."""
    state: State = "off"
    if status.get("configured"):
        # A status we do not know yet is one that is not finished.
        named = status.get("status") if status.get("has_account") else "none"
        state = next((known for known in _BADGES if known == named), "pending")
    badge, tone = _BADGES[state]
    return PayoutPanel(
        state=state,
        badge=badge,
        tone=tone,
        sandbox=status.get("sandbox") is True,
        destination=destination(status),
        instant=status.get("instant_eligible") is True,
        currently_due=tuple(in_words(str(item)) for item in status.get("currently_due") or ()),
        minimum=int(status.get("min_withdraw_micro_usd") or DEFAULT_MINIMUM),
        instant_fee_bps=int(status.get("instant_fee_bps") or 0),
        instant_fee_minimum=round((status.get("instant_fee_min_usd") or 0) * MICRO_PER_USD),
        withdrawable=withdrawable,
    )


def in_words(requirement: str) -> str:
    """What Stripe still asks for, by the name of its field.

    >>> in_words("individual.verification.document"), in_words("external_account")
    ('individual verification document', 'external account')
    """
    return requirement.replace(".", " ").replace("_", " ")


def destination(document: Mapping[str, Any]) -> str:
    """Where money goes, in words; empty if nobody has said."""
    last4 = document.get("destination_last4") or ""
    kind = {"bank": "Bank account", "card": "Debit card"}.get(
        document.get("destination_type") or "", "Account"
    )
    return f"{kind} ending in {last4}" if last4 else ""


def suggested_amount(panel: PayoutPanel) -> str:
    """All that can be withdrawn, in whole cents, never rounded up."""
    return decimal_usd(max(panel.withdrawable, 0) // MICRO_PER_CENT * MICRO_PER_CENT, 2)


def preview(panel: PayoutPanel, amount_text: str, method: str) -> Preview:
    """What a withdrawal would come to.

    Raises:
        ValueError: In words for the visitor: why it cannot be asked for.
    """
    try:
        amount = parse_usd(amount_text.strip().removeprefix("$"))
    except ValueError as error:
        raise ValueError(f"The amount is {error}") from None
    eta = next((text for name, text in ETA.items() if name == method), None)
    if eta is None:
        raise ValueError("Choose standard or instant")
    if method == "instant" and not panel.instant:
        raise ValueError("Instant payouts need a debit card as the destination")
    if amount < panel.minimum:
        raise ValueError(f"The least that can be withdrawn is {format_usd(panel.minimum, 2)}")
    if amount > panel.withdrawable:
        raise ValueError(f"Only {format_usd(panel.withdrawable)} can be withdrawn")
    fee = fee_of(panel, amount, method)
    if amount - fee < MICRO_PER_CENT:
        raise ValueError("The fee would leave nothing of this amount")
    return Preview(amount, fee, amount - fee, method, eta, decimal_usd(amount))


def fee_of(panel: PayoutPanel, amount: int, method: str) -> int:
    """The fee of a withdrawal, in micro-USD, as the coordinator will take it."""
    if method != "instant":
        return 0
    return max(amount * panel.instant_fee_bps // 10_000, panel.instant_fee_minimum)


def withdrawals(rows: Sequence[Mapping[str, Any]]) -> tuple[WithdrawalRow, ...]:
    """Withdrawals, from the reply of `/v1/billing/stripe/withdrawals`."""
    return tuple(_withdrawal(row) for row in rows)


def _withdrawal(row: Mapping[str, Any]) -> WithdrawalRow:
    status = str(row["status"])
    tones: dict[str, Tone] = {"paid": "good", "failed": "bad"}
    return WithdrawalRow(
        created_at=datetime.fromisoformat(row["created_at"]),
        amount=row["amount_micro_usd"],
        fee=row["fee_micro_usd"],
        net=row["net_micro_usd"],
        method=str(row["method"]),
        status=status if status in tones else "in progress",
        tone=tones.get(status, "wait"),
        refunded=row.get("refunded") is True,
        sandbox=row.get("sandbox") is True,
        destination=destination(row),
        reason=str(row.get("failure_reason") or ""),
    )
