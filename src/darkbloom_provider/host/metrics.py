"""How busy this machine is, as each heartbeat tells it (`heartbeat.system_metrics`)."""

from __future__ import annotations

import os
import re
import sys
from typing import Final

import psutil

from darkbloom_provider.host.command import Ask, Tools
from darkbloom_provider.protocol.messages import SystemMetrics

THERMAL_STATES: Final = ("nominal", "fair", "serious", "critical")
"""The network's words, coolest first. At `critical` the coordinator sends no work."""

_PRESSURE_KEY: Final = "com.apple.system.thermalpressurelevel"


def sample(*, platform: str = sys.platform, ask: Ask | None = None) -> SystemMetrics:
    """Measure now. On a Mac it asks two tools (some 20 ms): call it off the event loop."""
    memory = psutil.virtual_memory()
    return SystemMetrics(
        memory_pressure=memory_pressure(memory.total, memory.available),
        cpu_usage=cpu_usage(os.getloadavg()[0], os.cpu_count() or 1),
        thermal_state=thermal_state(ask or Tools(timeout_s=2))
        if platform == "darwin"
        else "nominal",
    )


def memory_pressure(total_bytes: int, available_bytes: int) -> float:
    """The part of memory that is not available to a new program, 0-1."""
    return _fraction(1 - available_bytes / total_bytes) if total_bytes > 0 else 0.0


def cpu_usage(load: float, cores: int) -> float:
    """The load average of the last minute over the number of cores, 0-1."""
    return _fraction(load / cores) if cores > 0 else 0.0


def thermal_state(ask: Ask) -> str:
    """The worse of what the two sources of macOS say.

    `pmset` reports on Intel only; Apple silicon publishes its thermal pressure as a notification
    state that `notifyutil` reads. A source that says nothing counts as nominal.
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

    Levels are those of OSThermalNotification.h on macOS: 0 nominal, 1 moderate, 2 heavy,
    3 trapping, 4 sleeping.
    """
    match = re.fullmatch(rf"{re.escape(_PRESSURE_KEY)}\s+(\d+)", text.strip())
    return THERMAL_STATES[min(int(match.group(1)), 3)] if match else THERMAL_STATES[0]


def _fraction(value: float) -> float:
    return min(1.0, max(0.0, value))
