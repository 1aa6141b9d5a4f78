"""Challenges: is this still the machine that registered, and still in the state it claimed?

Pure. The order of the checks is the network's; the first that fails decides.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

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
_MISSING: Final = "(missing)"
_SHOWN_TEMPLATES: Final = 32
_NAME_CHARACTERS: Final = 64


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
    accepted_binaries: Collection[str] = (),
    weights: str = "",
) -> Verdict:
    """Check an answer whose nonce is already known to be the outstanding one.

    Args:
        challenge: What was asked.
        answer: What came back.
        registered_key: The session's X25519 key as text; empty if none was usable.
        attestation_key: The P-256 key of the session's attestation, valid or not; None without.
        accepted_binaries: Hashes of programs that the operator takes; empty takes any.
        weights: The catalogue's hash of the model in use; empty if none is known.
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
    verdict = _posture(answer)
    return verdict if verdict is not PASSED else _contents(answer, accepted_binaries, weights)


def _contents(answer: AttestationResponse, binaries: Collection[str], weights: str) -> Verdict:
    if answer.binary_hash and binaries and answer.binary_hash not in binaries:
        return Verdict("its program is not on the operator's list", untrusted=True)
    if answer.active_model_hash and weights and answer.active_model_hash != weights:
        return Verdict("its model's weights are not the catalogue's", untrusted=True)
    return PASSED


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
    """Components whose hash the operator does not list. An empty list accepts anything.

    Of templates it is all or nothing: those listed, with their hashes, and no others.
    """
    checks = (
        ("python", policy.accepted_python_hashes, source.python_hash),
        ("runtime", policy.accepted_runtime_hashes, source.runtime_hash),
    )
    found = [
        RuntimeMismatch(
            component=component,
            expected=f"one of {len(accepted)} accepted hashes",
            got=got or _MISSING,
        )
        for component, accepted, got in checks
        if accepted and (got or "") not in accepted
    ]
    if policy.accepted_template_hashes:
        found += _templates(policy.accepted_template_hashes, source.template_hashes or {})
    return tuple(found)


def _templates(accepted: Mapping[str, str], got: Mapping[str, str]) -> list[RuntimeMismatch]:
    names = [*accepted, *sorted(got.keys() - accepted.keys())[:_SHOWN_TEMPLATES]]
    return [
        RuntimeMismatch(
            component=f"template:{name[:_NAME_CHARACTERS]}",
            expected=accepted.get(name, "no such template"),
            got=got.get(name, _MISSING)[:_NAME_CHARACTERS],
        )
        for name in names
        if accepted.get(name) != got.get(name)
    ]


def is_older(version: str | None, minimum: str | None) -> bool:
    """Whether a version is below a minimum. Without either it is not.

    Each part counts by its leading digits; a part that has none, or is missing, is 0.

    >>> is_older("0.3.9", "0.3.11-rc1"), is_older("v1.0", "0.1"), is_older(None, "9")
    (True, True, False)
    """
    if not version or not minimum:
        return False
    ours, theirs = _parts(version), _parts(minimum)
    length = max(len(ours), len(theirs))
    return _padded(ours, length) < _padded(theirs, length)


def _parts(version: str) -> list[int]:
    found = [re.match(r"[0-9]{1,18}", part) for part in version.split(".")]
    return [int(match.group()) if match else 0 for match in found]


def _padded(parts: list[int], length: int) -> list[int]:
    return parts + [0] * (length - len(parts))
