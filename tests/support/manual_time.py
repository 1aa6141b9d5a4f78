"""Time that passes only when a test says so."""

from __future__ import annotations

import asyncio
import heapq
import itertools

_SETTLE_TURNS = 10


class ManualTime:
    """A clock and a `sleep` that belong together."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def clock(self) -> float:
        """The time now, in seconds."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Sleep until `advance` has carried the time far enough."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._order), waiter))
        await waiter

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass, waking each sleeper at its own moment and letting it act."""
        end = self.now + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            when, _, waiter = heapq.heappop(self._sleepers)
            if waiter.done():
                continue
            self.now = max(self.now, when)
            waiter.set_result(None)
            await settle()
        self.now = end


async def settle() -> None:
    """Give every task that can go on the chance to."""
    for _ in range(_SETTLE_TURNS):
        await asyncio.sleep(0)
