"""The leaderboard and the network's totals: what everybody may know about earnings.

Both are kept for a while: many ask, and each answer adds up every job there ever was.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.earnings import views
from darkbloom_provider.coordinator.public.kept import Kept
from darkbloom_provider.coordinator.rest import queries
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ANYONE
from darkbloom_provider.coordinator.rest.replies import json_reply, rfc3339_seconds
from darkbloom_provider.coordinator.rest.shapes import (
    COUNT,
    TEXT,
    TIME,
    Operation,
    array,
    one_of,
    record,
)
from darkbloom_provider.coordinator.rest.view_rows import shape, shapes
from darkbloom_provider.coordinator.services import Services

LEADERBOARD_LIFE: Final = timedelta(minutes=5)
TOTALS_LIFE: Final = timedelta(minutes=1)

_LIMIT: Final = {"limit": TEXT}
_WINDOW: Final = {"window": one_of("24h", "1d", "7d", "30d", "all", "lifetime", "")}
_TOTALS: Final = {"earnings_micro_usd": COUNT, "tokens": COUNT, "jobs": COUNT}


def endpoints(services: Services) -> list[Endpoint]:
    """The endpoints, bound to the coordinator's parts."""
    ranks = _Ranks(services)
    return [
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


class _Ranks:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._boards: Kept[dict[str, Any]] = Kept(LEADERBOARD_LIFE, services.monotonic)
        self._totals: Kept[dict[str, Any]] = Kept(TOTALS_LIFE, services.monotonic)

    async def leaderboard(self, request: Request) -> Response:
        now = self._services.clock()
        metric = queries.metric(request.query_params)
        window, since = queries.window(request.query_params, now)
        limit = queries.leaderboard_limit(request.query_params)

        async def add_up() -> dict[str, Any]:
            rows = await self._services.db.read(
                lambda c: views.leaderboard(c, metric=metric, since=since, limit=limit)
            )
            return {
                "metric": metric,
                "window": window,
                "entries": shapes(rows),
                "updated_at": rfc3339_seconds(now),
            }

        return json_reply(await self._boards.get((metric, window, limit), add_up))

    async def totals(self, request: Request) -> Response:
        now = self._services.clock()
        window, since = queries.window(request.query_params, now)

        async def add_up() -> dict[str, Any]:
            totals = await self._services.db.read(lambda c: views.network_totals(c, since=since))
            return {"window": window, **shape(totals), "updated_at": rfc3339_seconds(now)}

        return json_reply(await self._totals.get(window, add_up))
