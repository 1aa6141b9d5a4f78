"""Setting up payouts, withdrawing, and the list of withdrawals."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from starlette.responses import Response

from darkbloom_provider.coordinator.console.gate import Page
from darkbloom_provider.coordinator.console.views import payouts as views
from darkbloom_provider.coordinator.console.views.payouts import (
    PayoutPanel,
    Preview,
    WithdrawalRow,
    WithdrawView,
)
from darkbloom_provider.coordinator.console.visit import Visit, go, leave, passing
from darkbloom_provider.coordinator.ledger import books

MAX_WITHDRAWALS: Final = 200
KEY_BYTES: Final = 16
RETURN_PATH: Final = "/earn/payouts/return"


async def payout_state(
    visit: Visit, withdrawable: int, *, refresh: bool = False
) -> tuple[PayoutPanel, tuple[WithdrawalRow, ...]]:
    """How far the visitor's payout account is, and their withdrawals, newest first."""
    query = {"refresh": "1"} if refresh else None
    status = await visit.ask("GET", "/v1/billing/stripe/status", query=query)
    panel = views.panel(status.document if status.ok else {}, withdrawable)
    if panel.state == "off":
        return panel, ()
    listed = await visit.ask(
        "GET", "/v1/billing/stripe/withdrawals", query={"limit": str(MAX_WITHDRAWALS)}
    )
    rows = listed.document.get("withdrawals", []) if listed.ok else []
    return panel, views.withdrawals(rows)


async def set_up(visit: Visit) -> Response:
    """Begin or go on with telling the payout service who and where one is."""
    wanted = {"return_url": f"{visit.base_url}{RETURN_PATH}"}
    if visit.form.get("country"):
        wanted["country"] = visit.form["country"]
    reply = await visit.ask("POST", "/v1/billing/stripe/onboard", wanted)
    if not reply.ok:
        return visit.page(
            "error.html", {"message": reply.message, "next_step": ""}, status=reply.status
        )
    return leave(visit, str(reply.document["url"]))


async def come_back(visit: Visit) -> Response:
    """Where the payout service sends people back to.

    Their browser does not show us its session on the way in from another site, so the page
    goes on to the Earn page by itself, which is then a step within this site.
    """
    return passing(visit, "/earn?stripe_return=1&done=payouts", "your earnings")


async def form(visit: Visit) -> Response:
    """The withdrawal form; with an amount, also what it would come to."""
    panel = await _panel(visit)
    if panel.state != "ready":
        return go("/earn")
    amount = visit.query.get("amount", "")
    method = visit.query.get("method", "standard")
    error, shown = "", None
    if amount:
        try:
            shown = views.preview(panel, amount, method)
        except ValueError as wrong:
            error = str(wrong)
    return _form(visit, panel, amount, method, shown, error=error)


async def withdraw(visit: Visit) -> Response:
    """Send a withdrawal. Sent again, it is still one."""
    amount, method = visit.form.get("amount", ""), visit.form.get("method", "")
    reply = await visit.ask(
        "POST",
        "/v1/billing/withdraw/stripe",
        {"amount_usd": amount, "method": method},
        headers={"Idempotency-Key": visit.form.get("key", "")},
    )
    if reply.ok:
        return go("/earn/withdrawals", done="withdrawn")
    return _form(
        visit, await _panel(visit), amount, method, None, error=reply.message, status=reply.status
    )


async def listed(visit: Visit) -> Response:
    """Every withdrawal."""
    balance = await visit.read(lambda c: books.balance_of(c, visit.owner.account_id))
    panel, rows = await payout_state(visit, balance.withdrawable)
    return visit.page("withdrawals.html", {"payouts": panel, "rows": rows})


async def _panel(visit: Visit) -> PayoutPanel:
    balance = await visit.read(lambda c: books.balance_of(c, visit.owner.account_id))
    status = await visit.ask("GET", "/v1/billing/stripe/status")
    return views.panel(status.document if status.ok else {}, balance.withdrawable)


def _form(
    visit: Visit,
    panel: PayoutPanel,
    amount: str,
    method: str,
    shown: Preview | None,
    *,
    error: str = "",
    status: int = HTTPStatus.OK,
) -> Response:
    view = WithdrawView(
        panel=panel,
        amount_text=amount or views.suggested_amount(panel),
        method=method if method == "instant" and panel.instant else "standard",
        preview=shown,
        key=visit.console.services.random_hex(KEY_BYTES),
    )
    return visit.page("withdraw.html", view, error=error, status=status)


PAGES: Final = (
    Page("/earn/payouts", None, set_up),
    Page(RETURN_PATH, come_back, private=False),
    Page("/earn/withdraw", form, withdraw),
    Page("/earn/withdrawals", listed),
)
