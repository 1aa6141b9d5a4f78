"""The sandbox's checkout: a page that asks whether to pretend that somebody paid."""

from __future__ import annotations

import html
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.deposits import ledger, sandbox
from darkbloom_provider.coordinator.deposits.ledger import Deposit
from darkbloom_provider.coordinator.deposits.routes import RETURN_PATH
from darkbloom_provider.coordinator.deposits.sandbox import CHECKOUT_PATH
from darkbloom_provider.coordinator.rails.sandbox_pages import sandbox_page
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ANYONE
from darkbloom_provider.coordinator.rest.replies import read_body
from darkbloom_provider.coordinator.rest.shapes import Operation
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.protocol.money import format_usd

_TITLE: Final = "Buy credit"


def endpoints(services: Services) -> list[Endpoint]:
    """The page and its form. Whoever holds the link is whom it was made for."""
    page = _Page(services)
    path, media_type = f"{CHECKOUT_PATH}{{token}}", "text/html"
    show = Operation("The sandbox's checkout", None, errors=(404,), media_type=media_type)
    choose = Operation("Pay on it, or not", None, errors=(400, 404), media_type=media_type)
    return [
        Endpoint("GET", path, page.show, ANYONE, show),
        Endpoint("POST", path, page.choose, ANYONE, choose),
    ]


class _Page:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def _deposit(self, request: Request) -> Deposit | None:
        """The deposit that is to be paid; none if it was, or if this is no sandbox."""
        desk, wanted = self._services.deposits, request.path_params["token"]
        if desk is None or not desk.rail.sandbox:
            return None
        found = await self._services.db.read(
            lambda c: ledger.find(c, desk.rail.name, deposit_id=wanted)
        )
        return found if found is not None and found.status == "pending" else None

    async def show(self, request: Request) -> Response:
        deposit = await self._deposit(request)
        if deposit is None:
            return _used_up()
        amount = html.escape(format_usd(deposit.amount, 2))
        return sandbox_page(
            _TITLE,
            f"<p>Credit for {amount}. It can be spent here and not withdrawn.</p>"
            '<form method="post">'
            f'<p><button name="choice" value="pay">Pretend to pay {amount}</button></p>'
            '<p><button name="choice" value="cancel">Do not pay</button></p></form>',
        )

    async def choose(self, request: Request) -> Response:
        deposit, desk = await self._deposit(request), self._services.deposits
        if deposit is None or desk is None:
            return _used_up()
        body = (await read_body(request)).decode("ascii", "replace")
        choice = parse_qs(body).get("choice", [""])[0]
        if choice not in {"pay", "cancel"}:
            return sandbox_page(
                _TITLE, "<p>Please go back and choose one.</p>", HTTPStatus.BAD_REQUEST
            )
        paid = choice == "pay"
        await desk.hear(sandbox.chosen(deposit.id, deposit.cents, paid=paid))
        said = "The credit is in the account." if paid else "Nothing was bought."
        return sandbox_page(
            _TITLE, f'<p>{said}</p><p><a href="{RETURN_PATH}?id={deposit.id}">Continue</a></p>'
        )


def _used_up() -> Response:
    return sandbox_page(
        _TITLE, "<p>There is nothing to pay here any more.</p>", HTTPStatus.NOT_FOUND
    )
