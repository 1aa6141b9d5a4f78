"""Billing and usage: what an account has to spend, and what it spent."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

from sqlalchemy import Connection
from starlette.responses import Response

from darkbloom_provider.coordinator.console.gate import Page
from darkbloom_provider.coordinator.console.views import billing as views
from darkbloom_provider.coordinator.console.views.billing import BillingView, CreditForm
from darkbloom_provider.coordinator.console.views.choice import ROWS, read_page
from darkbloom_provider.coordinator.console.visit import Visit, go, leave, passing
from darkbloom_provider.coordinator.deposits.routes import RETURN_PATH
from darkbloom_provider.coordinator.earnings import owner_views
from darkbloom_provider.coordinator.ledger import books

KEY_BYTES: Final = 16


async def show(visit: Visit) -> Response:
    """Balance, spending over time, and every request."""
    paid = visit.query.get("deposit", "")
    if paid:
        # The payment service's own word may come later than the payer.
        query = {"id": paid, "refresh": "1"}
        await visit.ask("GET", "/v1/billing/stripe/session", query=query)
    return await _page(visit)


async def buy(visit: Visit) -> Response:
    """Go to where credit is paid for."""
    reply = await visit.ask(
        "POST",
        "/v1/billing/stripe/create-session",
        {"amount_usd": visit.form.get("amount", ""), "email": visit.owner.email},
        headers={"Idempotency-Key": visit.form.get("key", "")},
    )
    if not reply.ok:
        return await _page(visit, error=reply.message, status=reply.status)
    return leave(visit, str(reply.document["url"]))


async def come_back(visit: Visit) -> Response:
    """Where the payment service sends people back to, as `payouts.come_back` does."""
    query = urlencode({"done": "bought", "deposit": visit.query.get("id", "")})
    return passing(visit, f"/billing?{query}", "your balance")


async def redeem(visit: Visit) -> Response:
    """Turn an invite code into credit."""
    reply = await visit.ask("POST", "/v1/invite/redeem", {"code": visit.form.get("code", "")})
    if not reply.ok:
        return await _page(visit, error=reply.message, status=reply.status)
    return go("/billing", done="redeemed")


async def _page(visit: Visit, *, error: str = "", status: int = HTTPStatus.OK) -> Response:
    account, now = visit.owner.account_id, visit.console.services.clock()
    order, page = views.order_of(visit.query.get("order", "")), read_page(visit.query)

    desk = visit.console.services.deposits
    form = None
    if desk is not None:
        form = CreditForm(visit.console.services.random_hex(KEY_BYTES), desk.rail.sandbox)

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
            buy=form,
            now=now,
        )

    return visit.page("billing.html", await visit.read(view), error=error, status=status)


PAGES: Final = (
    Page("/billing", show),
    Page("/billing/redeem", None, redeem),
    Page("/billing/buy", None, buy),
    Page(RETURN_PATH, come_back, private=False),
)
