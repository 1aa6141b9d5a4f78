"""What belongs to the machine: hardware, the runtime, the security posture, the enclave."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import Final

from darkbloom_provider import __version__
from darkbloom_provider.doctor.finding import Finding, note, ok, unknown, wrong
from darkbloom_provider.doctor.place import Place
from darkbloom_provider.engine import runtime
from darkbloom_provider.host import enclave
from darkbloom_provider.host import hardware as host_hardware
from darkbloom_provider.host import posture as host_posture
from darkbloom_provider.host.enclave import EnclaveError
from darkbloom_provider.host.posture import FACTS, Posture

_RECOVERY: Final = "restart into Recovery (hold the power button), then"
_GOOD: Final[Mapping[str, bool]] = dict.fromkeys(FACTS, True) | {"hypervisor_active": False}
_NEEDED: Final = frozenset({"sip_enabled", "rdma_disabled"})
"""Facts that every coordinator of the network demands (`websocket.md` section 6.3)."""
_TOLD: Final = {True: "true", False: "false", None: "unknown"}
_NEXT: Final[Mapping[str, str]] = {
    "sip_enabled": f"{_RECOVERY} in Terminal: csrutil enable",
    "secure_boot_enabled": f"{_RECOVERY} choose Full Security in Startup Security Utility",
    "rdma_disabled": f"{_RECOVERY} in Terminal: rdma_ctl disable",
    "authenticated_root": f"{_RECOVERY} in Terminal: csrutil authenticated-root enable",
}


def program(_place: Place) -> Iterator[Finding]:
    """This program and its interpreter."""
    yield ok("program", f"darkbloom {__version__}, Python {platform.python_version()}")


def hardware(place: Place) -> Iterator[Finding]:
    """Chip, memory, and what computes."""
    found = host_hardware.detect(platform=place.platform, ask=place.ask)
    yield ok("hardware", f"{found.chip_name or 'unknown chip'}, {found.memory_gb} GB of memory")
    if place.platform == "darwin":
        return
    blas = runtime.preload_blas()
    if blas is None:
        yield note(
            "hardware",
            "no OpenBLAS: MLX multiplies matrices with its slow reference library",
            "on Debian: apt install libopenblas0-pthread",
        )
    else:
        yield ok("hardware", f"MLX uses {blas}")


def posture(place: Place) -> Iterator[Finding]:
    """The five facts of the machine's security, as the system's own tools tell them."""
    yield from judged(host_posture.measure(platform=place.platform, ask=place.ask))


def judged(found: Posture) -> Iterator[Finding]:
    """Each fact of a posture. Unknown is never good."""
    for name in FACTS:
        value, evidence = getattr(found, name), found.evidence.get(name, "not measured")
        if name in found.missing:
            lost = ", and no work comes without it" if name in _NEEDED else ""
            yield note(name, f"{evidence}; it is told as {_TOLD[value]}{lost}")
        elif value is None:
            yield unknown(name, evidence)
        elif value is _GOOD[name]:
            yield ok(name, evidence)
        elif name == "hypervisor_active":
            yield note(name, f"{evidence}: the machine that hosts this one can read its memory")
        else:
            yield wrong(name, evidence, _NEXT[name])


def secure_enclave(place: Place) -> Iterator[Finding]:
    """Whether a key in the Secure Enclave can be had; one is made, tried and forgotten."""
    if place.platform != "darwin":
        yield note("enclave", "there is none on this kind of machine, so no attestation is sent")
        return
    try:
        key = enclave.new_key(place.platform)
    except EnclaveError as error:
        yield wrong("enclave", f"no attestation is sent: {error}", error.next_step)
        return
    yield ok("enclave", f"signs and verifies; this try's public key: {key.public_text}")
