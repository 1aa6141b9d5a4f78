"""Challenges: is this still the machine that registered, and still in the state it claimed?

Pure. The order of the checks is the network's; the first that fails decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.protocol.boxes import encode_base64
from darkbloom_provider.protocol.messages import (
    AttestationChallenge,
    AttestationResponse,
    Register,
    RuntimeMismatch,
)
from darkbloom_provider.protocol.signed import challenge_message, status_message, verify

NONCE_BYTES = 32


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer was worth. `problem` None means passed."""

    problem: str | None = None
    untrusted: bool = False
    """The machine admitted a state in which it must not serve."""


PASSED = Verdict()


def new_challenge(entropy: bytes, now: datetime) -> AttestationChallenge:
    """A challenge with `entropy` (32 random bytes) as its nonce; time in whole seconds, UTC."""
    timestamp = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return AttestationChallenge(nonce=encode_base64(entropy), timestamp=timestamp)


def judge(
    challenge: AttestationChallenge,
    answer: AttestationResponse,
    *,
    registered_key: str,
    attestation_key: str | None,
) -> Verdict:
    """Check an answer whose nonce is already known to be the outstanding one.

    Args:
        challenge: What was asked.
        answer: What came back.
        registered_key: The session's X25519 key as text; empty if none was usable.
        attestation_key: The P-256 key of the session's attestation, valid or not; None without.
    """
    if registered_key and answer.public_key != registered_key:
        return Verdict("the answer names another encryption key")
    if not answer.signature:
        return Verdict("the answer is not signed")
    if attestation_key is not None:
        message = challenge_message(challenge.nonce, challenge.timestamp)
        if not verify(attestation_key, answer.signature, message):
            return Verdict("the signature is wrong")
        status = status_message(challenge, answer)
        if answer.status_signature and not verify(attestation_key, answer.status_signature, status):
            return Verdict("the status signature is wrong")
    return _posture(answer)


def _posture(answer: AttestationResponse) -> Verdict:
    if answer.sip_enabled is None:
        return Verdict("system integrity protection is not reported")
    if not answer.sip_enabled:
        return Verdict("system integrity protection is off", untrusted=True)
    if answer.secure_boot_enabled is False:
        return Verdict("Secure Boot is off", untrusted=True)
    if answer.rdma_disabled is None:
        return Verdict("remote memory access is not reported")
    if not answer.rdma_disabled and not answer.hypervisor_active:
        return Verdict("remote memory access is on", untrusted=True)
    return PASSED


def runtime_mismatches(
    source: Register | AttestationResponse, policy: Policy
) -> tuple[RuntimeMismatch, ...]:
    """Components whose hash the operator does not list. An empty list accepts anything."""
    checks = (
        ("python", policy.accepted_python_hashes, source.python_hash),
        ("runtime", policy.accepted_runtime_hashes, source.runtime_hash),
    )
    return tuple(
        RuntimeMismatch(
            component=component,
            expected=f"one of {len(accepted)} accepted hashes",
            got=got or "(missing)",
        )
        for component, accepted, got in checks
        if accepted and (got or "") not in accepted
    )
