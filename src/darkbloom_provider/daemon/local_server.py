"""The local endpoint's socket, key and server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

# Loaded with this module: a sealed process refuses native code that comes later.
import httptools  # noqa: F401
import uvicorn

from darkbloom_provider.control.server import QuietServer, serve_until_told
from darkbloom_provider.daemon.local_api import LocalApi
from darkbloom_provider.engine.errors import EngineClosedError
from darkbloom_provider.errors import AlreadyRunningError, CredentialsError, UsageError
from darkbloom_provider.logs import Secret
from darkbloom_provider.paths import PRIVATE_FILE, write_private

HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8000
KEY_PREFIX: Final = "darkbloom-local-"
CLOSE_SECONDS: Final = 1
"""How long a connection may hold up the daemon's exit."""
IDLE_CONNECTION_SECONDS: Final = 120

_BACKLOG: Final = 128
_KEY: Final = re.compile(re.escape(KEY_PREFIX) + "[0-9a-f]{64}")
_KEY_BYTES: Final = 32


def load_or_create_key(path: Path, random_hex: Callable[[int], str]) -> Secret:
    """The endpoint's key, made at the first start and kept, readable by its owner only.

    Raises:
        CredentialsError: The file cannot be read or written, or holds something else.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
        path.chmod(PRIVATE_FILE)
    except FileNotFoundError:
        text = KEY_PREFIX + random_hex(_KEY_BYTES)
        try:
            write_private(path, f"{text}\n".encode())
        except OSError as error:
            raise _unusable(path, error.strerror) from error
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(path, getattr(error, "strerror", None)) from error
    if not _KEY.fullmatch(text):
        raise _unusable(path, "it holds something else")
    return Secret(text)


def _unusable(path: Path, why: str | None) -> CredentialsError:
    return CredentialsError(
        f"The local endpoint's key in {path} cannot be used",
        why=why,
        next_step=f"remove {path}; the next start makes a new key",
    )


@contextlib.contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """A socket that listens on loopback, and nowhere else; port 0 takes a free one.

    Raises:
        AlreadyRunningError: Another program listens there.
        UsageError: The port is not allowed.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        # A restarted endpoint must not wait for the kernel to forget old connections.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen(_BACKLOG)
        except OSError as error:
            raise _cannot_listen(port, error) from error
        listener.setblocking(False)
        yield listener


def address(listener: socket.socket) -> str:
    """The base URL of what listens there, without a trailing slash."""
    host, port = listener.getsockname()
    return f"http://{host}:{port}"


def _cannot_listen(port: int, error: OSError) -> Exception:
    if error.errno == errno.EADDRINUSE:
        return AlreadyRunningError(
            f"Port {port} is already in use on this machine",
            why="another program listens there",
            next_step=f"stop it, or type: darkbloom serve --local --port {port + 1}",
        )
    return UsageError(
        f"Cannot listen on port {port}",
        why=error.strerror,
        next_step="choose a port above 1023 with --port",
    )


class LocalServer:
    """Serves the endpoint on a listening socket."""

    def __init__(self, api: LocalApi, listener: socket.socket) -> None:
        self._api = api
        self._listener = listener

    async def run(self) -> None:
        """Serve until cancelled. Connections are then closed.

        Raises:
            EngineClosedError: The engine has died (in a group).
        """
        server = QuietServer(
            uvicorn.Config(
                self._api,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=IDLE_CONNECTION_SECONDS,
                timeout_graceful_shutdown=CLOSE_SECONDS,
            )
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve_until_told(server, self._listener), name="local endpoint")
            await self._api.broken.wait()
            raise EngineClosedError

    async def drain(self, deadline_s: float) -> None:
        """Finish what runs within `deadline_s` seconds; cut the rest and tell its callers."""
        for seconds in (deadline_s, CLOSE_SECONDS):
            try:
                async with asyncio.timeout(seconds):
                    await self._api.idle()
            except TimeoutError:
                self._api.abort_all("the deadline has passed")
