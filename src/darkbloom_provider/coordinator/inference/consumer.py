"""The caller's end of one HTTP request: what is written to it, and whether it is still there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping

from starlette.types import Receive, Send

from darkbloom_provider.coordinator.providers.attempts import ConsumerLeftError


class Consumer:
    """One caller. `watch` must run beside everything else, once the body has been read."""

    def __init__(self, receive: Receive, send: Send, *, write_patience: float) -> None:
        self._receive = receive
        self._send = send
        self._write_patience = write_patience
        self._left = False
        self._interrupt: Callable[[], None] | None = None
        self.started = False
        """Whether the status has been sent: from then on an error is an event, not a status."""

    async def watch(self) -> None:
        """Return when the caller has closed the connection, after telling whoever waits."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True
        if self._interrupt is not None:
            self._interrupt()

    @contextlib.contextmanager
    def interrupts(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Within, `interrupt` is called as soon as the caller leaves."""
        before, self._interrupt = self._interrupt, interrupt
        if self._left:
            interrupt()
        try:
            yield
        finally:
            self._interrupt = before

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Send status and headers. Raises as `write`."""
        self.started = True
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self._deliver({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes) -> None:
        """Send a piece of the body, waiting while the caller is slow.

        Raises:
            ConsumerLeftError: The caller has gone, or has read nothing for very long.
        """
        await self._deliver({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        """Send the last piece. Raises as `write`."""
        await self._deliver({"type": "http.response.body", "body": data, "more_body": False})

    async def _deliver(self, message: dict[str, object]) -> None:
        if self._left:
            raise ConsumerLeftError
        try:
            async with asyncio.timeout(self._write_patience):
                await self._send(message)
        except (TimeoutError, OSError):
            self._left = True
            raise ConsumerLeftError from None
