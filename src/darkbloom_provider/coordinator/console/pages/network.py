"""What everybody may see: leaderboard, models and prices, network stats."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection
from starlette.responses import Response

from darkbloom_provider.coordinator.console.gate import Page
from darkbloom_provider.coordinator.console.views import network as views
from darkbloom_provider.coordinator.console.views.network import LeaderboardView
from darkbloom_provider.coordinator.console.visit import Visit
from darkbloom_provider.coordinator.earnings import views as earnings_views
from darkbloom_provider.coordinator.earnings.views import NetworkTotals
from darkbloom_provider.coordinator.rest import queries


async def leaderboard(visit: Visit) -> Response:
    """Owners by what they earned, under pseudonyms."""
    now = visit.console.services.clock()
    metric = queries.metric(visit.query)
    window, since = queries.window(visit.query, now)
    limit = queries.leaderboard_limit(visit.query)

    def view(connection: Connection) -> LeaderboardView:
        return views.leaderboard(
            earnings_views.leaderboard(connection, metric=metric, since=since, limit=limit),
            earnings_views.network_totals(connection, since=since),
            metric=metric,
            window=window,
            account_id=visit.user.account_id if visit.user else None,
            limit=limit,
            now=now,
        )

    return visit.page("leaderboard.html", await visit.read(view))


async def models(visit: Visit) -> Response:
    """What can be asked for, what it costs, and what a machine needs to serve it."""
    hub = visit.console.hub
    lines = views.models(visit.console.services.catalogue, hub.registry.candidates(), hub.rules)
    view = {"models": lines, "fee": visit.console.services.policy.fee_percent}
    return visit.page("models.html", view)


async def stats(visit: Visit) -> Response:
    """The network as it is now, and what it did."""
    hub, now = visit.console.hub, visit.console.services.clock()

    def totals(connection: Connection) -> list[tuple[str, NetworkTotals]]:
        begun = [(name, queries.window({"window": name}, now)[1]) for name in views.WINDOWS]
        return [
            (name, earnings_views.network_totals(connection, since=since)) for name, since in begun
        ]

    view = views.stats(
        hub.registry.candidates(),
        [session.hardware.chip_name for session in hub.registry],
        await visit.read(totals),
        hub.rules,
    )
    return visit.page("stats.html", view)


PAGES: Final = (
    Page("/leaderboard", leaderboard, private=False),
    Page("/models", models, private=False),
    Page("/stats", stats, private=False),
)
