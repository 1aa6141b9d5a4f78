"""A socket made of two queues, for a connection under test; its line can be held up."""

from __future__ import annotations

import asyncio

from darkbloom_provider.link.failure import LinkDownError, SocketClosed
from darkbloom_provider.protocol.codec import decode_from_provider, encode
from darkbloom_provider.protocol.messages import CoordinatorMessage, ProviderMessage


class PipedSocket:
    """What a connection needs of a socket. Nothing passes while `open` is cleared."""

    def __init__(self) -> None:
        self.sent: list[ProviderMessage] = []
        self.open = asyncio.Event()
        self.open.set()
        self._incoming: asyncio.Queue[bytes | None] = asyncio.Queue()

    def say(self, message: CoordinatorMessage | bytes) -> None:
        """Let the connection receive a message, or any bytes."""
        self._incoming.put_nowait(
            message if isinstance(message, bytes) else encode(message).encode()
        )

    def hang_up(self) -> None:
        """End the connection once everything said before has been received."""
        self._incoming.put_nowait(None)

    async def receive(self) -> bytes:
        """The next message."""
        frame = await self._incoming.get()
        if frame is None:
            raise LinkDownError(SocketClosed(1000))
        return frame

    async def send(self, text: str) -> None:
        """Take a frame, once the line lets it through."""
        await self.open.wait()
        self.sent.append(decode_from_provider(text))

    async def close(self) -> None:
        """Nothing to close."""
