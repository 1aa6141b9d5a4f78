"""The earnings calculator. It reads nothing but the price table, and keeps nothing."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from starlette.responses import Response

from darkbloom_provider.coordinator.console.gate import Page
from darkbloom_provider.coordinator.console.views import calculator as views
from darkbloom_provider.coordinator.console.visit import Visit


async def show(visit: Visit) -> Response:
    """What a Mac might earn here."""
    models = visit.console.services.catalogue.entries
    inputs, error = None, ""
    try:
        inputs = views.read_inputs(visit.query, models)
    except ValueError as wrong:
        error = str(wrong)
    fee = visit.console.services.policy.fee_percent
    return visit.page(
        "calculator.html",
        views.view(visit.query, inputs, models, fee_percent=fee),
        error=error,
        status=HTTPStatus.BAD_REQUEST if error else HTTPStatus.OK,
    )


PAGES: Final = (Page("/earn/calculator", show, private=False),)
