"""How hot this machine is, in the network's four words."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from typing import Final

from darkbloom_provider.host.command import Ask, Tools

THERMAL_STATES: Final = ("nominal", "fair", "serious", "critical")
"""The network's words, coolest first. At `critical` the coordinator sends no work."""

_PRESSURE_KEY: Final = "com.apple.system.thermalpressurelevel"
"""Apple silicon publishes its thermal pressure as the state of this notification."""
_NOTIFY_STATUS_OK: Final = 0


def thermometer(
    platform: str, ask: Ask | None = None, library: ctypes.CDLL | None = None
) -> Callable[[], str]:
    """A function that tells the present state; off a Mac it is always nominal.

    Args:
        platform: As in `sys.platform`.
        ask: Runs a tool of the system.
        library: A C library with `notify_register_check` and `notify_get_state`; by default the
            system's.
    """
    if platform != "darwin":
        return lambda: THERMAL_STATES[0]
    told = notified_level(ctypes.CDLL(None) if library is None else library)
    tools = ask or Tools(timeout_s=2)

    def state() -> str:
        level = told()
        return thermal_state(tools) if level is None else thermal_of_level(level)

    return state


def notified_level(library: ctypes.CDLL) -> Callable[[], int | None]:
    """A function that reads the pressure level as `notify(3)` publishes it, in microseconds.

    None where it cannot be read. Each heartbeat asks, and starting two tools for it would cost an
    idle machine more than all the rest.
    """
    token = ctypes.c_int()
    try:
        register, get_state = library.notify_register_check, library.notify_get_state
    except AttributeError:
        return lambda: None
    register.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_int)]
    get_state.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_uint64)]
    register.restype = get_state.restype = ctypes.c_uint32
    if register(_PRESSURE_KEY.encode(), ctypes.byref(token)) != _NOTIFY_STATUS_OK:
        return lambda: None

    def level() -> int | None:
        state = ctypes.c_uint64()
        status = get_state(token, ctypes.byref(state))
        return state.value if status == _NOTIFY_STATUS_OK else None

    return level


def thermal_state(ask: Ask) -> str:
    """The worse of what two tools say, where the level cannot be read: `pmset`, `notifyutil`.

    `pmset` reports on Intel only. A tool that says nothing counts as nominal.
    """
    said = (
        thermal_of_pmset(ask("pmset", "-g", "therm").out),
        thermal_of_pressure_level(ask("notifyutil", "-g", _PRESSURE_KEY).out),
    )
    return max(said, key=THERMAL_STATES.index)


def thermal_of_pmset(text: str) -> str:
    """The state that `pmset -g therm` describes.

    Warning levels are those of IOKit's IOPMLib.h: 0 normal, 5 danger, 10 crisis. A CPU that is
    held below its speed counts as fair, below half of it as serious.
    """
    worst = 0
    if warning := re.search(r"(?im)^Thermal warning level set to (\d+)", text):
        level = int(warning.group(1))
        worst = 0 if level == 0 else 1 if level < 5 else 2 if level < 10 else 3  # noqa: PLR2004 - IOPMLib.h
    if limit := re.search(r"(?m)^\s*CPU_Speed_Limit\s*=\s*(\d+)", text):
        percent = int(limit.group(1))
        worst = max(worst, 0 if percent >= 100 else 1 if percent >= 50 else 2)  # noqa: PLR2004 - percent
    return THERMAL_STATES[worst]


def thermal_of_pressure_level(text: str) -> str:
    """The state that `notifyutil -g com.apple.system.thermalpressurelevel` describes.

    Text of another shape counts as nominal.
    """
    match = re.fullmatch(rf"{re.escape(_PRESSURE_KEY)}\s+(\d+)", text.strip())
    return thermal_of_level(int(match.group(1))) if match else THERMAL_STATES[0]


def thermal_of_level(level: int) -> str:
    """The state that a level of OSThermalNotification.h (macOS) means.

    0 nominal, 1 moderate, 2 heavy, 3 trapping, 4 sleeping.
    """
    return THERMAL_STATES[min(level, 3)]
