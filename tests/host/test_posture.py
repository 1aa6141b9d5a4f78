from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.coordinator.providers.challenges import judge
from darkbloom_provider.host import posture
from darkbloom_provider.host.posture import (
    FACTS,
    Posture,
    authenticated_root,
    development,
    hypervisor,
    linux_posture,
    measure,
    rdma_disabled,
    secure_boot,
    sip,
)
from darkbloom_provider.protocol.messages import AttestationChallenge, AttestationResponse
from support.host_answers import MISSING, said, tools
from support.macos_outputs import (
    AUTHENTICATED_ROOT_ASKS,
    AUTHENTICATED_ROOT_DISABLED,
    AUTHENTICATED_ROOT_ENABLED,
    AUTHENTICATED_ROOT_UNKNOWN,
    CSRUTIL_CUSTOM,
    CSRUTIL_CUSTOM_10_11,
    CSRUTIL_CUSTOM_10_15,
    CSRUTIL_CUSTOM_VIRTUAL,
    CSRUTIL_DEBUGGING_OFF,
    CSRUTIL_DISABLED,
    CSRUTIL_ENABLED,
    HV_ABSENT,
    HV_PRESENT,
    IBRIDGE_FULL,
    RDMA_ENABLED,
)

GOOD_MAC = {
    "csrutil status": CSRUTIL_ENABLED,
    "csrutil authenticated-root status": AUTHENTICATED_ROOT_ENABLED,
    "system_profiler -json SPiBridgeDataType": IBRIDGE_FULL,
    "sysctl kern.hv_vmm_present": HV_ABSENT,
    "rdma_ctl status": "disabled\n",
    "sw_vers -productVersion": "26.2\n",
}


def test_a_mac_in_order_is_measured_as_such() -> None:
    found = measure(platform="darwin", ask=tools(GOOD_MAC))
    assert found.sip_enabled is True
    assert found.secure_boot_enabled is True
    assert found.rdma_disabled is True
    assert found.hypervisor_active is False
    assert found.authenticated_root is True
    assert set(found.evidence) == set(FACTS)
    assert all(found.evidence.values())
    assert found.kind == "measured"


def test_a_mac_whose_tools_do_not_answer_is_unknown_not_fine() -> None:
    found = measure(platform="darwin", ask=tools({}))
    assert [getattr(found, name) for name in FACTS] == [None] * len(FACTS)
    assert set(found.evidence) == set(FACTS)


@pytest.mark.parametrize(
    ("output", "value"),
    [
        (CSRUTIL_ENABLED, True),
        (CSRUTIL_DISABLED, False),
        (CSRUTIL_CUSTOM, False),
        (CSRUTIL_CUSTOM_10_11, False),
        (CSRUTIL_CUSTOM_10_15, False),
        (CSRUTIL_CUSTOM_VIRTUAL, False),
        (CSRUTIL_DEBUGGING_OFF, False),
        (CSRUTIL_CUSTOM.replace("disabled", "enabled"), True),
        ("System Integrity Protection status: unknown (Custom Configuration).\n", None),
        ("System Integrity Protection status: enabled (Custom Configuration).\n", None),
        ("prefix System Integrity Protection status: enabled.\n", None),
        ("", None),
    ],
)
def test_csrutil_is_understood(output: str, value: bool | None) -> None:
    assert sip(said(output)).value is value


def test_a_custom_sip_names_what_is_off() -> None:
    assert "Filesystem Protections" in sip(said(CSRUTIL_CUSTOM)).evidence
    assert "Apple Internal" not in sip(said(CSRUTIL_CUSTOM)).evidence


def test_a_tool_that_fails_proves_nothing() -> None:
    assert sip(said(CSRUTIL_ENABLED, code=1)).value is None
    assert authenticated_root(said(AUTHENTICATED_ROOT_ENABLED, code=1)).value is None
    assert secure_boot(said(IBRIDGE_FULL, code=1)).value is None
    assert rdma_disabled(said("disabled\n", code=1), said("26.2\n")).value is None
    assert hypervisor(said(HV_ABSENT, code=1)).value is None


@pytest.mark.parametrize(
    ("level", "value"),
    [
        ("Full Security", True),
        ("Reduced Security", False),
        ("Permissive Security", False),
        ("Medium Security", False),
        ("No Security", False),
        ("Volle Sicherheit", None),
    ],
)
def test_secure_boot_is_true_at_full_security_only(level: str, value: bool | None) -> None:
    found = secure_boot(said(IBRIDGE_FULL.replace("Full Security", level)))
    assert found.value is value
    assert level in found.evidence


def test_a_mac_without_a_security_level_is_unknown() -> None:
    assert secure_boot(said('{"SPiBridgeDataType" : []}')).value is None


def test_authenticated_root_is_understood() -> None:
    assert authenticated_root(said(AUTHENTICATED_ROOT_ENABLED)).value is True
    assert authenticated_root(said(AUTHENTICATED_ROOT_DISABLED)).value is False
    assert authenticated_root(said(AUTHENTICATED_ROOT_UNKNOWN)).value is None


def test_a_csrutil_that_asks_which_system_is_meant_proves_nothing() -> None:
    found = authenticated_root(said(AUTHENTICATED_ROOT_ASKS))
    assert found.value is None
    assert "several macOS installations" in found.evidence


@pytest.mark.parametrize(
    ("output", "value"),
    [("disabled\n", True), (RDMA_ENABLED, False), ("Disabled.\n", True), ("what\n", None)],
)
def test_rdma_is_understood(output: str, value: bool | None) -> None:
    assert rdma_disabled(said(output), said("26.3.1\n")).value is value


@pytest.mark.parametrize(
    ("version", "value"),
    [("15.7.1", True), ("26.1", True), ("26.2", None), ("27.0", None), ("", None)],
)
def test_without_the_tool_only_an_old_macos_has_no_rdma(version: str, value: bool | None) -> None:
    assert rdma_disabled(MISSING, said(version + "\n")).value is value


def test_a_virtual_mac_says_so() -> None:
    assert hypervisor(said(HV_PRESENT)).value is True
    assert hypervisor(said(HV_ABSENT)).value is False
    assert hypervisor(said("")).value is None


@pytest.mark.parametrize("rdma_off", [True, False, None])
def test_a_guest_says_so_only_where_it_excuses_no_rdma(rdma_off: bool | None) -> None:
    guest = Posture(rdma_disabled=rdma_off, hypervisor_active=True)
    assert guest.hypervisor_reported is (True if rdma_off else None)
    for known in (False, None):
        other = Posture(rdma_disabled=rdma_off, hypervisor_active=known)
        assert other.hypervisor_reported is known


def test_a_guest_with_rdma_on_passes_no_challenge_for_being_one() -> None:
    guest = Posture(
        sip_enabled=True, secure_boot_enabled=True, rdma_disabled=False, hypervisor_active=True
    )
    answer = AttestationResponse(
        nonce="n",
        signature="s",
        public_key="k",
        sip_enabled=guest.sip_enabled,
        rdma_disabled=guest.rdma_disabled,
        hypervisor_active=guest.hypervisor_reported,
    )
    verdict = judge(
        AttestationChallenge(nonce="n"), answer, registered_key="k", attestation_key=None
    )
    assert verdict.problem == "remote memory access is on"


@given(st.text())
def test_nothing_a_tool_prints_breaks_a_parser(text: str) -> None:
    for parse in (sip, secure_boot, authenticated_root, hypervisor):
        assert parse(said(text)).value in {True, False, None}
    assert rdma_disabled(said(text), said(text)).value in {True, False, None}
    assert rdma_disabled(MISSING, said(text)).value in {True, None}


# ---------------------------------------------------------------- not a Mac


def test_a_machine_that_is_no_mac_claims_nothing() -> None:
    found = linux_posture("flags\t: fpu sse2\n", "x86_64")
    assert found.sip_enabled is False
    assert found.rdma_disabled is False
    assert found.secure_boot_enabled is None
    assert found.authenticated_root is None
    assert found.hypervisor_active is False
    assert set(found.evidence) == set(FACTS)


def test_the_hypervisor_is_read_from_the_processors_flags() -> None:
    assert linux_posture("flags\t: fpu hypervisor\n", "x86_64").hypervisor_active is True
    assert linux_posture("flags\t: fpu\n", "aarch64").hypervisor_active is None
    assert linux_posture("", "x86_64").hypervisor_active is None


def test_measuring_linux_reads_proc(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("flags\t: hypervisor\n")
    assert measure(platform="linux", machine="x86_64", root=tmp_path).hypervisor_active is True
    assert measure(platform="linux", root=tmp_path / "no").hypervisor_active is None


def test_development_claims_what_does_not_exist_and_says_so() -> None:
    measured = linux_posture("flags\t: hypervisor\n", "x86_64")
    claimed = development(measured)
    assert claimed.kind == "development"
    assert claimed.sip_enabled is True
    assert claimed.rdma_disabled is True
    assert claimed.secure_boot_enabled is True
    assert claimed.hypervisor_active is True
    assert "CLAIMED" in claimed.evidence["sip_enabled"]
    assert "CLAIMED" not in claimed.evidence["hypervisor_active"]
    assert measured.kind == "measured"


def test_development_never_paints_over_a_bad_fact_of_a_mac() -> None:
    bad = measure(platform="darwin", ask=tools({**GOOD_MAC, "csrutil status": CSRUTIL_DISABLED}))
    assert development(bad) == bad
    assert posture.development(bad).sip_enabled is False
