"""The coordinator as one ASGI application: every endpoint, bound to the parts it uses."""

from __future__ import annotations

import random
from collections.abc import Iterable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from darkbloom_provider.config import WEBSOCKET_PATH
from darkbloom_provider.coordinator.accounts import device_routes, gift_routes
from darkbloom_provider.coordinator.accounts import routes as account_routes
from darkbloom_provider.coordinator.deposits import routes as deposit_routes
from darkbloom_provider.coordinator.deposits import sandbox_page as deposit_sandbox_page
from darkbloom_provider.coordinator.earnings import balance_routes
from darkbloom_provider.coordinator.earnings import routes as earnings_routes
from darkbloom_provider.coordinator.inference import routes as inference_routes
from darkbloom_provider.coordinator.ledger.tab import Books
from darkbloom_provider.coordinator.offer import admin_routes as offer_admin_routes
from darkbloom_provider.coordinator.offer import routes as offer_routes
from darkbloom_provider.coordinator.payouts import (
    onboarding_routes,
    sandbox_page,
    webhook_route,
    withdrawal_routes,
)
from darkbloom_provider.coordinator.providers import routes as network_routes
from darkbloom_provider.coordinator.providers.conversation import Conversation
from darkbloom_provider.coordinator.providers.hub import Hub
from darkbloom_provider.coordinator.providers.registration import Registrar
from darkbloom_provider.coordinator.public import (
    metrics_routes,
    ranks,
    release_routes,
    stats,
    telemetry_route,
)
from darkbloom_provider.coordinator.rest import admin_routes, endpoints, guards, openapi, replies
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.middleware import (
    DEFAULT_ORIGIN,
    CorsMiddleware,
    FailureMiddleware,
    MetricsMiddleware,
    RequestIdMiddleware,
)
from darkbloom_provider.coordinator.routing import routes as routing_routes
from darkbloom_provider.coordinator.services import Services


def build_app(services: Services, hub: Hub, registrar: Registrar, books: Books) -> Starlette:
    """The application. It holds no state of its own and starts nothing."""

    async def provider(websocket: WebSocket) -> None:
        await Conversation(websocket, hub, registrar).run()

    declared = [
        *inference_routes.endpoints(services, hub, books),
        *network_routes.endpoints(services, hub),
        *stats.endpoints(services, hub),
        *metrics_routes.endpoints(services, hub),
        routing_routes.endpoint(services, hub),
        *desk_endpoints(services),
    ]
    app = application([*declared, openapi.endpoint(declared)], services)
    # A provider says who it is in its first message; the registrar decides what that is worth.
    app.router.routes.append(WebSocketRoute(WEBSOCKET_PATH, provider))
    return app


def desk_endpoints(services: Services) -> list[Endpoint]:
    """The endpoints that need no network of providers: accounts and money."""
    return [
        *account_routes.endpoints(services),
        *device_routes.endpoints(services),
        *gift_routes.endpoints(services),
        *offer_routes.endpoints(services),
        *offer_admin_routes.endpoints(services),
        *earnings_routes.endpoints(services),
        *balance_routes.endpoints(services),
        *ranks.endpoints(services),
        *release_routes.endpoints(services),
        *telemetry_route.endpoints(services),
        *onboarding_routes.endpoints(services),
        *withdrawal_routes.endpoints(services),
        *webhook_route.endpoints(services),
        *deposit_routes.endpoints(services),
        *deposit_sandbox_page.endpoints(services),
        *sandbox_page.endpoints(services),
        *admin_routes.endpoints(services),
    ]


def application(declared: Iterable[Endpoint], services: Services) -> Starlette:
    """Endpoints, each behind its gate, with what every reply carries."""
    return Starlette(
        routes=endpoints.routes(declared, services),
        middleware=[
            Middleware(
                MetricsMiddleware,
                metrics=services.metrics,
                monotonic=services.monotonic,
                route=guards.ROUTE,
            ),
            Middleware(RequestIdMiddleware, rng=random.Random()),  # noqa: S311 - names, no secrets
            Middleware(CorsMiddleware, origin=services.console_url or DEFAULT_ORIGIN),
            Middleware(FailureMiddleware),
        ],
        exception_handlers=replies.exception_handlers(),
    )
