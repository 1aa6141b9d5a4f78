"""A websocket server on loopback that does what a test tells it, however rude."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from darkbloom_provider.protocol.codec import MAX_PROVIDER_FRAME, decode_from_provider, encode
from darkbloom_provider.protocol.messages import (
    AttestationChallenge,
    AttestationResponse,
    CoordinatorMessage,
    ProviderMessage,
)

M = TypeVar("M")
Responder = Callable[[ServerConnection, Request], Response | None]


class Peer:
    """The coordinator's end of one connection."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.heard: list[ProviderMessage] = []

    async def hear(self) -> ProviderMessage:
        """The next message."""
        message = decode_from_provider(await self.connection.recv())
        self.heard.append(message)
        return message

    async def expect(self, kind: type[M]) -> M:
        """The next message of this kind; others before it are kept in `heard`."""
        while True:
            if isinstance(message := await self.hear(), kind):
                return message

    async def say(self, message: CoordinatorMessage) -> None:
        """Send a message."""
        await self.connection.send(encode(message))

    async def accept(self, nonce: str = "nonce-of-the-first-challenge") -> AttestationResponse:
        """Take the registration: challenge the provider and wait for its answer."""
        await self.say(AttestationChallenge(nonce=nonce, timestamp="2026-01-02T03:04:05Z"))
        return await self.expect(AttestationResponse)

    async def hear_to_the_end(self) -> int:
        """Hear everything until the provider hangs up; its close code."""
        try:
            while True:
                await self.hear()
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd is not None else 1006


class ScriptedCoordinator:
    """Each connection comes to `next_peer` and stays open until the test lets it go."""

    def __init__(self) -> None:
        self.respond: Responder | None = None
        """Answers the upgrade instead of the websocket, if it returns a response."""
        self.requests: list[Request] = []
        self.server: Server | None = None
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self.server is not None
        port: int = next(iter(self.server.sockets)).getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """The websocket address."""
        return f"ws://127.0.0.1:{self.port}/ws/provider"

    async def next_peer(self) -> Peer:
        """The next connection that was upgraded."""
        return await self._peers.get()

    def process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Called by the server for each upgrade."""
        self.requests.append(request)
        return None if self.respond is None else self.respond(connection, request)

    async def handle(self, connection: ServerConnection) -> None:
        """Called by the server for each connection."""
        self._peers.put_nowait(Peer(connection))
        await connection.wait_closed()


@asynccontextmanager
async def scripted_coordinator() -> AsyncIterator[ScriptedCoordinator]:
    """A coordinator that listens while the block runs."""
    coordinator = ScriptedCoordinator()
    async with serve(
        coordinator.handle,
        "127.0.0.1",
        0,
        process_request=coordinator.process_request,
        max_size=MAX_PROVIDER_FRAME,
        compression=None,
        ping_interval=None,
        close_timeout=0.2,
    ) as server:
        coordinator.server = server
        yield coordinator
