"""The rail to real bank accounts: Stripe Connect with Express accounts, through Stripe's own SDK.

Money goes in two steps, each with an idempotency key made of the withdrawal's id: a transfer from
our balance to the receiver's account (`wd-tr-<id>`), and a payout from there to the bank or card
(`wd-po-<id>`). Both carry the withdrawal's id as metadata, so that news about them can be placed
before the answer to our own call has come, and looked up after Stripe has forgotten the keys.

Sources: https://docs.stripe.com/connect/express-accounts, https://docs.stripe.com/api/transfers,
https://docs.stripe.com/api/payouts, https://docs.stripe.com/api/idempotent_requests (keys live for
at least 24 hours, and a key's first result is repeated, errors included),
https://docs.stripe.com/webhooks (signature; at least once, in any order).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, cast

from darkbloom_provider.coordinator.payouts.rail import (
    Onboarding,
    Order,
    PayoutReport,
    RailEvent,
    Receipt,
)
from darkbloom_provider.coordinator.rails.rail import RailRefusedError
from darkbloom_provider.coordinator.rails.stripe_platform import (
    SIGNATURE_AGE,
    TIMEOUT_SECONDS,
    StripePlatform,
    answer,
    patiently,
    signed_document,
)
from darkbloom_provider.logs import Secret

if TYPE_CHECKING:
    import stripe

_KEY_LIFETIME: Final = timedelta(hours=20)
"""Stripe keeps keys for 24 hours. Earlier, to be sure."""
_PATIENCE: Final = timedelta(hours=1)
_LISTED: Final = 100


class StripeRail:
    """One Stripe platform account."""

    name = "stripe"
    sandbox = False
    patience = _PATIENCE
    key_lifetime = _KEY_LIFETIME

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
        self._client = self._platform.client

    async def open_account(self, account_id: str, email: str, country: str) -> str:
        """An Express account with manual payouts. One key for one person: no second is made."""
        account = await answer(
            self._client.v1.accounts.create_async(
                {
                    "type": "express",
                    "country": country,
                    "email": email,
                    "business_type": "individual",
                    "capabilities": {
                        "transfers": {"requested": True},
                        "card_payments": {"requested": True},
                    },
                    "settings": {"payouts": {"schedule": {"interval": "manual"}}},
                    "metadata": {"account_id": account_id},
                },
                {"idempotency_key": f"acct-{account_id}-{country}"},
            )
        )
        return account.id

    async def onboarding_link(self, external_id: str, *, return_url: str, refresh_url: str) -> str:
        """Stripe's page, good once."""
        link = await answer(
            self._client.v1.account_links.create_async(
                {
                    "account": external_id,
                    "type": "account_onboarding",
                    "collection_options": {"fields": "eventually_due"},
                    "return_url": return_url,
                    "refresh_url": refresh_url,
                }
            )
        )
        return link.url

    async def onboarding(self, external_id: str) -> Onboarding | None:
        """As Stripe has it now."""
        account = await answer(self._client.v1.accounts.retrieve_async(external_id))
        return onboarding_of(account.to_dict())

    async def transfer(self, order: Order) -> str:
        """From our balance to the receiver's."""
        transfer = await answer(
            self._client.v1.transfers.create_async(
                {
                    "amount": order.cents,
                    "currency": "usd",
                    "destination": order.external_id,
                    "transfer_group": _group(order),
                    "metadata": {"withdrawal_id": order.withdrawal_id},
                },
                {"idempotency_key": f"wd-tr-{order.withdrawal_id}"},
            )
        )
        return transfer.id

    async def find_transfer(self, order: Order) -> str | None:
        """By its group, which no other withdrawal has."""
        found = await answer(
            self._client.v1.transfers.list_async({"transfer_group": _group(order), "limit": 1})
        )
        return found.data[0].id if found.data else None

    async def pay_out(self, order: Order) -> Receipt:
        """From the receiver's balance to their bank or card."""
        attempt = f"-{order.attempt}" if order.attempt else ""
        payout = await answer(
            self._client.v1.payouts.create_async(
                {
                    "amount": order.cents,
                    "currency": "usd",
                    "method": order.method,
                    "metadata": {"withdrawal_id": order.withdrawal_id},
                },
                {
                    "stripe_account": order.external_id,
                    "idempotency_key": f"wd-po-{order.withdrawal_id}{attempt}",
                },
            )
        )
        return _receipt(payout)

    async def find_payout(self, order: Order) -> Receipt | None:
        """By its metadata, among the receiver's payouts since the withdrawal began."""
        since = int((order.created_at - SIGNATURE_AGE).timestamp())
        found = await answer(
            self._client.v1.payouts.list_async(
                {"created": {"gte": since}, "limit": _LISTED},
                {"stripe_account": order.external_id},
            )
        )
        async with patiently():
            async for payout in found.auto_paging_iter():
                metadata: dict[str, str] = payout.to_dict().get("metadata") or {}
                if metadata.get("withdrawal_id") == order.withdrawal_id:
                    return _receipt(payout)
        return None

    async def report(self, order: Order, receipt: Receipt) -> PayoutReport:
        """The payout's status."""
        payout = await answer(
            self._client.v1.payouts.retrieve_async(
                receipt.payout_id, options={"stripe_account": order.external_id}
            )
        )
        return _report(payout.to_dict())

    async def reverse(self, order: Order, transfer_id: str) -> None:
        """All of the transfer, back to our balance."""
        try:
            await answer(
                self._client.v1.transfers.reversals.create_async(
                    transfer_id,
                    {"metadata": {"withdrawal_id": order.withdrawal_id}},
                    {"idempotency_key": f"wd-rv-{order.withdrawal_id}"},
                )
            )
        except RailRefusedError:
            # Perhaps because it is done: by an earlier call, or by hand on Stripe's pages.
            transfer = await answer(self._client.v1.transfers.retrieve_async(transfer_id))
            if not transfer.reversed:
                raise

    def event(self, body: bytes, signature: str | None, *, now: datetime) -> RailEvent:
        """Check the signature and its age, and read what it is about."""
        document = signed_document(body, signature, self._webhook_secret, now=now)
        return _event(document)

    async def close(self) -> None:
        """Close the connections to Stripe."""
        await self._platform.close()


def _group(order: Order) -> str:
    return f"wd-{order.withdrawal_id}"


def _receipt(payout: stripe.Payout) -> Receipt:
    return Receipt(payout.id, datetime.fromtimestamp(payout.arrival_date, UTC))


def _report(payout: dict[str, Any]) -> PayoutReport:
    match payout.get("status"):
        case "paid":
            return PayoutReport("paid")
        case "failed" | "canceled" as status:
            code = payout.get("failure_code") or f"payout_{status}"
            return PayoutReport("failed", f"{code}: {payout.get('failure_message') or status}")
        case _:
            return PayoutReport("in_transit")


def onboarding_of(account: dict[str, Any]) -> Onboarding:
    """How far a receiver is, from Stripe's account object. The first rule that fits wins."""
    requirements = account.get("requirements") or {}
    due = tuple(requirements.get("currently_due") or ())
    destinations = (account.get("external_accounts") or {}).get("data") or []
    chosen = next(
        (d for d in destinations if d.get("default_for_currency")),
        destinations[0] if destinations else {},
    )
    kind = {"bank_account": "bank", "card": "card"}.get(chosen.get("object", ""), "")
    if (requirements.get("disabled_reason") or "").startswith("rejected"):
        status = "rejected"
    elif account.get("payouts_enabled"):
        status = "ready"
    elif account.get("details_submitted") and due:
        status = "restricted"
    else:
        status = "pending"
    return Onboarding(
        status=cast("Any", status),
        destination_type=cast("Any", kind),
        destination_last4=chosen.get("last4") or "",
        instant_eligible=kind == "card" and chosen.get("funding") == "debit",
        currently_due=due,
    )


def _event(document: dict[str, Any]) -> RailEvent:
    """Only what it is about; an event of an unknown type is about nothing."""
    subject = (document.get("data") or {}).get("object") or {}
    kind = str(document.get("type", ""))
    event_id, external_id = str(document.get("id", "")), str(document.get("account") or "")
    withdrawal_id = str((subject.get("metadata") or {}).get("withdrawal_id") or "")
    match kind:
        case "account.updated":
            return RailEvent(
                event_id,
                kind,
                external_id or str(subject.get("id", "")),
                onboarding=onboarding_of(subject),
            )
        case "payout.paid" | "payout.failed" | "payout.canceled":
            # By the type: the object inside is as it was when the event was made.
            reported = subject | {"status": kind.partition(".")[2]}
            return RailEvent(
                event_id,
                kind,
                external_id,
                withdrawal_id,
                payout_id=str(subject.get("id", "")),
                report=_report(reported),
            )
        case "transfer.reversed" if subject.get("reversed"):  # All of it, not a part.
            return RailEvent(
                event_id,
                kind,
                withdrawal_id=withdrawal_id,
                transfer_id=str(subject.get("id", "")),
                report=PayoutReport("failed", "transfer_reversed"),
            )
        case _:
            return RailEvent(event_id, kind)
