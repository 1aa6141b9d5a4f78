"""The catalogue and the prices as they are now, in memory: every request reads them.

A change through this process counts from its reply on. One by the command line, or by another
coordinator on the same database, is noticed within a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from darkbloom_provider import logs
from darkbloom_provider.coordinator.offer import listing
from darkbloom_provider.coordinator.store.database import Database, LedgerUnavailableError
from darkbloom_provider.models.catalogue import Catalogue
from darkbloom_provider.protocol.money import Price

LOOK_SECONDS: Final = 1.0

_log = logs.get("coordinator")


class Offer:
    """What one coordinator sells. Used from one event loop."""

    def __init__(self, database: Database, base: Catalogue) -> None:
        self.base = base
        """What it was started with."""
        self._database = database
        self._changes = listing.NO_CHANGES
        self._catalogue = base
        self._listeners: list[Callable[[Catalogue], None]] = []
        self._reading = asyncio.Lock()

    @property
    def catalogue(self) -> Catalogue:
        """The models with their prices."""
        return self._catalogue

    @property
    def prices(self) -> Mapping[str, Price]:
        """The price of every model that has one, listed or not."""
        listed = {entry.id: entry.price for entry in self._catalogue.entries}
        return listed | dict(self._changes.prices)

    def on_change(self, listener: Callable[[Catalogue], None]) -> None:
        """Call `listener` with every catalogue from now on."""
        self._listeners.append(listener)

    async def refresh(self) -> None:
        """Read what the operator has changed.

        Raises:
            LedgerUnavailableError: It cannot be read now; what was known goes on.
        """
        # One at a time: a slow read must not undo what a later one has seen.
        async with self._reading:
            changes = await self._database.read(listing.read_changes)
            if changes == self._changes:
                return
            self._changes = changes
            self._catalogue = listing.laid_over(self.base, changes)
        _log.info("offer_changed", models=len(self._catalogue.entries))
        for listener in self._listeners:
            listener(self._catalogue)

    async def follow_forever(self) -> None:
        """Notice what others change. Ends only by being cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.refresh()
            except LedgerUnavailableError as error:
                _log.warning("offer_not_read", reason=error.why)
