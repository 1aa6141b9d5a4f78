"""The clock a session is timed with."""

from __future__ import annotations

import time
from typing import Final

_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def waking_clock() -> float:
    """Seconds since an arbitrary point, never set back, that also pass while the machine sleeps.

    `time.monotonic()` stands still during sleep on macOS (it is `mach_absolute_time`) and on Linux,
    so a link timed with it would wake up and not know that the coordinator gave it up long ago.
    On macOS `CLOCK_MONOTONIC` goes on during sleep (`clock_gettime(3)`), on Linux `CLOCK_BOOTTIME`.
    """
    return time.clock_gettime(_CLOCK)


def to_the_beat(period_s: float, clock_s: float) -> float:
    """Seconds from `clock_s` until the next whole multiple of `period_s`.

    Whatever is done every second and sleeps by this is done in one wake of the processor, so that
    an idle machine rests in between.
    """
    return period_s - clock_s % period_s
