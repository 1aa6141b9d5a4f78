"""One Stripe platform account through Stripe's own SDK: how it is asked, and whom it is believed.

Sources: https://docs.stripe.com/api/idempotent_requests, https://docs.stripe.com/webhooks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from darkbloom_provider.coordinator.rails.rail import (
    BadEventError,
    RailRefusedError,
    RailUnknownError,
)
from darkbloom_provider.errors import UsageError
from darkbloom_provider.logs import Secret
from darkbloom_provider.protocol.openai import InvalidRequestError, parse_object

try:
    import stripe
except ImportError as error:
    raise UsageError(
        "Payouts through Stripe need its SDK, which is not installed",
        why=f"the package {error.name} is missing",
        next_step="pip install 'darkbloom-provider[stripe]'",
    ) from None

T = TypeVar("T")

TIMEOUT_SECONDS: Final = 20.0
SIGNATURE_AGE: Final = timedelta(minutes=5)
_MAY_HAVE_HAPPENED: Final = frozenset({409, 429})
"""Statuses below 500 that do not mean no: another call with the key is running; ask later."""


class _Http(stripe.HTTPXClient):
    """The SDK's client, without the deprecated way in which it hands httpx a body."""

    def _get_request_args_kwargs(
        self, method: str, url: str, headers: Mapping[str, str], post_data: str | None
    ) -> list[Any]:
        (target, options) = super()._get_request_args_kwargs(method, url, headers, post_data)
        options.pop("data", None)
        return [target, {**options, "content": post_data or ""}]


class StripePlatform:
    """The account's key, and the connections it is used over."""

    def __init__(
        self, secret_key: Secret, *, api_base: str | None = None, timeout: float = TIMEOUT_SECONDS
    ) -> None:
        # The SDK would otherwise report our latencies to its maker.
        stripe.enable_telemetry = False
        self._http = _Http(timeout=timeout)
        self.client = stripe.StripeClient(
            secret_key.reveal(),
            http_client=self._http,
            # We repeat calls ourselves, over restarts too.
            max_network_retries=0,
            base_addresses={"api": api_base} if api_base else {},
        )

    async def close(self) -> None:
        """Close the connections to Stripe."""
        await self._http.close_async()  # type: ignore[no-untyped-call]  # the SDK's


@asynccontextmanager
async def patiently() -> AsyncIterator[None]:
    """Within, the SDK's errors become a no (`RailRefusedError`) or a don't know."""
    try:
        yield
    except stripe.StripeError as error:
        status = error.http_status or 0
        code = error.code or type(error).__name__
        definite = 400 <= status < 500 and status not in _MAY_HAVE_HAPPENED  # noqa: PLR2004 - HTTP
        if definite and not isinstance(error, stripe.IdempotencyError):
            raise RailRefusedError(error.user_message or "Stripe refused", code=code) from error
        raise RailUnknownError(f"Stripe did not answer ({code})") from error


async def answer(call: Awaitable[T]) -> T:
    """What a call of the SDK returns.

    Raises:
        RailRefusedError: Stripe did nothing.
        RailUnknownError: Nobody knows what it did.
    """
    async with patiently():
        return await call


def signed_document(
    body: bytes, signature: str | None, secret: Secret | None, *, now: datetime
) -> dict[str, Any]:
    """A webhook's content, if Stripe signed it not long ago.

    Raises:
        BadEventError: It did not, or there is no secret to tell by.
    """
    if secret is None:
        raise BadEventError("No webhook secret is configured")
    try:
        text = body.decode("utf-8")
        stripe.WebhookSignature.verify_header(text, signature, secret.reveal())
        timestamp, _ = stripe.WebhookSignature._get_timestamp_and_signatures(  # noqa: SLF001 - the SDK checks the age against its own clock only
            signature or "", "v1"
        )
        document = parse_object(body)
    except (stripe.SignatureVerificationError, UnicodeDecodeError, InvalidRequestError):
        raise BadEventError("The signature does not fit the message") from None
    if abs(now - datetime.fromtimestamp(timestamp, UTC)) > SIGNATURE_AGE:
        raise BadEventError("The message was signed too long ago")
    if not document.get("id"):
        raise BadEventError("The message has no id")
    return document
