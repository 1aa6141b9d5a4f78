from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.doctor import machine
from darkbloom_provider.doctor.finding import Finding, Verdict
from darkbloom_provider.doctor.place import Place
from darkbloom_provider.host.posture import FACTS, Posture, linux_posture
from darkbloom_provider.paths import Home
from support.host_answers import tools
from support.macos_outputs import (
    AUTHENTICATED_ROOT_ENABLED,
    CSRUTIL_CUSTOM,
    HV_ABSENT,
    IBRIDGE_FULL,
    RDMA_ENABLED,
)

IN_ORDER = Posture(
    sip_enabled=True,
    secure_boot_enabled=True,
    rdma_disabled=True,
    hypervisor_active=False,
    authenticated_root=True,
)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def test_a_mac_in_order_is_in_order() -> None:
    assert {f.verdict for f in machine.judged(IN_ORDER)} == {Verdict.OK}


def test_unknown_is_never_told_as_good() -> None:
    found = list(machine.judged(Posture()))
    assert [f.check for f in found] == list(FACTS)
    assert {f.verdict for f in found} == {Verdict.UNKNOWN}


@pytest.mark.parametrize("fact", [name for name in FACTS if name != "hypervisor_active"])
def test_what_is_off_is_wrong_and_says_what_to_do(fact: str) -> None:
    change: dict[str, Any] = {fact: False}
    posture = dataclasses.replace(IN_ORDER, **change)
    found = by_name(list(machine.judged(posture)))
    assert found[fact].verdict is Verdict.WRONG
    assert "Recovery" in (found[fact].next_step or "")
    assert {f.verdict for name, f in found.items() if name != fact} == {Verdict.OK}


def test_a_guest_is_told_what_its_host_can_do() -> None:
    found = by_name(list(machine.judged(dataclasses.replace(IN_ORDER, hypervisor_active=True))))
    assert found["hypervisor_active"].verdict is Verdict.NOTE
    assert "read its memory" in found["hypervisor_active"].evidence


def test_what_does_not_exist_here_is_neither_good_nor_bad() -> None:
    found = by_name(list(machine.judged(linux_posture("flags : fpu\n", "x86_64"))))
    assert found["sip_enabled"].verdict is Verdict.NOTE
    assert "told as false, and no work comes without it" in found["sip_enabled"].evidence
    assert "told as unknown" in found["secure_boot_enabled"].evidence


def test_a_macs_tools_are_asked_and_quoted(tmp_path: Path) -> None:
    answers = {
        "csrutil status": CSRUTIL_CUSTOM,
        "csrutil authenticated-root status": AUTHENTICATED_ROOT_ENABLED,
        "system_profiler -json SPiBridgeDataType": IBRIDGE_FULL,
        "sysctl kern.hv_vmm_present": HV_ABSENT,
        "rdma_ctl status": RDMA_ENABLED,
    }
    place = Place(home=Home(tmp_path), environ={}, platform="darwin", ask=tools(answers))
    found = by_name(list(machine.posture(place)))
    assert "off: Filesystem Protections" in found["sip_enabled"].evidence
    assert found["rdma_disabled"].evidence == "rdma_ctl status: enabled"
    assert found["secure_boot_enabled"].verdict is Verdict.OK


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac may have one")
def test_a_mac_without_a_key_in_the_enclave_is_told_why(tmp_path: Path) -> None:
    (found,) = machine.secure_enclave(Place(home=Home(tmp_path), environ={}, platform="darwin"))
    assert found.verdict is Verdict.WRONG
    assert "no attestation is sent" in found.evidence
    assert found.next_step
