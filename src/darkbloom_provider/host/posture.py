"""This machine's security posture: five facts, each measured with the system's own tools.

A fact is True or False when a tool said so, and None when nothing could be learned: None is never
sent as true, so nothing is claimed that was not seen.
A machine that is not a Mac has no SIP, no signed system volume and no RDMA control; those facts
are reported as false or absent, and named in `Posture.missing`.
"""

from __future__ import annotations

import dataclasses
import platform as platform_module
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from darkbloom_provider.host.command import Answer, Ask, Tools
from darkbloom_provider.host.hardware import profiler_item

FACTS: Final = (
    "sip_enabled",
    "secure_boot_enabled",
    "rdma_disabled",
    "hypervisor_active",
    "authenticated_root",
)
RDMA_SINCE: Final = (26, 2)


class Fact(NamedTuple):
    """One measured fact and the words it was read from."""

    value: bool | None
    evidence: str


@dataclass(frozen=True, slots=True)
class Posture:
    """What was found, with the evidence for each fact by its name."""

    sip_enabled: bool | None = None
    secure_boot_enabled: bool | None = None
    rdma_disabled: bool | None = None
    hypervisor_active: bool | None = None
    authenticated_root: bool | None = None
    evidence: Mapping[str, str] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()
    """Facts that do not exist on this kind of machine."""
    claimed: frozenset[str] = frozenset()
    """Facts that are claimed without being true here (`posture = "development"`)."""

    @property
    def hypervisor_reported(self) -> bool | None:
        """What is told to a coordinator as `hypervisor_active`; None is left out.

        The protocol's rule (`websocket.md` section 6.3, row 8) is "RDMA off, or a hypervisor
        active": a true excuses RDMA that is on, as a hypervisor of the provider's own would keep
        its memory apart. What can be measured is another thing: that this system is a guest, whose
        memory its host reads at will. So a true is told where it excuses nothing, and never else.
        """
        if self.hypervisor_active and self.rdma_disabled is not True:
            return None
        return self.hypervisor_active

    @property
    def kind(self) -> str:
        """`measured`, or `development` when anything is only claimed."""
        return "development" if self.claimed else "measured"


def measure(
    *,
    platform: str = sys.platform,
    machine: str | None = None,
    ask: Ask | None = None,
    root: Path = Path("/"),
) -> Posture:
    """Measure this machine. Takes up to a few seconds on a Mac: call it off the event loop.

    Args:
        platform: `sys.platform`.
        machine: The processor's architecture, as `platform.machine()` says it.
        ask: How the system's tools are asked.
        root: Where `/proc` is.
    """
    if platform == "darwin":
        return _measure_macos(ask or Tools())
    try:
        cpuinfo = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        cpuinfo = ""
    return linux_posture(cpuinfo, machine or platform_module.machine())


def development(posture: Posture) -> Posture:
    """`posture` with the facts that do not exist here claimed as if this were a Mac in order.

    Only for a coordinator on this same machine: the settings refuse it for any other. A fact that
    exists and is bad (SIP switched off on a Mac) stays as it is.
    """
    claimed = posture.missing - {"hypervisor_active"}
    evidence = dict(posture.evidence)
    for name in claimed:
        evidence[name] = f"CLAIMED, not true here (posture = development); {evidence[name]}"
    changes: dict[str, bool] = dict.fromkeys(claimed, True)
    return dataclasses.replace(
        posture,
        evidence=evidence,
        claimed=frozenset(claimed),
        **changes,  # type: ignore[arg-type]  # names come from FACTS
    )


# ---------------------------------------------------------------- Linux


def linux_posture(cpuinfo: str, machine: str) -> Posture:
    """The posture of a machine that is not a Mac, from `/proc/cpuinfo`."""
    none = "does not exist on this kind of machine"
    hypervisor = linux_hypervisor(cpuinfo, machine)
    return Posture(
        sip_enabled=False,
        secure_boot_enabled=None,
        rdma_disabled=False,
        hypervisor_active=hypervisor.value,
        authenticated_root=None,
        evidence={
            "sip_enabled": f"System Integrity Protection {none}",
            "secure_boot_enabled": f"Apple's Secure Boot {none}",
            "rdma_disabled": f"rdma_ctl {none}",
            "hypervisor_active": hypervisor.evidence,
            "authenticated_root": f"the sealed system volume {none}",
        },
        missing=frozenset(
            {"sip_enabled", "secure_boot_enabled", "rdma_disabled", "authenticated_root"}
        ),
    )


def linux_hypervisor(cpuinfo: str, machine: str) -> Fact:
    """Whether the processor says that a hypervisor runs below this system (CPUID 1, ECX bit 31)."""
    flags = re.search(r"(?m)^flags\s*:(.*)$", cpuinfo)
    if flags is None or machine.lower() not in {"x86_64", "amd64", "i686"}:
        return Fact(None, f"/proc/cpuinfo on {machine} does not tell")
    active = "hypervisor" in flags.group(1).split()
    return Fact(active, f"/proc/cpuinfo flags {'name' if active else 'do not name'} a hypervisor")


# ---------------------------------------------------------------- macOS


def _measure_macos(ask: Ask) -> Posture:
    system_integrity = sip(ask("csrutil", "status"))
    boot = secure_boot(ask("system_profiler", "-json", "SPiBridgeDataType"))
    rdma = rdma_disabled(ask("rdma_ctl", "status"), ask("sw_vers", "-productVersion"))
    below = hypervisor(ask("sysctl", "kern.hv_vmm_present"))
    sealed = authenticated_root(ask("csrutil", "authenticated-root", "status"))
    return Posture(
        sip_enabled=system_integrity.value,
        secure_boot_enabled=boot.value,
        rdma_disabled=rdma.value,
        hypervisor_active=below.value,
        authenticated_root=sealed.value,
        evidence=dict(
            zip(
                FACTS,
                (fact.evidence for fact in (system_integrity, boot, rdma, below, sealed)),
                strict=True,
            )
        ),
    )


def sip(answer: Answer) -> Fact:
    """System Integrity Protection from `csrutil status`.

    A custom configuration counts as enabled only if none of its protections is off ("Apple
    Internal: disabled" is the normal state, not a protection).
    """
    match = re.search(r"(?m)^System Integrity Protection status: (\w+)", answer.out)
    if not answer.ok or match is None:
        return Fact(None, answer.evidence())
    settings = re.findall(r"(?m)^\s+([A-Z][\w /-]+): (enabled|disabled)\.?$", answer.out)
    off = [name for name, state in settings if state == "disabled" and name != "Apple Internal"]
    if off:
        return Fact(False, f"csrutil status: off: {', '.join(off)}")
    if match.group(1) == "unknown" and settings:
        return Fact(True, "csrutil status: custom configuration with every protection on")
    state = {"enabled": True, "disabled": False}.get(match.group(1))
    if "Custom Configuration" in answer.out and not settings:
        state = None
    return Fact(state, answer.evidence())


def authenticated_root(answer: Answer) -> Fact:
    """The sealed system volume from `csrutil authenticated-root status` (macOS 11 and later)."""
    match = re.search(r"(?m)^Authenticated Root status: (enabled|disabled)\b", answer.out)
    if not answer.ok or match is None:
        return Fact(None, answer.evidence())
    return Fact(match.group(1) == "enabled", answer.evidence())


def secure_boot(answer: Answer) -> Fact:
    """Secure Boot from `system_profiler -json SPiBridgeDataType`: true at full security only.

    The level's name follows the owner's language; a name that is not English is unknown, not bad.
    """
    level = profiler_item(answer.out, "SPiBridgeDataType").get("ibridge_secure_boot")
    if not answer.ok or not isinstance(level, str):
        return Fact(None, f"{answer.command}: names no security level")
    state = {
        "Full Security": True,
        "Reduced Security": False,
        "Medium Security": False,
        "Permissive Security": False,
        "No Security": False,
    }.get(level)
    return Fact(state, f"{answer.command}: {level}")


def rdma_disabled(answer: Answer, version: Answer) -> Fact:
    """Whether RDMA over Thunderbolt is off, from `rdma_ctl status` and `sw_vers -productVersion`.

    The control came with macOS 26.2 (Apple's TN3205): an older system has no RDMA to be on.
    """
    if answer.missing:
        match = re.fullmatch(r"(\d+)(?:\.(\d+))?(?:\.\d+)*", version.out.strip())
        if match and (int(match.group(1)), int(match.group(2) or 0)) < RDMA_SINCE:
            return Fact(True, f"macOS {version.out.strip()} has no RDMA over Thunderbolt")
        return Fact(None, answer.evidence())
    state = {"disabled": True, "enabled": False}.get(answer.out.strip().rstrip(".").lower())
    return Fact(state if answer.ok else None, answer.evidence())


def hypervisor(answer: Answer) -> Fact:
    """Whether macOS runs inside a virtual machine, from `sysctl kern.hv_vmm_present`."""
    match = re.fullmatch(r"kern\.hv_vmm_present: ([01])", answer.out.strip())
    if not answer.ok or match is None:
        return Fact(None, answer.evidence())
    return Fact(match.group(1) == "1", answer.evidence())
