"""Requests counted, for `status` and the heartbeat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from darkbloom_provider.control.models import JobCounts
from darkbloom_provider.protocol.messages import Usage

MAX_NAMES = 64
"""Names of unknown parameters that are told apart; consumers choose them."""


class Tally:
    """What became of the requests since the start."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._ignored: Counter[str] = Counter()

    def counts(self, in_flight: int) -> JobCounts:
        """The figures, with `in_flight` requests under way."""
        return JobCounts(
            in_flight=in_flight, ignored_parameters=dict(self._ignored), **self._counts
        )

    def served(self, usage: Usage) -> None:
        """A request was answered."""
        self._counts["served"] += 1
        self._counts["prompt_tokens"] += usage.prompt_tokens
        self._counts["completion_tokens"] += usage.completion_tokens

    def failed(self) -> None:
        """A request was refused, or failed."""
        self._counts["failed"] += 1

    def cancelled(self) -> None:
        """Nobody waits for the answer any more."""
        self._counts["cancelled"] += 1

    def ignored(self, names: Iterable[str]) -> None:
        """A request had parameters that nobody knows."""
        for name in names:
            known = name in self._ignored or len(self._ignored) < MAX_NAMES
            self._ignored[name if known else "?"] += 1
