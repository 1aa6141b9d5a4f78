"""The signed attestation a Mac sends at registration, made and judged over the bytes that travel.

The signature covers the blob's own text (`encryption.md` section 6.2), so that text is made once
and never written again.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass

from pydantic import Field, ValidationError

from darkbloom_provider.protocol.codec import raw_member
from darkbloom_provider.protocol.messages import WireModel
from darkbloom_provider.protocol.signed import SigningKey, canonical, verify


class AttestationBlob(WireModel):
    """What the machine says of itself. Names on the wire are camelCase."""

    authenticated_root_enabled: bool = Field(False, alias="authenticatedRootEnabled")
    binary_hash: str = Field("", alias="binaryHash")
    chip_name: str = Field("", alias="chipName")
    encryption_public_key: str = Field("", alias="encryptionPublicKey")
    hardware_model: str = Field("", alias="hardwareModel")
    hypervisor_active: bool = Field(False, alias="hypervisorActive")
    os_version: str = Field("", alias="osVersion")
    public_key: str = Field("", alias="publicKey")
    rdma_disabled: bool = Field(False, alias="rdmaDisabled")
    secure_boot_enabled: bool = Field(False, alias="secureBootEnabled")
    secure_enclave_available: bool = Field(False, alias="secureEnclaveAvailable")
    serial_number: str = Field("", alias="serialNumber")
    sip_enabled: bool = Field(False, alias="sipEnabled")
    system_volume_hash: str = Field("", alias="systemVolumeHash")
    timestamp: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """An attestation and what it is worth."""

    blob: AttestationBlob | None
    """None if it could not even be read. An invalid blob's key still binds challenge answers."""
    problem: str | None
    """Why it proves nothing; None if it is valid."""

    @property
    def valid(self) -> bool:
        """Whether every check passed (trust level `self_signed`)."""
        return self.problem is None


def attest(blob: AttestationBlob, key: SigningKey) -> str:
    """The raw JSON of `register.attestation`: the fields that `blob` was given, and its signature.

    Keys are sorted, nothing is spaced, and `<`, `>` and `&` are escaped as Go does.
    """
    text = canonical(blob.model_dump(by_alias=True, exclude_unset=True)).decode()
    return f'{{"attestation":{text},"signature":"{key.sign(text.encode())}"}}'


def judge(text: str, registered_public_key: str) -> Judgement:
    """Check an attestation in the order the network's coordinator does.

    Args:
        text: The raw JSON of `register.attestation`.
        registered_public_key: `register.public_key`, to which the blob must be bound.
    """
    try:
        document = json.loads(text)
        raw_blob = raw_member(text, "attestation")
        signature = document["signature"]
        blob = AttestationBlob.model_validate(document["attestation"])
    except (ValueError, KeyError, TypeError, ValidationError, RecursionError):
        return Judgement(None, "it cannot be read")
    if raw_blob is None or not isinstance(signature, str):
        return Judgement(blob, "it carries no signature")
    return Judgement(blob, _problem(blob, raw_blob, signature, registered_public_key))


def _problem(blob: AttestationBlob, raw: str, signature: str, public_key: str) -> str | None:
    if not _is_timestamp(blob.timestamp):
        return "its timestamp is not RFC 3339"
    if not verify(blob.public_key, signature, raw.encode()):
        return "its signature is wrong"
    if not (blob.secure_enclave_available and blob.sip_enabled and blob.secure_boot_enabled):
        return "Secure Enclave, SIP and Secure Boot are not all on"
    if public_key and blob.encryption_public_key != public_key:
        return "it is bound to another encryption key"
    return None


def _is_timestamp(text: str) -> bool:
    try:
        return dt.datetime.fromisoformat(text).tzinfo is not None and "T" in text
    except ValueError:
        return False
