"""Billing and usage: what an account has to spend, and what it spent."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from sqlalchemy import Connection
from starlette.responses import Response

from darkbloom_provider.coordinator import books, owner_views
from darkbloom_provider.coordinator.console.gate import Page
from darkbloom_provider.coordinator.console.views import billing as views
from darkbloom_provider.coordinator.console.views.billing import BillingView
from darkbloom_provider.coordinator.console.views.choice import ROWS, read_page
from darkbloom_provider.coordinator.console.visit import Visit, go


async def show(visit: Visit) -> Response:
    """Balance, spending over time, and every request."""
    return await _page(visit)


async def redeem(visit: Visit) -> Response:
    """Turn an invite code into credit."""
    reply = await visit.ask("POST", "/v1/invite/redeem", {"code": visit.form.get("code", "")})
    if not reply.ok:
        return await _page(visit, error=reply.message, status=reply.status)
    return go("/billing", done="redeemed")


async def _page(visit: Visit, *, error: str = "", status: int = HTTPStatus.OK) -> Response:
    account, now = visit.owner.account_id, visit.console.services.clock()
    order, page = views.order_of(visit.query.get("order", "")), read_page(visit.query)

    def view(connection: Connection) -> BillingView:
        return views.view(
            books.balance_of(connection, account),
            owner_views.spending(connection, account),
            owner_views.spending_series(connection, account, since=views.period(now)),
            owner_views.usage_page(
                connection, account, order=order, limit=ROWS, offset=(page - 1) * ROWS
            ),
            order=order,
            page=page,
            now=now,
        )

    return visit.page("billing.html", await visit.read(view), error=error, status=status)


PAGES: Final = (Page("/billing", show), Page("/billing/redeem", None, redeem))
