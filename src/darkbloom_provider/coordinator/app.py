"""The coordinator as one ASGI application: every endpoint, bound to the parts it uses."""

from __future__ import annotations

import random

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from darkbloom_provider.config import WEBSOCKET_PATH
from darkbloom_provider.coordinator import (
    account_routes,
    money_routes,
    network_routes,
    replies,
)
from darkbloom_provider.coordinator.conversation import Conversation
from darkbloom_provider.coordinator.hub import Hub
from darkbloom_provider.coordinator.inference import ChatCompletions
from darkbloom_provider.coordinator.middleware import (
    DEFAULT_ORIGIN,
    CorsMiddleware,
    RequestIdMiddleware,
)
from darkbloom_provider.coordinator.registration import Registrar
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.coordinator.tab import Books
from darkbloom_provider.protocol.openai import CHAT_ENDPOINT


def build_app(services: Services, hub: Hub, registrar: Registrar, books: Books) -> Starlette:
    """The application. It holds no state of its own and starts nothing."""

    async def provider(websocket: WebSocket) -> None:
        await Conversation(websocket, hub, registrar).run()

    return Starlette(
        routes=[
            WebSocketRoute(WEBSOCKET_PATH, provider),
            Route(CHAT_ENDPOINT, ChatCompletions(services, hub, books), methods=["POST"]),
            *network_routes.routes(services, hub),
            *account_routes.routes(services),
            *money_routes.routes(services),
        ],
        middleware=[
            Middleware(RequestIdMiddleware, rng=random.SystemRandom()),
            Middleware(CorsMiddleware, origin=services.console_url or DEFAULT_ORIGIN),
        ],
        exception_handlers=replies.exception_handlers(),
    )
