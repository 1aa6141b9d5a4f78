"""Running requests whose readers are far behind: they stand still. Engine thread only.

Nothing of them is computed, and they are in nobody's way: out of the batch, with all that they need
to come back. One that leaves the batch copies its layers, so none leaves it before it has to.
"""

from __future__ import annotations

from darkbloom_provider.engine.decoding import Decoding, Parked
from darkbloom_provider.engine.extraction import begin_to_copy
from darkbloom_provider.engine.layers import merge


class Held:
    """Of one batch."""

    def __init__(self) -> None:
        self._keys: set[int] = set()
        self._parked: dict[int, Parked] = {}
        """Those of them that are out of the batch."""

    def __len__(self) -> int:
        return len(self._keys)

    def hold(self, key: int) -> None:
        """A request stands still from the next step on."""
        self._keys.add(key)

    def go_on(self, key: int) -> None:
        """A request, if it stood still, is computed again from the next step on."""
        self._keys.discard(key)

    def forget(self, key: int) -> None:
        """A request is gone, with all that was kept of it."""
        self._keys.discard(key)
        self._parked.pop(key, None)

    def clear(self) -> None:
        """All are gone."""
        self._keys.clear()
        self._parked.clear()

    def waits_for(self, decoding: Decoding) -> bool:
        """Whether some are still in the batch."""
        return any(key in decoding for key in self._keys)

    def put_aside(self, decoding: Decoding) -> None:
        """Take them out of the batch, right after its `flush`."""
        for key in self._keys:
            parked = decoding.park(key)
            if parked is not None:
                begin_to_copy(parked.layers)
                self._parked[key] = parked

    def bring_back(self, decoding: Decoding) -> None:
        """Put those that go on into the batch again."""
        for key in [key for key in self._parked if key not in self._keys]:
            parked = self._parked.pop(key)
            layers = [merge([layer]) for layer in parked.layers]
            decoding.join([parked.row], layers, [parked.input])
