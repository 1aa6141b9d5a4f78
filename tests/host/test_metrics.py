from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.host import metrics
from darkbloom_provider.host.metrics import (
    cpu_usage,
    memory_pressure,
    thermal_of_pmset,
    thermal_of_pressure_level,
    thermal_state,
)
from support.host_answers import tools
from support.macos_outputs import PMSET_APPLE_SILICON, PMSET_INTEL_COOL, PMSET_INTEL_THROTTLED

LEVEL = "com.apple.system.thermalpressurelevel"


def test_a_sample_of_this_machine_is_in_range() -> None:
    found = metrics.sample(platform="linux")
    assert 0 < found.memory_pressure < 1
    assert 0 <= found.cpu_usage <= 1
    assert found.thermal_state == "nominal"


@given(st.floats(0, 1e6), st.integers(-1, 512))
def test_cpu_usage_is_a_fraction(load: float, cores: int) -> None:
    assert 0 <= cpu_usage(load, cores) <= 1


def test_cpu_usage_is_load_over_cores() -> None:
    assert cpu_usage(1.5, 4) == 0.375


def test_memory_pressure_is_what_is_not_available() -> None:
    assert memory_pressure(16, 4) == 0.75
    assert memory_pressure(16, 20) == 0
    assert memory_pressure(0, 0) == 0


@pytest.mark.parametrize(
    ("output", "state"),
    [
        (PMSET_APPLE_SILICON, "nominal"),
        (PMSET_INTEL_COOL, "nominal"),
        (PMSET_INTEL_THROTTLED, "serious"),
        ("\tCPU_Speed_Limit \t= 70\n", "fair"),
        ("Thermal warning level set to 0.\n", "nominal"),
        ("Thermal warning level set to 2.\n", "fair"),
        ("Thermal Warning Level set to 5.\n", "serious"),
        ("Thermal warning level set to 10.\n", "critical"),
        ("", "nominal"),
        ("\x00garbage", "nominal"),
    ],
)
def test_pmset_is_understood(output: str, state: str) -> None:
    assert thermal_of_pmset(output) == state


@pytest.mark.parametrize(
    ("output", "state"),
    [
        (f"{LEVEL} 0\n", "nominal"),
        (f"{LEVEL} 1\n", "fair"),
        (f"{LEVEL} 2\n", "serious"),
        (f"{LEVEL} 3\n", "critical"),
        (f"{LEVEL} 4\n", "critical"),
        ("", "nominal"),
        ("something else 3\n", "nominal"),
    ],
)
def test_the_pressure_level_of_apple_silicon_is_understood(output: str, state: str) -> None:
    assert thermal_of_pressure_level(output) == state


def test_the_worse_of_two_sources_counts() -> None:
    said = tools({"pmset": PMSET_APPLE_SILICON, "notifyutil": f"{LEVEL} 2\n"})
    assert thermal_state(said) == "serious"
    said = tools({"pmset": PMSET_INTEL_THROTTLED, "notifyutil": f"{LEVEL} 0\n"})
    assert thermal_state(said) == "serious"
    assert metrics.sample(platform="darwin", ask=said).thermal_state == "serious"
