"""A proxy that forwards, until it swallows everything without a word: a half-open connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

READ = 65_536


class SilentProxy:
    """Connections made while it is mute are accepted, and nothing is ever said on them."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._hole = asyncio.Event()
        self.port = 0
        self.swallowed = 0
        """Bytes that arrived and went nowhere."""

    @property
    def url(self) -> str:
        """The websocket address."""
        return f"ws://127.0.0.1:{self.port}/ws/provider"

    def mute(self) -> None:
        """From now on, on every connection there is: read, and pass nothing on."""
        self._hole.set()

    def mend(self) -> None:
        """Forward what comes on new connections. Those that were muted stay so."""
        self._hole = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        hole = self._hole
        there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._forward(reader, back, hole))
                tasks.create_task(self._forward(there, writer, hole))
        finally:
            for end in (writer, back):
                end.close()
                with contextlib.suppress(ConnectionError):
                    await end.wait_closed()

    async def _forward(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, hole: asyncio.Event
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(READ):
                if hole.is_set():
                    self.swallowed += len(data)
                else:
                    sink.write(data)
                    await sink.drain()
        if not hole.is_set():  # what is muted does not pass on the end either
            sink.close()


@asynccontextmanager
async def silent_proxy(target_port: int) -> AsyncIterator[SilentProxy]:
    """A proxy in front of a port of this machine."""
    proxy = SilentProxy(target_port)
    async with asyncio.TaskGroup() as tasks:
        serving: list[asyncio.Task[None]] = []

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            serving.append(tasks.create_task(proxy.serve(reader, writer)))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            server.close()
            for task in serving:
                task.cancel()
            await server.wait_closed()
