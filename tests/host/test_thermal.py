from __future__ import annotations

import ctypes
from typing import Any

import pytest

from darkbloom_provider.host.thermal import (
    notified_level,
    thermal_of_pmset,
    thermal_of_pressure_level,
    thermal_state,
    thermometer,
)
from support.host_answers import tools
from support.macos_outputs import PMSET_APPLE_SILICON, PMSET_INTEL_COOL, PMSET_INTEL_THROTTLED

LEVEL = "com.apple.system.thermalpressurelevel"


class Notify:
    """`notify(3)` as notify.h declares it: a status, and the answer by reference."""

    def __init__(self, level: int = 0, *, registers: int = 0, tells: int = 0) -> None:
        self.level = level
        self.registered: list[bytes] = []
        register_status, tell_status = registers, tells

        def register_check(name: bytes, token: Any) -> int:
            self.registered.append(name)
            token[0] = 7
            return register_status

        def get_state(token: int, state: Any) -> int:
            assert token == 7
            state[0] = self.level
            return tell_status

        self.notify_register_check = ctypes.CFUNCTYPE(
            ctypes.c_uint32, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int)
        )(register_check)
        self.notify_get_state = ctypes.CFUNCTYPE(
            ctypes.c_uint32, ctypes.c_int, ctypes.POINTER(ctypes.c_uint64)
        )(get_state)


def nobody(*argv: str) -> Any:
    raise AssertionError(argv)


def test_a_mac_reads_its_pressure_level_and_starts_no_tool() -> None:
    library: Any = Notify()
    state = thermometer("darwin", nobody, library)
    seen = []
    for level in (0, 1, 2, 3, 4, 2**40):
        library.level = level
        seen.append(state())
    assert seen == ["nominal", "fair", "serious", "critical", "critical", "critical"]
    assert library.registered == [LEVEL.encode()]


@pytest.mark.parametrize("library", [object(), Notify(3, registers=2), Notify(3, tells=1)])
def test_where_the_level_cannot_be_read_the_tools_are_asked(library: Any) -> None:
    assert notified_level(library)() is None
    said = tools({"pmset": PMSET_APPLE_SILICON, "notifyutil": f"{LEVEL} 2\n"})
    assert thermometer("darwin", said, library)() == "serious"


def test_a_machine_of_another_make_is_never_hot() -> None:
    assert thermometer("linux", nobody)() == "nominal"


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
