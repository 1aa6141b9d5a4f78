"""One measured figure, and how it is taken."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.scale import Scale

Result = TypeVar("Result")
Measure = Callable[[], Awaitable[Result]]


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


def median_of(measure: Callable[[], float], scale: Scale) -> float:
    """The median of several rounds."""
    for _ in range(scale.warm_ups):
        measure()
    return statistics.median(measure() for _ in range(scale.rounds))


async def in_turn(measures: Sequence[Measure[Result]], scale: Scale) -> list[list[Result]]:
    """The counted results of each measurement, taken in turns: a drift of the machine hits all.

    Every round begins with another of them, so that none is always first.
    """
    for _ in range(scale.warm_ups):
        for measure in measures:
            await measure()
    results: list[list[Result]] = [[] for _ in measures]
    for number in range(scale.rounds):
        for step in range(len(measures)):
            index = (number + step) % len(measures)
            results[index].append(await measures[index]())
    return results


async def compared(
    name: str, unit: str, ours: Measure[float], peer: Measure[float], scale: Scale
) -> Figure:
    """The medians of ours and the peer's, taken in turns."""
    mine, theirs = await in_turn([ours, peer], scale)
    return Figure(name, statistics.median(mine), unit, statistics.median(theirs))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed.

    >>> percentile([3, 1, 2, 4], 0.5)
    2
    """
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
