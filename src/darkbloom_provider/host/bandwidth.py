"""How fast this machine's memory is: what the vendor says of the chip, else a measured copy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from darkbloom_provider.protocol.messages import Hardware

COPIED_BYTES = 256 * 2**20
"""Far more than any processor's cache."""
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """GB/s (10^9 bytes), and how they are known."""

    gbs: float
    source: Literal["chip table", "measured copy"]


def memory_bandwidth(hardware: Hardware, measure: Callable[[], float] | None = None) -> Bandwidth:
    """The vendor's figure for the chip; for a chip that is not in the table, a copy is timed.

    Takes a second or two in that case.
    """
    if hardware.memory_bandwidth_gbs > 0:
        return Bandwidth(hardware.memory_bandwidth_gbs, "chip table")
    return Bandwidth((measure or copied_gbs)(), "measured copy")


def copied_gbs(
    nbytes: int = COPIED_BYTES,
    rounds: int = ROUNDS,
    *,
    threads: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """GB/s of copying one large array to another, the best of several rounds.

    Every byte counts twice, read and written, as in the STREAM benchmark's "copy".

    Args:
        nbytes: Size of the array.
        rounds: How often, after one that is not counted.
        threads: That copy a part each; one for each processor if absent.
        clock: Seconds.
    """
    workers = threads or os.cpu_count() or 1
    source, target = np.ones(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
    parts = list(zip(np.array_split(target, workers), np.array_split(source, workers), strict=True))
    best = 0.0
    with ThreadPoolExecutor(workers, "bandwidth") as pool:
        for number in range(rounds + 1):
            start = clock()
            list(pool.map(lambda part: np.copyto(*part), parts))
            elapsed = max(clock() - start, 1e-9)
            if number:
                best = max(best, 2 * nbytes / 1e9 / elapsed)
    return best
