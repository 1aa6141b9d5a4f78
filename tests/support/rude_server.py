"""A server below the websocket library: what it does to a connection is in the test's hands."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

from websockets.frames import Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from darkbloom_provider.protocol.codec import (
    MAX_PROVIDER_FRAME,
    decode_from_provider,
    encode,
)
from darkbloom_provider.protocol.messages import CoordinatorMessage, ProviderMessage

READ = 65_536


class RudeConnection:
    """One TCP connection, with the websocket protocol kept by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._protocol = ServerProtocol(max_size=MAX_PROVIDER_FRAME)
        self.request: bytes = b""
        """What was sent before the upgrade."""
        self.heard: list[ProviderMessage] = []
        self._text = b""

    async def read_request(self) -> None:
        """Read the request for an upgrade, and answer nothing."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            self.request = await self._reader.readuntil(b"\r\n\r\n")

    async def respond(self, status: int, body: str = "", **headers: str) -> None:
        """Answer the request with an HTTP response and hang up."""
        reason = HTTPStatus(status).phrase
        lines = [f"HTTP/1.1 {status} {reason}", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
        await self.hang_up()

    def upgrade(self) -> None:
        """Answer the request with 101."""
        self._protocol.receive_data(self.request)
        (request,) = self._protocol.events_received()
        assert isinstance(request, Request)
        self._protocol.send_response(self._protocol.accept(request))
        self._flush()

    async def hear(self, count: int = 1) -> list[ProviderMessage]:
        """Read until `count` more messages have come; fewer if the other side hangs up."""
        wanted = len(self.heard) + count
        while len(self.heard) < wanted:
            data = await self.read()
            if not data:
                break
            self.feed(data)
        return self.heard[wanted - count :]

    async def read(self, most: int = READ) -> bytes:
        """Bytes as they come; none at the end."""
        with contextlib.suppress(ConnectionError):
            return await self._reader.read(most)
        return b""

    def feed(self, data: bytes) -> None:
        """Take in bytes that were read, and answer pings."""
        self._protocol.receive_data(data)
        for frame in self._protocol.events_received():
            if getattr(frame, "opcode", None) in {Opcode.TEXT, Opcode.CONT}:
                self._text += frame.data  # type: ignore[union-attr]  # a frame, as it has an opcode
                if frame.fin:  # type: ignore[union-attr]
                    self.heard.append(decode_from_provider(self._text))
                    self._text = b""
        self._flush()

    def say(self, message: CoordinatorMessage) -> None:
        """Send a message."""
        self._protocol.send_text(encode(message).encode())
        self._flush()

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)

    async def close(self, code: int = 1000, reason: str = "goodbye") -> None:
        """Hang up with a close frame."""
        self._protocol.send_close(code, reason)
        self._flush()
        await self.hang_up()

    async def hang_up(self) -> None:
        """End the TCP connection once everything was sent."""
        with contextlib.suppress(ConnectionError):
            self._writer.close()
            await self._writer.wait_closed()

    def reset(self) -> None:
        """End the TCP connection with RST, dropping what was not sent."""
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, linger
        )
        self._writer.transport.abort()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._writer.write(data)
            else:  # the protocol's way to say that the connection is over
                self._writer.close()


Treatment = Callable[[RudeConnection], Awaitable[None]]


@asynccontextmanager
async def rude_server(
    treat: Treatment, *, port: int = 0, receive_buffer: int | None = None
) -> AsyncIterator[int]:
    """Gives every connection the treatment, after its request was read; yields the port.

    A connection that the treatment leaves open is closed when the block ends.
    """
    left: list[RudeConnection] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = RudeConnection(reader, writer)
        left.append(connection)
        try:
            await connection.read_request()
            await treat(connection)
        except ConnectionError:
            pass

    listener = socket.create_server(("127.0.0.1", port))
    if receive_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    server = await asyncio.start_server(serve, sock=listener, limit=READ)
    try:
        yield listener.getsockname()[1]
    finally:
        server.close()
        for connection in left:
            await connection.hang_up()
        await server.wait_closed()
