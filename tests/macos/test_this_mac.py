"""What only a Mac can show: the real tools say what the parsers expect."""

from __future__ import annotations

import ctypes
import plistlib
import subprocess
import sys
from pathlib import Path

import pytest

from darkbloom_provider.doctor import machine
from darkbloom_provider.doctor.finding import Verdict
from darkbloom_provider.doctor.place import Place
from darkbloom_provider.host import command, enclave, hardware, launchd, metrics, posture, thermal
from darkbloom_provider.host.command import Tools
from darkbloom_provider.host.enclave import EnclaveError
from darkbloom_provider.host.launchd import LaunchdService
from darkbloom_provider.host.service import ServiceSpec
from darkbloom_provider.paths import Home
from darkbloom_provider.protocol import signed

pytestmark = [
    pytest.mark.macos,
    pytest.mark.skipif(sys.platform != "darwin", reason="asks macOS's own tools"),
]


def test_the_hardware_of_this_mac_is_read() -> None:
    found = hardware.detect()
    assert found.machine_model
    assert found.chip_name
    assert found.memory_gb >= 8
    assert found.cpu_cores.total >= found.cpu_cores.performance > 0
    if found.chip_name.startswith("Apple M"):
        assert found.chip_family != hardware.UNKNOWN
        assert found.gpu_cores > 0


def test_every_fact_of_the_posture_is_learned_or_says_why_not() -> None:
    found = posture.measure()
    assert found.sip_enabled is not None, found.evidence
    assert found.authenticated_root is not None, found.evidence
    assert found.hypervisor_active is not None, found.evidence
    assert found.rdma_disabled is not None, found.evidence
    assert set(found.evidence) == set(posture.FACTS)


def test_the_secure_enclave_makes_a_key_or_the_system_says_why_not() -> None:
    try:
        key = enclave.new_key()
    except EnclaveError as error:
        pytest.skip(str(error))
    assert signed.verify(key.public_text, key.sign(b"message"), b"message")


def test_doctor_finds_out_every_fact_of_the_posture(tmp_path: Path) -> None:
    found = list(machine.posture(Place(home=Home(tmp_path), environ={})))
    assert not [f for f in found if f.verdict is Verdict.UNKNOWN], found


def test_the_load_of_this_mac_is_in_range() -> None:
    found = metrics.sampler()()
    assert 0 < found.memory_pressure < 1
    assert found.thermal_state in thermal.THERMAL_STATES


def test_apple_accepts_the_plist(tmp_path: Path) -> None:
    path = tmp_path / "agent.plist"
    path.write_bytes(
        launchd.render(
            launchd.template(), ServiceSpec("/a & <b>/python", tmp_path / 'l"og', {"A": "&"})
        )
    )
    subprocess.run(["/usr/bin/plutil", "-lint", str(path)], check=True, capture_output=True)
    assert plistlib.loads(path.read_bytes())["Label"] == "io.darkbloom.provider"


def test_launchctl_answers_about_an_agent_that_is_not_there(tmp_path: Path) -> None:
    service = LaunchdService(tmp_path, Tools())
    assert not service.status().installed


def test_a_debugger_is_denied_and_every_flag_measured() -> None:
    program = (
        "from darkbloom_provider.host import privacy, posture\n"
        "report = privacy.harden(); report.seal.close()\n"
        "found = privacy.checks(report, engine_in_process=True, posture=posture.Posture())\n"
        "bad = {n: c for n, c in found.items()"
        " if not c.holds and n not in ('sip_enabled', 'hypervisor_active')}\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-I", "-c", program], check=True, env={"HOME": "/nonexistent"})


def test_this_mac_tells_its_thermal_pressure_without_a_tool() -> None:
    level = thermal.notified_level(ctypes.CDLL(None))()
    assert level is not None
    told = command.Tools()("notifyutil", "-g", "com.apple.system.thermalpressurelevel").out
    assert thermal.thermal_of_level(level) == thermal.thermal_of_pressure_level(told)
