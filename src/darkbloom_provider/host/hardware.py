"""What this machine is, as it is told to the coordinator (`register.hardware`).

`detect()` asks; the parsers are pure. A figure that this machine does not give is 0 or empty.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

from darkbloom_provider.host.command import Ask, Tools
from darkbloom_provider.protocol.messages import CpuCores, Hardware

GIB: Final = 2**30
UNKNOWN: Final = "Unknown"

BANDWIDTH_GBS: Final[dict[tuple[str, str], float]] = {
    ("M1", "Base"): 68,
    ("M1", "Pro"): 200,
    ("M1", "Max"): 400,
    ("M1", "Ultra"): 800,
    ("M2", "Base"): 100,
    ("M2", "Pro"): 200,
    ("M2", "Max"): 400,
    ("M2", "Ultra"): 800,
    ("M3", "Base"): 100,
    ("M3", "Pro"): 150,
    ("M3", "Max"): 300,
    ("M3", "Ultra"): 819,
    ("M4", "Base"): 120,
    ("M4", "Pro"): 273,
    ("M4", "Max"): 410,
}
"""Memory bandwidth in GB/s, the vendor's figures. A Max is listed with its smaller GPU."""

_FULL_MAX: Final = {"M3": (40, 400.0), "M4": (40, 546.0)}
"""For a Max that exists in two sizes: GPU cores of the full one, and its bandwidth in GB/s."""

_SYSCTL_KEYS: Final = (
    "hw.model",
    "machdep.cpu.brand_string",
    "hw.memsize",
    "hw.physicalcpu",
    *(f"hw.perflevel{level}.{key}" for level in range(3) for key in ("physicalcpu", "name")),
)


class Chip(NamedTuple):
    """A chip's name taken apart, in the network's words."""

    family: str
    """`M1` … or `Unknown`."""
    tier: str
    """`Base`, `Pro`, `Max`, `Ultra` or `Unknown`."""


def detect(
    *, platform: str = sys.platform, ask: Ask | None = None, root: Path = Path("/")
) -> Hardware:
    """Measure this machine. Takes up to a few seconds on a Mac: call it off the event loop.

    Args:
        platform: `sys.platform`.
        ask: How the system's tools are asked.
        root: Where `/proc` and `/sys` are.
    """
    memory = psutil.virtual_memory()
    if platform == "darwin":
        ask = ask or Tools()
        return from_macos(
            sysctl=ask("sysctl", *_SYSCTL_KEYS).out,
            profiler=ask(
                "system_profiler", "-json", "SPHardwareDataType", "SPDisplaysDataType"
            ).out,
            total_bytes=memory.total,
            available_bytes=memory.available,
        )
    return from_linux(
        cpuinfo=_text(root / "proc/cpuinfo"),
        model=_linux_model(root),
        cores=psutil.cpu_count(logical=False) or psutil.cpu_count() or 0,
        total_bytes=memory.total,
        available_bytes=memory.available,
    )


def memory_bytes() -> int:
    """All memory of this machine. Returns at once, unlike `detect`."""
    return int(psutil.virtual_memory().total)


def chip_of(name: str) -> Chip:
    """Family and tier of a chip by its name.

    >>> chip_of("Apple M4 Max")
    Chip(family='M4', tier='Max')
    >>> chip_of("AMD EPYC")
    Chip(family='Unknown', tier='Unknown')
    """
    match = re.match(r"Apple (M\d+)(?: (Pro|Max|Ultra))?\b", name)
    return Chip(match.group(1), match.group(2) or "Base") if match else Chip(UNKNOWN, UNKNOWN)


def bandwidth_gbs(chip: Chip, gpu_cores: int) -> float:
    """The vendor's memory bandwidth in GB/s, 0 if the chip is not in the table."""
    if chip.tier == "Max" and chip.family in _FULL_MAX:
        cores, full = _FULL_MAX[chip.family]
        if gpu_cores >= cores:
            return full
    return BANDWIDTH_GBS.get((chip.family, chip.tier), 0)


def from_macos(*, sysctl: str, profiler: str, total_bytes: int, available_bytes: int) -> Hardware:
    """Hardware from the output of `sysctl KEYS` and `system_profiler -json`.

    Either may be empty or damaged: what one does not say is taken from the other.
    """
    said = sysctl_values(sysctl)
    overview = profiler_item(profiler, "SPHardwareDataType")
    # The GPU of the chip itself, not one in a box beside it.
    graphics = profiler_item(profiler, "SPDisplaysDataType", having="sppci_cores")
    name = said.get("machdep.cpu.brand_string") or str(overview.get("chip_type", ""))
    chip = chip_of(name)
    gpu_cores = _integer(graphics.get("sppci_cores"))
    return Hardware(
        machine_model=said.get("hw.model") or str(overview.get("machine_model", "")),
        chip_name=name,
        chip_family=chip.family,
        chip_tier=chip.tier,
        memory_gb=(_integer(said.get("hw.memsize")) or total_bytes) // GIB,
        memory_available_gb=round(available_bytes / GIB, 1),
        cpu_cores=apple_cores(said),
        gpu_cores=gpu_cores,
        memory_bandwidth_gbs=bandwidth_gbs(chip, gpu_cores),
    )


def apple_cores(said: dict[str, str]) -> CpuCores:
    """Core counts from the performance levels that sysctl lists, fastest first.

    Levels carry names since macOS 12 ("Performance", "Efficiency", on newer chips also "Super");
    everything that is not called "Efficiency" counts as performance. Without names the slowest of
    several levels is the efficient one.
    """
    levels = [
        (said.get(f"hw.perflevel{level}.name", ""), count)
        for level in range(3)
        if (count := _integer(said.get(f"hw.perflevel{level}.physicalcpu")))
    ]
    total = sum(count for _, count in levels) or _integer(said.get("hw.physicalcpu"))
    if any(name for name, _ in levels):
        efficiency = sum(count for name, count in levels if name == "Efficiency")
    else:
        efficiency = levels[-1][1] if len(levels) > 1 else 0
    return CpuCores(total=total, performance=total - efficiency, efficiency=efficiency)


def sysctl_values(text: str) -> dict[str, str]:
    """`name: value` lines as a table. Keys that the system does not know are simply not there."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def profiler_item(text: str, section: str, *, having: str | None = None) -> dict[str, Any]:
    """The first entry of a section of `system_profiler -json` (with a key, if one is named)."""
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    entries = document.get(section) if isinstance(document, dict) else None
    if not isinstance(entries, list):
        return {}
    fit = (e for e in entries if isinstance(e, dict) and (having is None or having in e))
    return next(fit, {})


def from_linux(
    *, cpuinfo: str, model: str, cores: int, total_bytes: int, available_bytes: int
) -> Hardware:
    """Hardware from `/proc/cpuinfo` and the figures of psutil. There is no GPU that MLX uses."""
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return Hardware(
        machine_model=model,
        chip_name=match.group(1).strip() if match else "",
        chip_family=UNKNOWN,
        chip_tier=UNKNOWN,
        memory_gb=total_bytes // GIB,
        memory_available_gb=round(available_bytes / GIB, 1),
        cpu_cores=CpuCores(total=cores, performance=cores),
    )


def _linux_model(root: Path) -> str:
    # Firmware tables on a PC, the device tree on an ARM board, nothing in a container.
    for path in ("sys/class/dmi/id/product_name", "proc/device-tree/model"):
        if model := _text(root / path).strip("\0\n "):
            return model
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _integer(value: object) -> int:
    try:
        return max(0, int(str(value)))
    except ValueError:
        return 0
