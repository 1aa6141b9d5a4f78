"""Payments by card through Stripe Checkout, with Stripe's own SDK.

Sources: https://docs.stripe.com/api/checkout/sessions, https://docs.stripe.com/payments/checkout
(what `checkout.session.completed` and the `async_payment` events mean),
https://docs.stripe.com/api/charges/object and https://docs.stripe.com/api/disputes/object.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from darkbloom_provider.coordinator.deposits.rail import (
    Checkout,
    CheckoutEvent,
    CheckoutOrder,
    CheckoutReport,
    Reversal,
)
from darkbloom_provider.coordinator.rails.rail import BadEventError, RailUnknownError
from darkbloom_provider.coordinator.rails.stripe_platform import (
    TIMEOUT_SECONDS,
    StripePlatform,
    answer,
    signed_document,
)
from darkbloom_provider.logs import Secret

_CURRENCY: Final = "usd"


class StripeCheckout:
    """One Stripe platform account, as far as it takes payments."""

    name = "stripe"
    sandbox = False

    def __init__(
        self,
        secret_key: Secret,
        webhook_secret: Secret | None,
        *,
        api_base: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self._webhook_secret = webhook_secret
        self._platform = StripePlatform(secret_key, api_base=api_base, timeout=timeout)

    async def open(self, order: CheckoutOrder) -> Checkout:
        """A Checkout session. Its key is the deposit's id: repeating the call makes no second."""
        metadata = {
            "app": "darkbloom",
            "platform": "eigeninference",
            "purchase_type": "inference_credits",
            "source": "coordinator",
            "coordinator_host": order.host,
            "billing_session_id": order.deposit_id,
            "consumer_key": order.account_id,
            "referral_code": order.referral_code,
        }
        params: Any = {
            "mode": "payment",
            "client_reference_id": order.deposit_id,
            "success_url": order.return_url,
            "cancel_url": order.return_url,
            "line_items": [
                {
                    "quantity": 1,
                    "price_data": {
                        "currency": _CURRENCY,
                        "unit_amount": order.cents,
                        "product_data": {"name": "Inference credit"},
                    },
                }
            ],
            "metadata": metadata,
            # The payment's own metadata is what news about refunds carries.
            "payment_intent_data": {"metadata": metadata},
        }
        if order.email:
            params["customer_email"] = order.email
        session = await answer(
            self._platform.client.v1.checkout.sessions.create_async(
                params, {"idempotency_key": f"dep-{order.deposit_id}"}
            )
        )
        if not session.url:
            raise RailUnknownError("Stripe gave no address to pay at")
        return Checkout(session.id, session.url)

    async def report(self, external_id: str) -> CheckoutReport | None:
        """The session as Stripe has it now."""
        session = await answer(
            self._platform.client.v1.checkout.sessions.retrieve_async(external_id)
        )
        return _report(session.to_dict())

    def event(self, body: bytes, signature: str | None, *, now: datetime) -> CheckoutEvent:
        """Check the signature and its age, and read what it is about."""
        return _event(signed_document(body, signature, self._webhook_secret, now=now))

    async def close(self) -> None:
        """Close the connections to Stripe."""
        await self._platform.close()


def _report(session: dict[str, Any]) -> CheckoutReport:
    if session.get("payment_status") == "paid":
        cents, currency = session.get("amount_total"), session.get("currency")
        # We ask for dollars only. Anything else is not a payment of ours, or not one we can book.
        if not isinstance(cents, int) or isinstance(cents, bool) or cents <= 0:
            raise BadEventError("The payment has no amount")
        if currency != _CURRENCY:
            raise BadEventError("The payment is not in US dollars")
        return CheckoutReport("paid", cents, _id_of(session.get("payment_intent")))
    return CheckoutReport("expired" if session.get("status") == "expired" else "open")


def _event(document: dict[str, Any]) -> CheckoutEvent:
    """Only what it is about; an event of an unknown type is about nothing."""
    event_id, kind = str(document["id"]), str(document.get("type", ""))
    data = document.get("data")
    subject = data.get("object") if isinstance(data, dict) else None
    subject = subject if isinstance(subject, dict) else {}
    metadata = subject.get("metadata")
    deposit_id = metadata.get("billing_session_id") if isinstance(metadata, dict) else None
    deposit_id = deposit_id if isinstance(deposit_id, str) else ""
    match kind:
        case (
            "checkout.session.completed"
            | "checkout.session.async_payment_succeeded"
            | "checkout.session.expired"
        ):
            return CheckoutEvent(
                event_id,
                kind,
                deposit_id,
                external_id=_id_of(subject.get("id")),
                report=_report(subject),
            )
        case "charge.refunded":
            return CheckoutEvent(
                event_id,
                kind,
                deposit_id,
                payment_id=_id_of(subject.get("payment_intent")),
                reversal=Reversal(refunded=_cents(subject.get("amount_refunded"))),
            )
        case "charge.dispute.created" | "charge.dispute.closed":
            # One that was won is none any more.
            won = subject.get("status") in {"won", "warning_closed"}
            return CheckoutEvent(
                event_id,
                kind,
                deposit_id,
                payment_id=_id_of(subject.get("payment_intent")),
                reversal=Reversal(disputed=0 if won else _cents(subject.get("amount"))),
            )
        case _:
            return CheckoutEvent(event_id, kind)


def _id_of(value: object) -> str | None:
    """An id, given as itself or as the object it belongs to."""
    if isinstance(value, dict):
        value = value.get("id")
    return value if isinstance(value, str) and value else None


def _cents(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadEventError("The amount makes no sense")
    return value
