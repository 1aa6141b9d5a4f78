from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.host.metrics import cpu_usage, memory_pressure, sampler


def test_a_sample_of_this_machine_is_in_range() -> None:
    found = sampler(platform="linux")()
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


def test_a_sample_tells_how_hot_it_is() -> None:
    assert sampler(thermal_state=lambda: "serious")().thermal_state == "serious"
