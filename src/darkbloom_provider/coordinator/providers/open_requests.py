"""How many consumer requests are being served, and when there are none."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True)
class OpenRequests:
    """Counts those who are in its `with`."""

    count: int = 0
    none: asyncio.Event = field(default_factory=asyncio.Event)

    def __enter__(self) -> None:
        self.count += 1
        self.none.clear()

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        if self.count == 0:
            self.none.set()
