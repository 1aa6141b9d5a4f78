"""Endpoints that show money: prices, balances, earnings, leaderboard. They read and never write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, ClassVar, Final, Protocol, TypeVar

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator import books, queries
from darkbloom_provider.coordinator import earnings_views as views
from darkbloom_provider.coordinator.earnings_views import EarningsPage
from darkbloom_provider.coordinator.endpoints import Endpoint
from darkbloom_provider.coordinator.guards import ANY, ANYONE, MACHINE, admitted, known_caller
from darkbloom_provider.coordinator.queries import refuse
from darkbloom_provider.coordinator.replies import json_reply, rfc3339, rfc3339_seconds
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.coordinator.shapes import (
    BOOLEAN,
    COUNT,
    COUNT_OR_EMPTY,
    INTEGER,
    NON_EMPTY,
    NUMBER,
    TEXT,
    TIME,
    TIME_OR_EMPTY,
    USD_TEXT,
    Operation,
    amount,
    array,
    one_of,
    optional,
    record,
)
from darkbloom_provider.models.catalogue import CatalogueModel
from darkbloom_provider.protocol.money import decimal_usd, format_usd

T = TypeVar("T")


_MODEL: Final = record(
    id=TEXT,
    s3_name=TEXT,
    display_name=TEXT,
    model_type=TEXT,
    size_gb=NUMBER,
    architecture=TEXT,
    description=TEXT,
    min_ram_gb=NUMBER,
    active=BOOLEAN,
    weight_hash=TEXT,
)
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
_WINDOW: Final = {"window": one_of("24h", "1d", "7d", "30d", "all", "lifetime", "")}
_TOTALS: Final = {"earnings_micro_usd": COUNT, "tokens": COUNT, "jobs": COUNT}


def endpoints(services: Services) -> list[Endpoint]:
    """The money endpoints, bound to the coordinator's parts."""
    offer, earned = _Offer(services), _Earned(services)
    owned, ranks = _Owned(services), _Ranks(services)
    return [
        Endpoint(
            "GET",
            "/v1/pricing",
            offer.pricing,
            ANYONE,
            Operation(
                "What each model costs, in micro-USD per 1 000 000 tokens",
                record(
                    prices=array(
                        record(
                            model=TEXT,
                            input_price=COUNT,
                            output_price=COUNT,
                            input_usd=USD_TEXT,
                            output_usd=USD_TEXT,
                        )
                    )
                ),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/models/catalog",
            offer.catalog,
            ANYONE,
            Operation(
                "The models that providers may serve, smallest memory first",
                record(models=array(_MODEL)),
                query={"type": TEXT},
            ),
        ),
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
                            **_TOKENS,
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
        Endpoint(
            "GET",
            "/v1/leaderboard",
            ranks.leaderboard,
            ANYONE,
            Operation(
                "The accounts that earned most, under pseudonyms",
                record(
                    metric=TEXT,
                    window=TEXT,
                    entries=array(record(rank=COUNT, pseudonym=TEXT, **_TOTALS)),
                    updated_at=TIME,
                ),
                query={"metric": one_of("earnings", "tokens", "jobs", ""), **_WINDOW, **_LIMIT},
            ),
        ),
        Endpoint(
            "GET",
            "/v1/network/totals",
            ranks.totals,
            ANYONE,
            Operation(
                "What all accounts earned together",
                record(window=TEXT, **_TOTALS, active_accounts=COUNT, updated_at=TIME),
                query=_WINDOW,
            ),
        ),
    ]


class _Endpoints:
    """A group of endpoints over the same parts."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def _read(self, view: Callable[[Connection], T]) -> T:
        return await self._services.db.read(view)


class _Offer(_Endpoints):
    """What can be bought, and for how much."""

    async def pricing(self, _request: Request) -> Response:
        catalogue = self._services.catalogue
        priced = [(model.id, catalogue.price(model.id)) for model in catalogue.entries]
        prices = [
            {
                "model": model_id,
                "input_price": price.input_price,
                "output_price": price.output_price,
                "input_usd": format_usd(price.input_price, 4),
                "output_usd": format_usd(price.output_price, 4),
            }
            for model_id, price in priced
        ]
        return json_reply({"prices": prices})

    async def catalog(self, request: Request) -> Response:
        wanted = request.query_params.get("type", "")
        models = [
            model
            for model in self._services.catalogue.entries
            if model.active and wanted in {"", model.model_type}
        ]
        # Stable: models that need the same memory keep the catalogue's order.
        models.sort(key=lambda model: model.min_ram_gb)
        return json_reply({"models": [_listed(model) for model in models]})


class _Earned(_Endpoints):
    """What machines earned: by wallet, by provider key, by account."""

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
                **_both("balance", balance.balance),
                **_both("total_earned", earned.lifetime.micro_usd),
                "total_jobs": earned.lifetime.count,
                "payouts": _shapes(earned.payouts),
                "ledger": _shapes(earned.ledger),
            }
        )

    async def by_node(self, request: Request) -> Response:
        provider_key = request.query_params.get("provider_key")
        if not provider_key:
            raise refuse("provider_key is required")
        limit = queries.history_limit(request.query_params)
        reader = await known_caller(self._services, request)
        page = await self._read(lambda c: views.node_earnings(c, provider_key, limit=limit))
        earnings = _shapes(page.rows)
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
            "earnings": _shapes(page.rows),
            **_history(page, limit),
            **_both("available_balance", balance.balance),
            **_both("withdrawable_balance", balance.withdrawable),
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
        return json_reply({"bucket": bucket, "points": _shapes(points)})


class _Owned(_Endpoints):
    """What the caller's account holds and spent."""

    async def balance(self, request: Request) -> Response:
        reader = admitted(request)
        balance = await self._read(lambda c: books.balance_of(c, reader.account_id))
        return json_reply(
            {**_both("balance", balance.balance), **_both("withdrawable", balance.withdrawable)}
        )

    async def usage(self, request: Request) -> Response:
        reader = admitted(request)
        rows = await self._read(lambda c: views.usage(c, reader.account_id))
        return json_reply({"usage": _shapes(rows)})

    async def credit(self, request: Request) -> Response:
        reader = admitted(request)
        balance = await self._read(lambda c: books.balance_of(c, reader.account_id))
        return json_reply({"credit_balance_micro_usd": balance.balance})


class _Ranks(_Endpoints):
    """What everybody may know about the network's earnings."""

    async def leaderboard(self, request: Request) -> Response:
        now = self._services.clock()
        metric = queries.metric(request.query_params)
        window, since = queries.window(request.query_params, now)
        limit = queries.leaderboard_limit(request.query_params)
        rows = await self._read(
            lambda c: views.leaderboard(c, metric=metric, since=since, limit=limit)
        )
        return json_reply(
            {
                "metric": metric,
                "window": window,
                "entries": _shapes(rows),
                "updated_at": rfc3339_seconds(now),
            }
        )

    async def totals(self, request: Request) -> Response:
        now = self._services.clock()
        window, since = queries.window(request.query_params, now)
        totals = await self._read(lambda c: views.network_totals(c, since=since))
        return json_reply({"window": window, **_shape(totals), "updated_at": rfc3339_seconds(now)})


class _Record(Protocol):
    """A view's row: a dataclass whose fields are named as in the reply."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def _shape(row: _Record) -> dict[str, Any]:
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    return {
        name: rfc3339(value) if isinstance(value, datetime) else value
        for name, value in values.items()
    }


def _shapes(rows: Sequence[_Record]) -> list[dict[str, Any]]:
    return [_shape(row) for row in rows]


def _history(page: EarningsPage, limit: int) -> dict[str, Any]:
    return {
        **_both("total", page.lifetime.micro_usd),
        "count": page.lifetime.count,
        "recent_count": len(page.rows),
        "history_limit": limit,
    }


def _both(name: str, micro_usd: int) -> dict[str, Any]:
    """An amount twice: as an integer, and as text for people."""
    return {f"{name}_micro_usd": micro_usd, f"{name}_usd": decimal_usd(micro_usd)}


def _listed(model: CatalogueModel) -> dict[str, Any]:
    return {
        "id": model.id,
        "s3_name": model.s3_name,
        "display_name": model.display_name,
        "model_type": model.model_type,
        "size_gb": model.size_gb,
        "architecture": model.architecture,
        "description": model.description,
        "min_ram_gb": model.min_ram_gb,
        "active": model.active,
        "weight_hash": model.weight_hash,
    }
