"""The daemon's end of the local socket: one route table behind one guard.

Requests that look as if a browser made them are refused, as any web page could otherwise talk to
the daemon through a proxy that forwards to the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Protocol

import uvicorn
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from darkbloom_provider import __version__
from darkbloom_provider.control import sockets
from darkbloom_provider.control.models import (
    DRAIN_PATH,
    HOST,
    RELOAD_ACCOUNT_PATH,
    RELOAD_MODELS_PATH,
    STATUS_PATH,
    VERSION_HEADER,
    AccountReload,
    DrainReply,
    DrainRequest,
    ModelsReload,
    Refusal,
    StatusReport,
)
from darkbloom_provider.errors import DarkbloomError

MAX_BODY_BYTES = 64 * 1024
CLOSE_SECONDS = 1
"""How long a connection of the command line may hold up the daemon's exit."""


class Daemon(Protocol):
    """What the local socket needs of the daemon. Only the reloads may wait, for the disk."""

    def status(self) -> StatusReport:
        """What the daemon does now."""
        ...

    def drain(self, deadline_s: float) -> DrainReply:
        """Begin to stop."""
        ...

    async def reload_account(self) -> AccountReload:
        """Look anew for the token of the account."""
        ...

    async def reload_models(self) -> ModelsReload:
        """Look anew for the models on this machine."""
        ...


def application(daemon: Daemon, version: str = __version__) -> ASGIApp:
    """The ASGI application of the local socket."""

    async def status(_request: Request) -> Response:
        return _answer(daemon.status())

    async def drain(request: Request) -> Response:
        try:
            wanted = DrainRequest.model_validate_json(await _body(request) or b"{}")
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "body"
            return _answer(Refusal(error=f"{where}: {first['msg']}"), 400)
        return _answer(daemon.drain(wanted.deadline_s), 202)

    routes = [
        Route(STATUS_PATH, status, methods=["GET"]),
        Route(DRAIN_PATH, drain, methods=["POST"]),
        Route(RELOAD_ACCOUNT_PATH, _reload(daemon.reload_account), methods=["POST"]),
        Route(RELOAD_MODELS_PATH, _reload(daemon.reload_models), methods=["POST"]),
    ]
    return _Guard(Starlette(routes=routes), version)


def _reload(
    load: Callable[[], Awaitable[BaseModel]],
) -> Callable[[Request], Awaitable[Response]]:
    async def reload(_request: Request) -> Response:
        try:
            return _answer(await load())
        except DarkbloomError as error:
            return _answer(Refusal(error=str(error), next_step=error.next_step), 409)

    return reload


def _answer(model: BaseModel, status_code: int = 200) -> Response:
    return Response(model.model_dump_json(), status_code, media_type="application/json")


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            return b"!"  # Not JSON: refused as such, whatever follows.
    return body


class _Guard:
    """Refuses what a browser could send, and puts our version on every answer."""

    def __init__(self, inner: ASGIApp, version: str) -> None:
        self._inner = inner
        self._version = version.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def versioned(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (VERSION_HEADER.lower().encode(), self._version),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        if scope["type"] != "http":
            return
        if _from_our_client(scope):
            await self._inner(scope, receive, versioned)
        else:
            refusal = Refusal(
                error="This socket answers the darkbloom command only",
                next_step="use `darkbloom status`",
            )
            await _answer(refusal, 403)(scope, receive, versioned)


def _from_our_client(scope: Scope) -> bool:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    names = {name.lower() for name, _ in headers}
    hosts = [value for name, value in headers if name.lower() == b"host"]
    return not names & {b"origin", b"referer"} and hosts == [HOST.encode()]


class QuietServer(uvicorn.Server):
    """uvicorn without its signal handling: the supervisor owns the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave them alone."""
        yield


class _ControlServer(QuietServer):
    """Sleeps until there is work: uvicorn's own loop wakes an idle machine ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._told = asyncio.Event()

    async def main_loop(self) -> None:
        """Wait to be told to stop. What uvicorn's loop keeps current, the date, is switched off."""
        await self.on_tick(0)
        await self._told.wait()

    def stop(self) -> None:
        """Accept no more, answer what was asked, end."""
        self.should_exit = True
        self._told.set()


@contextlib.asynccontextmanager
async def serving(daemon: Daemon, path: Path) -> AsyncIterator[None]:
    """Answer on the Unix socket `path` for as long as the block runs.

    Raises:
        SocketPathTooLongError: The path does not fit the system's limit.
        AlreadyRunningError: Another daemon answers there.
    """
    listening = sockets.listen(path)
    server = _ControlServer(
        uvicorn.Config(
            application(daemon),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )
    )
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve_until_told(server, listening.socket), name="control")
            try:
                yield
            finally:
                server.stop()
    finally:
        listening.close()


async def serve_until_told(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve on a listening socket until `should_exit` is set, or this is cancelled."""
    try:
        await server.serve(sockets=[listener])
    finally:
        # uvicorn tidies up on its own way out only, not when it is cancelled.
        if server.started:
            for accepting in server.servers:
                accepting.close()
            for connection in list(server.server_state.connections):
                connection.shutdown()
