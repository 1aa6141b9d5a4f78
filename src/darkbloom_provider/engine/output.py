"""From one request's tokens to what its reader sees: text, and probabilities where asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from darkbloom_provider.engine.requests import TokenChoice, TokenLogprob
from darkbloom_provider.engine.text import Detokenizer, StopMatcher

Array = Any
"""`mlx.core.array`."""
TokenData = Callable[[int], bytes]
"""What a token writes."""


class Output:
    """The text side of one request.

    Args:
        detokenizer: Of this request alone.
        stops: Of this request alone.
        logprobs: Alternatives to tell for each token; None tells nothing.
        token_data: What a token writes.
    """

    __slots__ = ("_detokenizer", "_held", "_logprobs", "_token_data", "stops")

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: StopMatcher,
        logprobs: int | None,
        token_data: TokenData,
    ) -> None:
        self._detokenizer = detokenizer
        self.stops = stops
        self._logprobs = logprobs
        self._token_data = token_data
        self._held: list[TokenLogprob] = []

    def add(self, token: int, row: Array) -> tuple[str, tuple[TokenLogprob, ...]]:
        """The text that became certain with `token`, and the probabilities that go with it.

        Args:
            token: The token chosen.
            row: Log-probabilities of the whole vocabulary, computed already.
        """
        text = self.stops.feed(self._detokenizer.add(token))
        if self._logprobs is None:
            return text, ()
        if self.stops.matched:
            # What the stop string cut off was never said, and that token was a part of it.
            self._held.clear()
            return text, ()
        self._held.append(_logprob(token, host_row(row), self._logprobs, self._token_data))
        return text, () if self.stops.holding else self._all_held()

    def flush(self) -> tuple[str, tuple[TokenLogprob, ...]]:
        """What was held back, when no more will come."""
        return self.stops.flush(), self._all_held()

    def _all_held(self) -> tuple[TokenLogprob, ...]:
        held = tuple(self._held)
        self._held.clear()
        return held


def host_row(row: Array) -> npt.NDArray[np.float32]:
    """The numbers of an array that was computed already.

    They are read where they lie. Any further arithmetic of MLX would queue behind the step that is
    under way, and hold the whole batch up.
    """
    view = memoryview(row)
    raw = np.frombuffer(view.cast("B") if view.contiguous else view.tobytes(), np.uint8)
    if view.itemsize == np.float32().nbytes:
        return raw.view(np.float32)
    if view.format == "e":
        return raw.view(np.float16).astype(np.float32)
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)  # bfloat16


def _logprob(
    token: int, row: npt.NDArray[np.float32], count: int, token_data: TokenData
) -> TokenLogprob:
    best: list[int] = []
    if count:
        count = min(count, row.size)
        found = np.argpartition(row, row.size - count)[row.size - count :]
        best = [int(n) for n in found[np.argsort(-row[found], kind="stable")]]
    return TokenLogprob(
        TokenChoice(token_data(token), float(row[token])),
        tuple(TokenChoice(token_data(other), float(row[other])) for other in best),
    )
