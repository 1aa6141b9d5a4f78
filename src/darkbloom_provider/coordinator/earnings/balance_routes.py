"""Endpoints that show what an account holds and spent. They only read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.earnings import views
from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ANY, MACHINE, admitted
from darkbloom_provider.coordinator.rest.replies import json_reply
from darkbloom_provider.coordinator.rest.shapes import (
    COUNT,
    INTEGER,
    TEXT,
    TIME,
    Operation,
    amount,
    array,
    record,
)
from darkbloom_provider.coordinator.rest.view_rows import both, shapes
from darkbloom_provider.coordinator.services import Services

T = TypeVar("T")


def endpoints(services: Services) -> list[Endpoint]:
    """The balance endpoints, bound to the coordinator's parts."""
    owned = _Owned(services)
    return [
        Endpoint(
            "GET",
            "/v1/payments/balance",
            owned.balance,
            MACHINE,
            Operation(
                "What the account holds", record(**amount("balance"), **amount("withdrawable"))
            ),
        ),
        Endpoint(
            "GET",
            "/v1/payments/usage",
            owned.usage,
            ANY,
            Operation(
                "What the account spent, job by job",
                record(
                    usage=array(
                        record(
                            job_id=TEXT,
                            model=TEXT,
                            prompt_tokens=COUNT,
                            completion_tokens=COUNT,
                            cost_micro_usd=COUNT,
                            timestamp=TIME,
                        )
                    )
                ),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/billing/wallet/balance",
            owned.credit,
            ANY,
            Operation("What the account holds", record(credit_balance_micro_usd=INTEGER)),
        ),
    ]


class _Owned:
    """What the caller's account holds and spent."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def _read(self, view: Callable[[Connection], T]) -> T:
        return await self._services.db.read(view)

    async def balance(self, request: Request) -> Response:
        reader = admitted(request)
        balance = await self._read(lambda c: books.balance_of(c, reader.account_id))
        return json_reply(
            {**both("balance", balance.balance), **both("withdrawable", balance.withdrawable)}
        )

    async def usage(self, request: Request) -> Response:
        reader = admitted(request)
        rows = await self._read(lambda c: views.usage(c, reader.account_id))
        return json_reply({"usage": shapes(rows)})

    async def credit(self, request: Request) -> Response:
        reader = admitted(request)
        balance = await self._read(lambda c: books.balance_of(c, reader.account_id))
        return json_reply({"credit_balance_micro_usd": balance.balance})
