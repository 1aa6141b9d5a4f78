"""The sandbox's set-up page: where a pretended bank account is chosen. It leads nowhere else."""

from __future__ import annotations

import html
from collections.abc import Callable
from datetime import datetime
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.payouts import receivers
from darkbloom_provider.coordinator.payouts.sandbox import DESTINATIONS, SETUP_PATH, SandboxSetup
from darkbloom_provider.coordinator.rails.sandbox_pages import sandbox_page
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ANYONE
from darkbloom_provider.coordinator.rest.replies import read_body
from darkbloom_provider.coordinator.rest.shapes import Operation
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.coordinator.store.database import Database

_TITLE: Final = "Set up payouts"


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
        return sandbox_page(
            _TITLE, f'<p>Where should payouts go?</p><form method="post">{choices}</form>'
        )

    async def choose(self, request: Request) -> Response:
        token, now = request.path_params["token"], self._now()
        visit = self._setup.visit(token)
        if visit is None:
            return _used_up()
        body = (await read_body(request)).decode("ascii", "replace")
        choice = DESTINATIONS.get(parse_qs(body).get("destination", [""])[0])
        if choice is None:
            return sandbox_page(
                _TITLE, "<p>Please go back and choose one.</p>", HTTPStatus.BAD_REQUEST
            )
        await self._database.write(
            lambda c: receivers.note_onboarding(
                c, "sandbox", visit.external_id, choice.onboarding, now=now
            )
        )
        self._setup.use_up(token)
        back = html.escape(visit.return_url)
        return sandbox_page(
            _TITLE, f'<p>Payouts are set up.</p><p><a href="{back}">Continue</a></p>'
        )


def _used_up() -> Response:
    return sandbox_page(
        _TITLE,
        "<p>This link was used or has expired. Choose Set up payouts again.</p>",
        HTTPStatus.NOT_FOUND,
    )
