"""How long to wait, for those who wait many times a second and hardly ever in vain.

`asyncio.timeout` makes and cancels a timer for every wait. Here one timer looks, when it fires,
whether anybody has been waiting too long, and if not, sleeps on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Patience:
    """The time limit of one thing that is waited for again and again, one wait at a time."""

    def __init__(self, lost: Callable[[], object]) -> None:
        """`lost` is called when a wait has lasted too long; it must end the wait."""
        self._lost = lost
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.over = False
        """Whether the wait that goes on has lasted too long."""

    @contextmanager
    def of(self, seconds: float) -> Iterator[Patience]:
        """Wait within, for at most so many seconds."""
        loop = asyncio.get_running_loop()
        self.over = False
        self._deadline = deadline = loop.time() + seconds
        if self._timer is not None and self._timer.when() > deadline:
            self.stop()
        if self._timer is None:
            self._timer = loop.call_at(deadline, self._look, loop)
        try:
            yield self
        finally:
            self._deadline = None

    def stop(self) -> None:
        """Nobody will wait again: leave no timer behind. Again is harmless."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if loop.time() < self._deadline:
            self._timer = loop.call_at(self._deadline, self._look, loop)
            return
        self.over = True
        self._lost()
