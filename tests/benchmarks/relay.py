"""What a chunk costs without a coordinator: a process that sends back whatever it receives.

`python relay.py` prints its port. The way is the same as a chunk's: from a stub through the kernel
to one event loop in another process, and through the kernel back. What the coordinator adds to
that is what it does with the chunk.
"""

from __future__ import annotations

import asyncio
import sys
import time

HOST = "127.0.0.1"
CHUNK = b"x" * 700
"""About as large as a sealed chunk."""


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Echo, HOST, 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


async def delays(streams: int, interval_s: float, seconds: float) -> list[float]:
    """Seconds of every chunk's way there and back: so many streams, each at its pace."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    found: list[float] = []
    try:
        port = int(await process.stdout.readline())
        await asyncio.gather(*(_stream(port, interval_s, seconds, found) for _ in range(streams)))
    finally:
        process.kill()
        await process.wait()
    return found


async def _stream(port: int, interval_s: float, seconds: float, found: list[float]) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(lambda: _Back(found), HOST, port)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        transport.write(f"{time.perf_counter_ns():020}".encode() + CHUNK)
        await asyncio.sleep(interval_s)
    transport.abort()


class _Back(asyncio.Protocol):
    def __init__(self, found: list[float]) -> None:
        self._found = found

    def data_received(self, data: bytes) -> None:
        # One chunk is under way at a time, so its beginning is the beginning of what arrives.
        self._found.append((time.perf_counter_ns() - int(data[:20])) / 1e9)


if __name__ == "__main__":
    asyncio.run(_serve())
