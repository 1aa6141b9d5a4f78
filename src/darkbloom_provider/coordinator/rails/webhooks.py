"""What a rail tells by itself, over HTTP: signed, at least once, in any order."""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus
from typing import Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from darkbloom_provider.coordinator.rails.rail import MAX_EVENT_BYTES, BadEventError
from darkbloom_provider.coordinator.rest.replies import json_reply, read_body

Event = TypeVar("Event")
Told_co = TypeVar("Told_co", covariant=True)


class SignedEvents(Protocol[Told_co]):
    """The rail's end."""

    def event(self, body: bytes, signature: str | None, *, now: datetime) -> Told_co:
        """What it says. Raises `BadEventError` if it did not sign it."""


class Listener(Protocol[Event]):
    """A desk of ours."""

    @property
    def rail(self) -> SignedEvents[Event]:
        """Who tells it."""

    async def hear(self, event: Event) -> object:
        """Take it in; again is harmless."""


async def received(request: Request, desk: Listener[Event], *, now: datetime) -> Response:
    """Let a desk hear one webhook. Errors are plain text, as Stripe shows them."""
    body = await read_body(request, limit=MAX_EVENT_BYTES)
    signature = request.headers.get("stripe-signature")
    try:
        event = desk.rail.event(body, signature, now=now)
    except BadEventError as error:
        return PlainTextResponse(error.what, HTTPStatus.BAD_REQUEST)
    await desk.hear(event)
    return json_reply({"received": True})
