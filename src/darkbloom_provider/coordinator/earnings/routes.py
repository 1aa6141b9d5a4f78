"""Endpoints that show what machines earned: by wallet, provider key and account. They only read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.earnings import views
from darkbloom_provider.coordinator.earnings.views import EarningsPage
from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.rest import queries
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ANYONE, MACHINE, admitted, known_caller
from darkbloom_provider.coordinator.rest.queries import refuse
from darkbloom_provider.coordinator.rest.replies import json_reply
from darkbloom_provider.coordinator.rest.shapes import (
    COUNT,
    COUNT_OR_EMPTY,
    INTEGER,
    NON_EMPTY,
    TEXT,
    TIME,
    TIME_OR_EMPTY,
    Operation,
    amount,
    array,
    one_of,
    optional,
    record,
)
from darkbloom_provider.coordinator.rest.view_rows import both, shapes
from darkbloom_provider.coordinator.services import Services

T = TypeVar("T")

_TOKENS: Final = {"prompt_tokens": COUNT, "completion_tokens": COUNT}
_EARNING: Final = record(
    id=INTEGER,
    account_id=TEXT,
    provider_id=TEXT,
    provider_key=TEXT,
    job_id=TEXT,
    model=TEXT,
    amount_micro_usd=COUNT,
    **_TOKENS,
    created_at=TIME,
)
_HISTORY: Final = {
    "earnings": array(_EARNING),
    **amount("total"),
    "count": COUNT,
    "recent_count": COUNT,
    "history_limit": COUNT,
}
_LIMIT: Final = {"limit": TEXT}
"""Documented as text: a limit that makes no sense means the default."""
_RANGE: Final = {"from": TIME_OR_EMPTY, "to": TIME_OR_EMPTY, "model": TEXT}


def endpoints(services: Services) -> list[Endpoint]:
    """The earnings endpoints, bound to the coordinator's parts."""
    earned = _Earned(services)
    return [
        Endpoint(
            "GET",
            "/v1/provider/earnings",
            earned.by_wallet,
            ANYONE,
            Operation(
                "What unlinked machines earned under a wallet address",
                record(
                    wallet_address=TEXT,
                    **amount("balance"),
                    **amount("total_earned"),
                    total_jobs=COUNT,
                    payouts=array(record(id=INTEGER, amount_micro_usd=COUNT, job_id=TEXT)),
                    ledger=array(record(id=INTEGER, type=TEXT, amount_micro_usd=INTEGER)),
                ),
                query={"wallet": TEXT},
                headers={"X-Provider-Wallet": TEXT},
            ),
        ),
        Endpoint(
            "GET",
            "/v1/provider/node-earnings",
            earned.by_node,
            ANYONE,
            Operation(
                "What one provider process earned; whose it is, only its owner learns",
                record(provider_key=TEXT, **_HISTORY),
                query={"provider_key": NON_EMPTY, **_LIMIT},
                required_query=("provider_key",),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/provider/account-earnings",
            earned.by_account,
            MACHINE,
            Operation(
                "What the account's machines earned, newest first",
                record(
                    account_id=TEXT,
                    **_HISTORY,
                    **amount("available_balance"),
                    **amount("withdrawable_balance"),
                    filtered_count=optional(COUNT),
                    filtered_micro_usd=optional(COUNT),
                ),
                query={**_LIMIT, "offset": COUNT_OR_EMPTY, "provider_key": TEXT, **_RANGE},
            ),
        ),
        Endpoint(
            "GET",
            "/v1/provider/earnings-series",
            earned.series,
            MACHINE,
            Operation(
                "The account's earnings over time",
                record(
                    bucket=one_of("hour", "day"),
                    points=array(record(start=TIME, amount_micro_usd=COUNT, jobs=COUNT, **_TOKENS)),
                ),
                query={"bucket": one_of("hour", "day", ""), **_RANGE},
            ),
        ),
    ]


class _Earned:
    """What machines earned: by wallet, by provider key, by account."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def _read(self, view: Callable[[Connection], T]) -> T:
        return await self._services.db.read(view)

    async def by_wallet(self, request: Request) -> Response:
        address = request.query_params.get("wallet") or request.headers.get("x-provider-wallet")
        if not address:
            raise refuse("wallet is required, as ?wallet= or in X-Provider-Wallet")

        def view(connection: Connection) -> tuple[views.WalletEarnings, books.Balance]:
            earned = views.wallet_earnings(connection, address)
            holds = books.kind_of(connection, earned.address) == "wallet"
            balance = books.balance_of(connection, earned.address) if holds else books.NOTHING
            return earned, balance

        earned, balance = await self._read(view)
        return json_reply(
            {
                "wallet_address": earned.address,
                **both("balance", balance.balance),
                **both("total_earned", earned.lifetime.micro_usd),
                "total_jobs": earned.lifetime.count,
                "payouts": shapes(earned.payouts),
                "ledger": shapes(earned.ledger),
            }
        )

    async def by_node(self, request: Request) -> Response:
        provider_key = request.query_params.get("provider_key")
        if not provider_key:
            raise refuse("provider_key is required")
        limit = queries.history_limit(request.query_params)
        reader = await known_caller(self._services, request)
        page = await self._read(lambda c: views.node_earnings(c, provider_key, limit=limit))
        earnings = shapes(page.rows)
        for row in earnings:
            # Anybody may ask about a key, but only its owner learns whose it is.
            if reader is None or row["account_id"] != reader.account_id:
                row["account_id"] = ""
        return json_reply(
            {"provider_key": provider_key, **_history(page, limit), "earnings": earnings}
        )

    async def by_account(self, request: Request) -> Response:
        reader = admitted(request)
        limit = queries.history_limit(request.query_params)
        offset = queries.offset(request.query_params)
        chosen = queries.earnings_filter(request.query_params)

        def view(connection: Connection) -> tuple[EarningsPage, books.Balance]:
            page = views.account_earnings(
                connection, reader.account_id, limit=limit, offset=offset, chosen=chosen
            )
            return page, books.balance_of(connection, reader.account_id)

        page, balance = await self._read(view)
        reply = {
            "account_id": reader.account_id,
            "earnings": shapes(page.rows),
            **_history(page, limit),
            **both("available_balance", balance.balance),
            **both("withdrawable_balance", balance.withdrawable),
        }
        if chosen.conditions():
            reply["filtered_count"] = page.filtered.count
            reply["filtered_micro_usd"] = page.filtered.micro_usd
        return json_reply(reply)

    async def series(self, request: Request) -> Response:
        reader = admitted(request)
        bucket = queries.bucket(request.query_params)
        chosen = queries.earnings_filter(request.query_params)
        points = await self._read(
            lambda c: views.earnings_series(c, reader.account_id, bucket=bucket, chosen=chosen)
        )
        return json_reply({"bucket": bucket, "points": shapes(points)})


def _history(page: EarningsPage, limit: int) -> dict[str, Any]:
    return {
        **both("total", page.lifetime.micro_usd),
        "count": page.lifetime.count,
        "recent_count": len(page.rows),
        "history_limit": limit,
    }
