"""One measured figure, and how it is taken."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

ROUNDS = 5
"""Counted rounds; the median is quoted."""


@dataclass(frozen=True)
class Figure:
    """A median, in `unit`; `against` is the peer's median of the same run."""

    name: str
    value: float
    unit: str
    against: float | None = None

    def as_json(self) -> dict[str, object]:
        """One row of build/bench.json. `ratio` is ours over the peer's."""
        return {
            "name": self.name,
            "value": round(self.value, 4),
            "unit": self.unit,
            "against": None if self.against is None else round(self.against, 4),
            "ratio": None if not self.against else round(self.value / self.against, 4),
        }


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_of(measure: Callable[[], float], rounds: int = ROUNDS) -> float:
    """The median of several rounds, after one that is not counted."""
    measure()
    return statistics.median(measure() for _ in range(rounds))


def medians_in_turn(
    ours: Callable[[], float], peer: Callable[[], float], rounds: int = ROUNDS
) -> tuple[float, float]:
    """Medians of two measurements taken in turns, so that a drift of the machine hits both."""
    ours()
    peer()
    pairs = [(ours(), peer()) for _ in range(rounds)]
    return (
        statistics.median(pair[0] for pair in pairs),
        statistics.median(pair[1] for pair in pairs),
    )
