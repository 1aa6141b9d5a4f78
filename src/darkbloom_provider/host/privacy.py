"""What this process does so that nobody looks into it, and what of that holds right now.

`harden()` acts; `checks()` measures again at the moment it is asked, so that every flag of
`register.privacy_capabilities` can come out false. Nothing happens at import.

In order: `reexec_isolated()` as the first thing `serve` does; `harden()` before anything secret
exists; `report.seal.close()` when everything that loads native code is loaded, before the first
registration; then `checks()`.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import site
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from darkbloom_provider.host import environment, seal
from darkbloom_provider.host.environment import reexec_isolated
from darkbloom_provider.host.posture import Posture
from darkbloom_provider.host.seal import Seal
from darkbloom_provider.protocol.messages import PrivacyCapabilities

__all__ = ["Check", "HardeningReport", "capabilities", "checks", "harden", "reexec_isolated"]

_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4
_PT_DENY_ATTACH: Final = 31


class Check(NamedTuple):
    """Whether something holds now, and what that was read from."""

    holds: bool
    evidence: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """The two calls to the kernel that Python has no name for. Holds libc from before the seal."""

    platform: str
    libc: ctypes.CDLL

    @classmethod
    def open(cls, platform: str = sys.platform) -> Kernel:
        """Look up libc in this process; no new library is loaded."""
        libc = ctypes.CDLL(None, use_errno=True)
        if platform == "darwin":
            libc.ptrace.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
        else:
            # The system call takes longs; a narrower zero would leave half a register undefined.
            libc.prctl.argtypes = [ctypes.c_int, *(ctypes.c_ulong for _ in range(4))]
        return cls(platform, libc)

    def deny_debuggers(self) -> Check:
        """Ask the kernel to refuse debuggers for the rest of this process.

        Linux: `prctl(PR_SET_DUMPABLE, 0)`, which also forbids core dumps and closes `/proc/PID/mem`
        to others of the same user. macOS: `ptrace(PT_DENY_ATTACH)`; a process that is being
        debugged already is ended by it, as Apple documents.
        """
        if self.platform == "darwin":
            return self._ptrace_deny()
        if self.libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
            return Check(False, f"prctl(PR_SET_DUMPABLE): {os.strerror(ctypes.get_errno())}")
        return self.debuggers_denied()

    def debuggers_denied(self) -> Check:
        """Whether the kernel refuses debuggers now, and none is attached."""
        if self.platform == "darwin":
            # There is nothing to read back; the call itself is repeatable and tells.
            return self._ptrace_deny()
        dumpable = self.libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
        tracer = tracer_pid(_text(Path("/proc/self/status")))
        return Check(
            dumpable == 0 and tracer == 0,
            f"PR_GET_DUMPABLE {dumpable}, TracerPid {'unknown' if tracer is None else tracer}",
        )

    def _ptrace_deny(self) -> Check:
        result = self.libc.ptrace(_PT_DENY_ATTACH, 0, None, 0)
        error = "" if result == 0 else f": {os.strerror(ctypes.get_errno())}"
        return Check(result == 0, f"ptrace(PT_DENY_ATTACH) returned {result}{error}")


@dataclass(frozen=True, slots=True)
class HardeningReport:
    """What `harden()` did, by step, and what it needs again for measuring."""

    steps: Mapping[str, Check]
    seal: Seal
    kernel: Kernel

    @property
    def problems(self) -> tuple[str, ...]:
        """The steps that failed, with why. Serving goes on; the flags will say false."""
        return tuple(
            f"{name}: {step.evidence}" for name, step in self.steps.items() if not step.holds
        )


def harden(
    environ: MutableMapping[str, str] | None = None, platform: str = sys.platform
) -> HardeningReport:
    """Protect this process for the rest of its life. Call `report.seal.close()` later.

    Args:
        environ: The process's environment, from which dangerous variables are removed.
        platform: `sys.platform`.
    """
    kernel = Kernel.open(platform)
    steps = {"core_dumps": _no_core_dumps(), "debuggers": kernel.deny_debuggers()}
    removed = environment.scrub(os.environ if environ is None else environ)
    steps["environment"] = Check(True, f"removed: {', '.join(removed) or 'nothing'}")
    the_seal = Seal()
    the_seal.install()
    steps["seal"] = Check(True, "audit hook and import finder installed, open")
    return HardeningReport(steps, the_seal, kernel)


def checks(
    report: HardeningReport | None,
    *,
    engine_in_process: bool,
    posture: Posture,
    environ: Mapping[str, str] | None = None,
    platform: str = sys.platform,
) -> dict[str, Check]:
    """Every flag of the privacy capabilities, measured now, with its evidence.

    Args:
        report: Of `harden()`; None if it never ran.
        engine_in_process: Whether the text engine runs in this very process.
        posture: The machine's, for the two flags that speak of the machine.
        environ: The process's environment.
        platform: `sys.platform`.
    """
    now = os.environ if environ is None else environ
    names = (*now, *environment.started_with(_initial_block(platform)))
    return {
        "text_backend_inprocess": Check(
            engine_in_process,
            f"the engine runs {'in' if engine_in_process else 'outside'} process {os.getpid()}",
        ),
        "text_proxy_disabled": _absent(environment.is_proxy, tuple(now), "proxy variables"),
        "python_runtime_locked": _runtime_locked(names),
        "dangerous_modules_blocked": _modules_blocked(),
        "sip_enabled": Check(
            posture.sip_enabled is True, posture.evidence.get("sip_enabled", "not measured")
        ),
        "anti_debug_enabled": _debuggers_denied(report),
        "core_dumps_disabled": _core_dumps_disabled(report, platform),
        "env_scrubbed": _absent(environment.is_dangerous, names, "dangerous variables"),
        "hypervisor_active": Check(
            posture.hypervisor_reported is True,
            posture.evidence.get("hypervisor_active", "not measured"),
        ),
    }


def capabilities(measured: Mapping[str, Check]) -> PrivacyCapabilities:
    """The flags as they are registered: `checks()` without the evidence."""
    return PrivacyCapabilities(**{name: check.holds for name, check in measured.items()})


# ---------------------------------------------------------------- one check each


def _no_core_dumps() -> Check:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as error:
        return Check(False, f"setrlimit(RLIMIT_CORE): {error}")
    return Check(True, "RLIMIT_CORE 0 for good")


def _core_dumps_disabled(report: HardeningReport | None, platform: str) -> Check:
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    evidence = f"RLIMIT_CORE soft {limits[0]}, hard {limits[1]}"
    pattern = "" if platform == "darwin" else _text(Path("/proc/sys/kernel/core_pattern"))
    if limits != (0, 0) or not pattern.startswith("|"):
        return Check(limits == (0, 0), evidence)
    # A core that Linux pipes to a program is not bound by the limit, only by dumpability.
    denied = report.kernel.debuggers_denied() if report else Check(False, "process is dumpable")
    return Check(denied.holds, f"{evidence}; cores are piped to a program; {denied.evidence}")


def _debuggers_denied(report: HardeningReport | None) -> Check:
    if report is None:
        return Check(False, "debuggers were never denied")
    denied = report.kernel.debuggers_denied()
    refused = seal.tracing_is_refused()
    evidence = f"{denied.evidence}; sys.settrace {'refused' if refused else 'allowed'}"
    return Check(denied.holds and refused, evidence)


def _modules_blocked() -> Check:
    loaded = seal.refused_modules_loaded()
    if loaded:
        return Check(False, f"loaded before the seal: {', '.join(loaded)}")
    facts = {
        "listed modules": seal.imports_are_refused(),
        "foreign native code": seal.foreign_native_code_is_refused(),
        "foreign modules": seal.foreign_modules_are_refused(),
    }
    evidence = (f"{what} {'refused' if refused else 'allowed'}" for what, refused in facts.items())
    return Check(all(facts.values()), "; ".join(evidence))


def _runtime_locked(names: tuple[str, ...]) -> Check:
    user_site = site.getusersitepackages() if site.ENABLE_USER_SITE else None
    steering = sorted({name for name in names if environment.is_interpreter_variable(name)})
    facts = {
        f"isolated {sys.flags.isolated}": bool(sys.flags.isolated),
        f"user site {user_site or 'off'}": user_site is None,
        f"PYTHON* {', '.join(steering) or 'none'}": not steering,
    }
    return Check(all(facts.values()), "; ".join(facts))


def _absent(bad: environment.Rule, names: tuple[str, ...], what: str) -> Check:
    found = sorted({name for name in names if bad(name)})
    return Check(not found, f"{what}: {', '.join(found) or 'none'}")


def _initial_block(platform: str) -> bytes:
    # What the process was started with stays readable on Linux even after os.environ was cleaned:
    # a library preloaded at the start is inside, whatever the table says later.
    if platform == "darwin":
        return b""
    try:
        return Path("/proc/self/environ").read_bytes()
    except OSError:
        return b""


def tracer_pid(status: str) -> int | None:
    """The process that debugs the one of this `/proc/PID/status`; 0 is nobody, None unknown."""
    match = re.search(r"(?m)^TracerPid:\s*(\d+)$", status)
    return int(match.group(1)) if match else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
