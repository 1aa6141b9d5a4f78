"""Memory that this process has freed and its C library keeps for later."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable


def relief(platform: str = sys.platform) -> Callable[[], None]:
    """A function that hands unused memory of the heap back to the system; blocks for milliseconds.

    Looked up now, because a sealed process opens no library any more. Linux: `malloc_trim(3)` of
    glibc. macOS: `malloc_zone_pressure_relief` of malloc/malloc.h, for all zones and as much as
    there is. Elsewhere, as with musl, it does nothing.
    """
    libc = ctypes.CDLL(None)
    try:
        if platform == "darwin":
            zones = libc.malloc_zone_pressure_relief
            zones.argtypes, zones.restype = [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_size_t
            return lambda: zones(None, 0)
        trim = libc.malloc_trim
    except AttributeError:
        return lambda: None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return lambda: trim(0)
