"""When a model that keeps failing is left alone, and when it is tried again. Pure.

A failed step fails what was in flight and no more: the next request finds a new batch. Only when
failures follow each other without one completion in between is the model taken out of service, for
twice as long each time, until a probe shows that it computes again.
"""

from __future__ import annotations


class Breaker:
    """Counts one model's failures.

    Args:
        tolerated: Failures in a row after which the model still serves.
        first_s: Seconds until the first probe.
        longest_s: The most that those seconds grow to, doubling.
    """

    def __init__(
        self, *, tolerated: int = 2, first_s: float = 1.0, longest_s: float = 60.0
    ) -> None:
        self._tolerated = tolerated
        self._first_s = first_s
        self._longest_s = longest_s
        self._failures = 0
        self._opened = 0
        self._retry_at = 0.0
        self.problem: str | None = None
        """Why the model is out of service; None while it serves."""

    @property
    def open(self) -> bool:
        """Whether the model is out of service."""
        return self.problem is not None

    def failed(self, now: float, reason: str) -> None:
        """A step or a probe failed."""
        self._failures += 1
        if self.open or self._failures > self._tolerated:
            self.trip(now, reason)

    def trip(self, now: float, reason: str) -> None:
        """Take the model out of service at once."""
        self._failures = max(self._failures, self._tolerated)
        # The exponent is bounded: a machine may stand like this for months.
        wait = self._first_s * 2 ** min(self._opened, 32)
        self._opened += 1
        self._retry_at = now + min(wait, self._longest_s)
        self.problem = reason

    def probe_in(self, now: float) -> float | None:
        """Seconds until the next probe, 0 if it is due; None while the model serves."""
        return max(self._retry_at - now, 0.0) if self.open else None

    def probed(self) -> None:
        """A probe succeeded: serve again, but with one failure more it is over again."""
        self.problem = None

    def completed(self) -> None:
        """A request was completed: whatever was, is forgotten."""
        self._failures = self._opened = 0
        self.problem = None
