from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.host import hardware
from darkbloom_provider.host.hardware import (
    GIB,
    Chip,
    apple_cores,
    bandwidth_gbs,
    chip_of,
    from_linux,
    from_macos,
    profiler_item,
    sysctl_values,
)
from darkbloom_provider.protocol.messages import CpuCores
from support.host_answers import tools
from support.macos_outputs import (
    DISPLAYS_M3_PRO,
    PROFILER_M4_MAX,
    SYSCTL_M1_PRO,
    SYSCTL_M4_PRO,
)


@pytest.mark.parametrize(
    ("name", "chip"),
    [
        ("Apple M1", Chip("M1", "Base")),
        ("Apple M2 Ultra", Chip("M2", "Ultra")),
        ("Apple M4 Max", Chip("M4", "Max")),
        ("Apple M4 Pro (Virtual)", Chip("M4", "Pro")),
        ("Apple M10", Chip("M10", "Base")),
        ("Apple processor", Chip("Unknown", "Unknown")),
        ("Intel(R) Core(TM) i7-8700B CPU @ 3.20GHz", Chip("Unknown", "Unknown")),
        ("", Chip("Unknown", "Unknown")),
    ],
)
def test_a_chips_name_gives_family_and_tier(name: str, chip: Chip) -> None:
    assert chip_of(name) == chip


@pytest.mark.parametrize(
    ("chip", "gpu_cores", "expected"),
    [
        (Chip("M1", "Base"), 8, 68),
        (Chip("M1", "Ultra"), 48, 800),
        (Chip("M3", "Max"), 30, 300),
        (Chip("M3", "Max"), 40, 400),
        (Chip("M4", "Max"), 32, 410),
        (Chip("M4", "Max"), 40, 546),
        (Chip("M9", "Ultra"), 99, 0),
        (Chip("Unknown", "Unknown"), 0, 0),
    ],
)
def test_bandwidth_is_the_vendors_figure_or_nothing(
    chip: Chip, gpu_cores: int, expected: float
) -> None:
    assert bandwidth_gbs(chip, gpu_cores) == expected


def test_a_mac_is_read_from_sysctl_first() -> None:
    found = from_macos(sysctl=SYSCTL_M4_PRO, profiler="", total_bytes=1, available_bytes=20 * GIB)
    assert found.machine_model == "Mac16,11"
    assert found.chip_name == "Apple M4 Pro"
    assert (found.chip_family, found.chip_tier) == ("M4", "Pro")
    assert found.memory_gb == 24
    assert found.memory_available_gb == 20
    assert found.cpu_cores == CpuCores(total=12, performance=8, efficiency=4)
    assert found.memory_bandwidth_gbs == 273


def test_what_sysctl_does_not_say_comes_from_system_profiler() -> None:
    found = from_macos(sysctl="", profiler=PROFILER_M4_MAX, total_bytes=48 * GIB, available_bytes=0)
    assert found.machine_model == "Mac16,5"
    assert found.chip_name == "Apple M4 Max"
    assert found.memory_gb == 48
    assert found.gpu_cores == 40
    assert found.memory_bandwidth_gbs == 546


def test_gpu_cores_are_the_chips_own_not_a_displays() -> None:
    assert (
        profiler_item(DISPLAYS_M3_PRO, "SPDisplaysDataType", having="sppci_cores")["sppci_cores"]
        == "14"
    )


def test_levels_without_names_count_the_slowest_as_efficient() -> None:
    assert apple_cores(sysctl_values(SYSCTL_M1_PRO)) == CpuCores(
        total=10, performance=8, efficiency=2
    )


def test_a_chip_with_super_cores_has_no_efficiency_cores_invented() -> None:
    # https://github.com/wandb/wandb/pull/12680: M5 Pro and Max list two kinds of fast cores.
    said = sysctl_values(
        "hw.perflevel0.physicalcpu: 6\nhw.perflevel0.name: Super\n"
        "hw.perflevel1.physicalcpu: 12\nhw.perflevel1.name: Performance\n"
    )
    assert apple_cores(said) == CpuCores(total=18, performance=18, efficiency=0)


def test_a_mac_is_asked_for_both_tools() -> None:
    found = hardware.detect(
        platform="darwin",
        ask=tools({"sysctl": SYSCTL_M1_PRO, "system_profiler -json": PROFILER_M4_MAX}),
    )
    assert found.chip_name == "Apple M1 Pro"
    assert found.machine_model == "Mac16,5"
    assert found.memory_gb > 0


def test_a_mac_whose_tools_say_nothing_is_still_described() -> None:
    found = hardware.detect(platform="darwin", ask=tools({}))
    assert found.chip_family == "Unknown"
    assert found.memory_bandwidth_gbs == 0


@given(
    st.text(),
    st.one_of(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(
                    st.sampled_from(
                        ["SPHardwareDataType", "SPDisplaysDataType", "sppci_cores", "chip_type"]
                    ),
                    inner,
                )
            ),
            max_leaves=8,
        ).map(json.dumps),
    ),
)
def test_no_output_whatever_breaks_the_parsers(sysctl: str, profiler: str) -> None:
    found = from_macos(sysctl=sysctl, profiler=profiler, total_bytes=GIB, available_bytes=0)
    assert found.gpu_cores >= 0


def test_linux_is_read_from_proc() -> None:
    found = from_linux(
        cpuinfo="processor\t: 0\nmodel name\t: AMD EPYC\nflags\t: fpu\n",
        model="",
        cores=2,
        total_bytes=int(15.6 * GIB),
        available_bytes=8 * GIB,
    )
    assert found.chip_name == "AMD EPYC"
    assert (found.chip_family, found.chip_tier) == ("Unknown", "Unknown")
    assert found.memory_gb == 15, "never more than there is"
    assert found.cpu_cores == CpuCores(total=2, performance=2)
    assert found.memory_bandwidth_gbs == 0


def test_a_boards_name_comes_from_firmware_or_the_device_tree(tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"Raspberry Pi 5 Model B\0")
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\n")
    found = hardware.detect(platform="linux", root=tmp_path)
    assert found.machine_model == "Raspberry Pi 5 Model B"
    assert found.chip_name == ""
