"""The endpoint where the rail tells what became of payouts."""

from __future__ import annotations

from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from darkbloom_provider.coordinator.payouts.endpoints import NOT_CONFIGURED, PayoutEndpoints
from darkbloom_provider.coordinator.rails import webhooks
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ANYONE
from darkbloom_provider.coordinator.rest.shapes import ANYTHING, BOOLEAN, TEXT, Operation, record
from darkbloom_provider.coordinator.services import Services


def endpoints(services: Services) -> list[Endpoint]:
    """The endpoint, bound to the coordinator's parts."""
    return [
        Endpoint(
            "POST",
            "/v1/billing/stripe/connect/webhook",
            _Webhook(services).receive,
            ANYONE,
            Operation(
                "What Stripe tells of payouts, signed by it. Errors are plain text",
                record(received=BOOLEAN),
                ANYTHING,
                headers={"Stripe-Signature": TEXT},
                errors=(503,),
                error_media_type="text/plain",
            ),
        ),
    ]


class _Webhook(PayoutEndpoints):
    """Where the rail tells what became of payouts. Errors are plain text, as Stripe shows them."""

    async def receive(self, request: Request) -> Response:
        desk = self.services.payouts
        if desk is None:
            return PlainTextResponse(NOT_CONFIGURED, HTTPStatus.SERVICE_UNAVAILABLE)
        return await webhooks.received(request, desk, now=self.services.clock())
