"""The sandbox's set-up page: where a pretended bank account is chosen. It leads nowhere else."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Callable
from datetime import datetime
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from darkbloom_provider.coordinator.database import Database
from darkbloom_provider.coordinator.endpoints import Endpoint
from darkbloom_provider.coordinator.guards import ANYONE
from darkbloom_provider.coordinator.payouts import receivers
from darkbloom_provider.coordinator.payouts.sandbox import DESTINATIONS, SETUP_PATH, SandboxSetup
from darkbloom_provider.coordinator.replies import read_body
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.coordinator.shapes import Operation

_STYLE: Final = (
    ":root{color-scheme:light dark}"
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:32rem;margin:2rem auto;padding:0 1rem}"
    "button{font:inherit;font-weight:600;padding:.75rem 1rem;width:100%}"
    ".sandbox{border-left:4px solid;padding:.75rem 1rem}"
)
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

_HEADERS: Final = {
    # The one style on the page, by its hash: nothing else is let in.
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def endpoints(services: Services) -> list[Endpoint]:
    """The page and its form. Whoever holds the link is whom it was made for."""
    page = _Page(services.sandbox_setup, services.db, services.clock)
    path, media_type = f"{SETUP_PATH}{{token}}", "text/html"
    show = Operation("The sandbox's set-up page", None, errors=(404,), media_type=media_type)
    choose = Operation("Choose on it", None, errors=(400, 404), media_type=media_type)
    return [
        Endpoint("GET", path, page.show, ANYONE, show),
        Endpoint("POST", path, page.choose, ANYONE, choose),
    ]


class _Page:
    def __init__(
        self, setup: SandboxSetup, database: Database, now: Callable[[], datetime]
    ) -> None:
        self._setup = setup
        self._database = database
        self._now = now

    async def show(self, request: Request) -> Response:
        if self._setup.visit(request.path_params["token"]) is None:
            return _used_up()
        choices = "".join(
            f'<p><button name="destination" value="{name}">{html.escape(choice.label)}, ending in '
            f"{choice.onboarding.destination_last4}</button></p>"
            for name, choice in DESTINATIONS.items()
        )
        return _page(f'<p>Where should payouts go?</p><form method="post">{choices}</form>')

    async def choose(self, request: Request) -> Response:
        token, now = request.path_params["token"], self._now()
        visit = self._setup.visit(token)
        if visit is None:
            return _used_up()
        body = (await read_body(request)).decode("ascii", "replace")
        choice = DESTINATIONS.get(parse_qs(body).get("destination", [""])[0])
        if choice is None:
            return _page("<p>Please go back and choose one.</p>", HTTPStatus.BAD_REQUEST)
        await self._database.write(
            lambda c: receivers.note_onboarding(
                c, "sandbox", visit.external_id, choice.onboarding, now=now
            )
        )
        self._setup.use_up(token)
        back = html.escape(visit.return_url)
        return _page(f'<p>Payouts are set up.</p><p><a href="{back}">Continue</a></p>')


def _used_up() -> Response:
    return _page(
        "<p>This link was used or has expired. Choose Set up payouts again.</p>",
        HTTPStatus.NOT_FOUND,
    )


def _page(content: str, status: int = HTTPStatus.OK) -> Response:
    document = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Sandbox payouts</title><style>{_STYLE}</style><main><h1>Set up payouts</h1>"
        '<p class="sandbox"><strong>Sandbox:</strong> no real money moves, and no bank is asked.'
        f"</p>{content}</main></html>"
    )
    return HTMLResponse(document, status, headers=_HEADERS)
