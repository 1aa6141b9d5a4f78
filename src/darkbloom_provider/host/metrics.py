"""How busy this machine is, as each heartbeat tells it (`heartbeat.system_metrics`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import psutil

from darkbloom_provider.host import thermal
from darkbloom_provider.protocol.messages import SystemMetrics


def sampler(
    *, platform: str = sys.platform, thermal_state: Callable[[], str] | None = None
) -> Callable[[], SystemMetrics]:
    """A function that measures now, for a thread: on an old Mac it asks tools (some 20 ms).

    What it needs of the system is looked up here, because a sealed process loads nothing any more.
    """
    if thermal_state is None:
        thermal_state = thermal.thermometer(platform)

    def sample() -> SystemMetrics:
        memory = psutil.virtual_memory()
        return SystemMetrics(
            memory_pressure=memory_pressure(memory.total, memory.available),
            cpu_usage=cpu_usage(os.getloadavg()[0], os.cpu_count() or 1),
            thermal_state=thermal_state(),
        )

    return sample


def memory_pressure(total_bytes: int, available_bytes: int) -> float:
    """The part of memory that is not available to a new program, 0-1."""
    return _fraction(1 - available_bytes / total_bytes) if total_bytes > 0 else 0.0


def cpu_usage(load: float, cores: int) -> float:
    """The load average of the last minute over the number of cores, 0-1."""
    return _fraction(load / cores) if cores > 0 else 0.0


def _fraction(value: float) -> float:
    return min(1.0, max(0.0, value))
