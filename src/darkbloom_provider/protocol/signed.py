"""Signed bytes: what exactly is signed, and ECDSA P-256 over it.

Signatures are base64 of ASN.1 DER; public keys are base64 of the raw point, 64 bytes X‖Y or 65
bytes 04‖X‖Y. SHA-256 is applied once, by the signature scheme.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from darkbloom_provider.protocol.boxes import BoxError, decode_base64, encode_base64
from darkbloom_provider.protocol.messages import AttestationChallenge, AttestationResponse

_POINT_BYTES: Final = 64
_UNCOMPRESSED: Final = b"\x04"
_GO_ESCAPES: Final = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
_STATUS_FIELDS: Final = (
    "active_model_hash",
    "binary_hash",
    "hypervisor_active",
    "model_hashes",
    "python_hash",
    "rdma_disabled",
    "runtime_hash",
    "secure_boot_enabled",
    "sip_enabled",
    "template_hashes",
)


class SigningKey(Protocol):
    """A P-256 key that signs. Where its private half lives is its own affair."""

    @property
    def public_text(self) -> str:
        """The public key as attestations carry it: base64 of X‖Y."""
        ...

    def sign(self, message: bytes) -> str:
        """Base64 DER signature over `message`, hashed once with SHA-256.

        Returns within half a second, or raises `DarkbloomError`.
        """
        ...


@dataclass(frozen=True, slots=True)
class SoftwareKey:
    """A `SigningKey` in this process's memory. It vouches for nothing about the machine."""

    private: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1()), repr=False
    )

    @property
    def public_text(self) -> str:
        """The public key: base64 of X‖Y."""
        return public_text(self.private.public_key())

    def sign(self, message: bytes) -> str:
        """Base64 DER signature over `message`."""
        return sign(self.private, message)


def canonical(document: Mapping[str, object]) -> bytes:
    """Canonical JSON: sorted keys, compact, raw UTF-8, with the escapes Go's encoder adds."""
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.translate(_GO_ESCAPES).encode()


def challenge_message(nonce: str, timestamp: str) -> bytes:
    """What `signature` of a challenge answer covers: the two texts, nothing between."""
    return (nonce + timestamp).encode()


def status_message(challenge: AttestationChallenge, response: AttestationResponse) -> bytes:
    """What `status_signature` covers: the challenge and every status field that is present.

    An explicit false is present; an absent flag, an empty text and an empty map are not.
    """
    status: dict[str, object] = {"nonce": challenge.nonce, "timestamp": challenge.timestamp}
    for name in _STATUS_FIELDS:
        value = getattr(response, name)
        if value is not None and value not in ("", {}):
            status[name] = value
    return canonical(status)


def response_hash(request_id: str, completion_tokens: int, body: str) -> str:
    """Hex SHA-256 that `inference_complete` carries.

    Args:
        request_id: The job.
        completion_tokens: The figure reported in `usage`.
        body: Every chunk text in order, without separators.
    """
    return hashlib.sha256(f"{request_id}:{completion_tokens}:{body}".encode()).hexdigest()


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> str:
    """Base64 DER signature over `message`."""
    return encode_base64(key.sign(message, ec.ECDSA(hashes.SHA256())))


def public_text(key: ec.EllipticCurvePublicKey) -> str:
    """The public key as attestations carry it: base64 of X‖Y."""
    numbers = key.public_numbers()
    return encode_base64(numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big"))


def verify(public_key: str, signature: str, message: bytes) -> bool:
    """Whether `signature` is right. Malformed keys and signatures are wrong, not errors."""
    try:
        point = decode_base64(public_key)
        if len(point) == _POINT_BYTES:
            point = _UNCOMPRESSED + point
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        key.verify(decode_base64(signature), message, ec.ECDSA(hashes.SHA256()))
    except (BoxError, ValueError, InvalidSignature):
        return False
    return True
