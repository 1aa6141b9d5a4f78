"""Answers that are kept for a while, so that the public cannot make the ledger add up all day."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from datetime import timedelta
from typing import Final, Generic, TypeVar

T = TypeVar("T")

MAX_KEPT: Final = 256


class Kept(Generic[T]):
    """Values by key, each good for the same time. What fails is not kept."""

    def __init__(self, life: timedelta, monotonic: Callable[[], float]) -> None:
        self._life = life.total_seconds()
        self._monotonic = monotonic
        self._values: OrderedDict[Hashable, tuple[float, T]] = OrderedDict()
        self._making = asyncio.Lock()
        self._generation = 0

    async def get(self, key: Hashable, make: Callable[[], Awaitable[T]]) -> T:
        """The value of a key, made if there is none that is young enough. Raises what `make` does.

        However many ask at once, one is made at a time, and the others wait for it.
        """
        found = self._young(key)
        if found is not None:
            return found[1]
        async with self._making:
            found = self._young(key)
            if found is not None:
                return found[1]
            generation, begun = self._generation, self._monotonic()
            value = await make()
            # One that was begun before everything was dropped is old already.
            if generation == self._generation:
                self._values[key] = (begun, value)
                self._values.move_to_end(key)
                while len(self._values) > MAX_KEPT:
                    self._values.popitem(last=False)
            return value

    def drop(self) -> None:
        """Keep nothing that was made until now."""
        self._generation += 1
        self._values.clear()

    def _young(self, key: Hashable) -> tuple[float, T] | None:
        found = self._values.get(key)
        if found is None or self._monotonic() - found[0] >= self._life:
            return None
        return found
