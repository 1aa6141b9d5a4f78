"""The border to the `websockets` library: dial, receive, send, close; failures become values."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from dataclasses import dataclass
from typing import Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidMessage,
    InvalidStatus,
    WebSocketException,
)
from websockets.frames import CloseCode

from darkbloom_provider import __version__
from darkbloom_provider.link.failure import (
    CLOSE_ABNORMAL,
    Failure,
    HandshakeTimeout,
    HttpRejected,
    LinkDownError,
    NotWebSocket,
    PeerOverLimit,
    PeerSilent,
    SocketClosed,
    Unreachable,
    UntrustedCertificate,
)
from darkbloom_provider.protocol.codec import MAX_COORDINATOR_FRAME

USER_AGENT: Final = f"darkbloom-provider/{__version__}"
UNSENT_BYTES: Final = 64 * 1024
"""Bytes that the system may hold unsent. Whatever waits there goes out ahead of a heartbeat."""
_KEEPALIVE_REASON: Final = "keepalive ping timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketLimits:
    """Seconds and bytes of one websocket."""

    open_timeout_s: float = 10.0
    ping_interval_s: float = 10.0
    ping_timeout_s: float = 30.0
    close_timeout_s: float = 3.0
    """For the whole farewell: sending what is queued, and the closing handshake."""
    max_message: int = MAX_COORDINATOR_FRAME


class Socket:
    """An open websocket that speaks in failures of ours."""

    def __init__(self, connection: ClientConnection, limits: SocketLimits) -> None:
        self._connection = connection
        self._limits = limits

    async def receive(self) -> bytes:
        """The next message as bytes, text or binary alike.

        Raises:
            LinkDownError: The websocket ended, whatever the close code.
        """
        try:
            # Undecoded: UTF-8 that is broken costs the frame, not the connection.
            return await self._connection.recv(decode=False)
        except ConnectionClosed as error:
            raise LinkDownError(failure_of(error)) from error

    async def send(self, text: str) -> None:
        """Write one text frame; waits while the line is full.

        Raises:
            LinkDownError: The websocket ended.
        """
        try:
            await self._connection.send(text)
        except ConnectionClosed as error:
            raise LinkDownError(failure_of(error)) from error

    async def close(self) -> None:
        """Hang up with code 1000. Takes `close_timeout_s` at most, then the line is cut."""
        try:
            # The library's own limit starts only after its write buffer has room.
            async with asyncio.timeout(self._limits.close_timeout_s):
                await self._connection.close()
        except TimeoutError:
            pass
        finally:
            self._connection.transport.abort()


class _Direct(connect):
    """Dials exactly the address that it was given."""

    def process_redirect(self, exc: Exception) -> Exception:
        """Never follow: the registration, with its token, is for the configured side only."""
        return exc


async def dial(url: str, limits: SocketLimits) -> Socket | Failure:
    """Open a websocket to `url`, straight: no proxy from the environment, no redirects."""
    # A logger attached to nothing: at debug level the library prints parts of what is sent.
    silent = logging.Logger("websockets", level=logging.CRITICAL + 1)  # noqa: LOG001 — see above
    try:
        connection = await _Direct(
            url,
            compression=None,
            proxy=None,
            user_agent_header=USER_AGENT,
            open_timeout=limits.open_timeout_s,
            ping_interval=limits.ping_interval_s,
            ping_timeout=limits.ping_timeout_s,
            close_timeout=limits.close_timeout_s,
            max_size=limits.max_message,
            logger=silent,
        )
    except (OSError, WebSocketException, ValueError) as error:  # ValueError: a host that is none
        return failure_of(error)
    _keep_queue_short(connection)
    return Socket(connection, limits)


def _keep_queue_short(connection: ClientConnection) -> None:
    """Let the system queue little: by default it takes megabytes of a job's text for a slow line.

    `TCP_NOTSENT_LOWAT` of tcp(7) on Linux and of macOS's `netinet/tcp.h`. Data that is on its way
    does not count, so a fast line is as fast as before.
    """
    option: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    line: socket.socket | None = connection.transport.get_extra_info("socket")
    if option is not None and line is not None:
        with contextlib.suppress(OSError):  # a system that cannot is slower to beat, no more
            line.setsockopt(socket.IPPROTO_TCP, option, UNSENT_BYTES)


def failure_of(error: Exception) -> Failure:
    """What an exception of the socket or of the library means here."""
    failure: Failure
    match error:
        case ConnectionClosed():
            failure = _closed(error)
        case InvalidStatus():
            headers = error.response.headers
            wanted = _retry_after_s(headers.get_all("Retry-After"))
            failure = HttpRejected(error.response.status_code, wanted)
        case InvalidMessage() if isinstance(error.__cause__, EOFError):
            failure = Unreachable("hung up before it answered")
        case TimeoutError():
            failure = HandshakeTimeout()
        case ssl.SSLCertVerificationError():
            failure = UntrustedCertificate(error.verify_message)
        case OSError():
            failure = Unreachable(error.strerror or type(error).__name__)
        case _:
            failure = NotWebSocket(str(error))
    return failure


def _closed(error: ConnectionClosed) -> Failure:
    if error.sent is not None and not error.rcvd_then_sent:
        # We hung up first: the reason is on our side of the line.
        if error.sent.reason == _KEEPALIVE_REASON:
            return PeerSilent()
        if error.sent.code == CloseCode.MESSAGE_TOO_BIG:
            return PeerOverLimit()
    if error.rcvd is None:
        return SocketClosed(CLOSE_ABNORMAL)
    return SocketClosed(error.rcvd.code, error.rcvd.reason)


def _retry_after_s(values: list[str]) -> float | None:
    """Seconds of a `Retry-After` header; its date form is not worth trusting a clock for."""
    text = values[0].strip() if values else ""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None  # noqa: PLR2004 — ten digits are centuries
