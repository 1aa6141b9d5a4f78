"""How fast the memory is."""

from __future__ import annotations

import itertools

from darkbloom_provider.host.bandwidth import Bandwidth, copied_gbs, memory_bandwidth
from darkbloom_provider.protocol.messages import CpuCores, Hardware


def machine(bandwidth: float) -> Hardware:
    return Hardware(
        machine_model="",
        chip_name="",
        chip_family="",
        chip_tier="",
        memory_gb=16,
        memory_available_gb=8,
        cpu_cores=CpuCores(total=2, performance=2),
        memory_bandwidth_gbs=bandwidth,
    )


def test_a_known_chip_is_not_measured() -> None:
    assert memory_bandwidth(machine(400), lambda: 1.0) == Bandwidth(400, "chip table")


def test_an_unknown_chip_is_measured_and_that_is_said() -> None:
    assert memory_bandwidth(machine(0), lambda: 21.5) == Bandwidth(21.5, "measured copy")


def test_a_copy_counts_every_byte_twice_and_the_best_round() -> None:
    lengths = [5.0, 2.0, 1.0, 4.0]
    moments = itertools.chain.from_iterable((10.0 * n, 10.0 * n + s) for n, s in enumerate(lengths))
    assert copied_gbs(1000, 3, threads=2, clock=lambda: next(moments)) == 2e-6


def test_a_real_copy_has_a_speed() -> None:
    assert copied_gbs(2**16, 1) > 0
