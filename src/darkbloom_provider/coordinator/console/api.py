"""The coordinator's API, called in this process on behalf of a visitor.

A form changes nothing by itself: it asks the API, with the visitor's session and from the visitor's
address, and so passes every gate, limit and idempotency key that any other caller passes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx
from starlette.types import ASGIApp

from darkbloom_provider.logs import Secret

_BASE = "http://coordinator"


@dataclass(frozen=True, slots=True)
class Reply:
    """What the API answered."""

    status: int
    document: dict[str, Any]

    @property
    def ok(self) -> bool:
        """Whether it did what it was asked."""
        return self.status < HTTPStatus.BAD_REQUEST

    @property
    def error_type(self) -> str:
        """The type of the error; empty if there is none."""
        return str(self.document.get("error", {}).get("type", ""))

    @property
    def message(self) -> str:
        """What to tell the visitor, as a sentence."""
        text = str(self.document.get("error", {}).get("message", "")) or "This did not work"
        return text[:1].upper() + text[1:]


@dataclass(frozen=True, slots=True)
class Api:
    """The API's application."""

    app: ASGIApp

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        session: Secret | None,
        client: tuple[str, int] | None,
        host: str | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request, from the address of the visitor."""
        transport = httpx.ASGITransport(
            self.app, raise_app_exceptions=False, client=client or ("", 0)
        )
        sent = dict(headers or {})
        if session is not None:
            sent["Authorization"] = f"Bearer {session.reveal()}"
        if host is not None:
            sent["Host"] = host
        async with httpx.AsyncClient(transport=transport, base_url=_BASE) as caller:
            reply = await caller.request(method, path, json=body, params=query, headers=sent)
        try:
            document = reply.json()
        except json.JSONDecodeError:
            document = {}
        return Reply(reply.status_code, document if isinstance(document, dict) else {})
