"""Requests sealed for the coordinator itself, and replies sealed for their senders.

TLS ends at a proxy; this does not. A consumer seals its body for the key that
`GET /v1/encryption-key` tells, with a key of its own made for this one request, and the reply is
sealed for that. Format: the network's sealed requests, NaCl boxes as everywhere in this protocol.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Protocol

from darkbloom_provider import paths
from darkbloom_provider.coordinator.rest.replies import ApiError
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.protocol.boxes import (
    KEY_BYTES,
    MINIMUM_BOX_BYTES,
    BoxError,
    Channel,
    KeyPair,
    decode_base64,
    encode_base64,
)
from darkbloom_provider.protocol.openai import InvalidRequestError, parse_object
from darkbloom_provider.protocol.signed import canonical

MEDIA_TYPE: Final = "application/eigeninference-sealed+json"
ALGORITHM: Final = "x25519-nacl-box"
KEY_FILE: Final = "sealing-key"

_KID_DIGITS: Final = 16
_EVENT_END: Final = b"\n\n"


class SealingKeyError(DarkbloomError):
    """The coordinator's key for sealed requests cannot be used."""


class EnvelopeError(ApiError):
    """A sealed request that could not be opened. It is answered in the clear."""


class Wrapping(Protocol):
    """How replies to one request travel."""

    media_type: str
    """Of replies that are no streams."""
    headers: dict[str, str]
    """What such replies carry besides."""

    def body(self, data: bytes) -> bytes:
        """A whole reply."""
        ...

    def event(self, event: bytes) -> bytes:
        """One event of a stream, its blank line included."""
        ...


class Clear:
    """As they are."""

    media_type = "application/json"

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}

    def body(self, data: bytes) -> bytes:
        """The reply itself."""
        return data

    def event(self, event: bytes) -> bytes:
        """The event itself."""
        return event


class Sealed:
    """In boxes that only the sender of the request can open."""

    media_type = MEDIA_TYPE

    def __init__(self, kid: str, channel: Channel) -> None:
        self._kid = kid
        self._channel = channel
        self.headers = {"X-Eigen-Sealed": "true", "X-Eigen-Sealed-Kid": kid}

    def body(self, data: bytes) -> bytes:
        """`{"kid", "ciphertext"}`."""
        return canonical({"kid": self._kid, "ciphertext": self._channel.seal(data)})

    def event(self, event: bytes) -> bytes:
        """The event's text, without its blank line, in an event of its own."""
        box = self._channel.seal(event.removesuffix(_EVENT_END))
        return b"data: " + box.encode() + _EVENT_END


@dataclass(frozen=True, slots=True)
class SealingKey:
    """The coordinator's X25519 key pair for sealed requests."""

    pair: KeyPair

    @classmethod
    def generate(cls) -> SealingKey:
        """A new one that is kept nowhere."""
        return cls(KeyPair.generate())

    @classmethod
    def load_or_create(cls, directory: Path) -> SealingKey:
        """The one in `directory`, made (0600) at the first start: 32 bytes in base64.

        Raises:
            SealingKeyError: The file is damaged or unreadable, or cannot be written.
        """
        path = directory / KEY_FILE
        try:
            return cls(KeyPair(decode_base64(path.read_text(encoding="ascii").strip())))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, BoxError) as error:
            raise SealingKeyError(
                f"The coordinator's key for sealed requests, {path}, cannot be used",
                why=type(error).__name__,
                next_step="restore it, or delete it: consumers then fetch the new one",
            ) from error
        made = KeyPair.generate()
        try:
            paths.write_private(path, f"{encode_base64(made.secret)}\n".encode())
        except OSError as error:
            raise SealingKeyError(
                f"The coordinator's key for sealed requests, {path}, cannot be written",
                why=error.strerror,
                next_step="check the disk that holds the coordinator's directory",
            ) from error
        return cls(made)

    @property
    def kid(self) -> str:
        """The key's short name: the first 16 hex digits of the SHA-256 of its public half."""
        public = decode_base64(self.pair.public_text)
        return hashlib.sha256(public).hexdigest()[:_KID_DIGITS]


def is_sealed(content_type: str | None) -> bool:
    """Whether a request's body is an envelope.

    >>> is_sealed("Application/EigenInference-Sealed+JSON; v=1"), is_sealed("application/json")
    (True, False)
    """
    return (content_type or "").partition(";")[0].strip().lower() == MEDIA_TYPE


def told(key: SealingKey | None) -> dict[str, str]:
    """What consumers need to seal a request.

    Raises:
        EnvelopeError: 503 `encryption_unavailable`.
    """
    if key is None:
        raise _unavailable()
    return {"kid": key.kid, "public_key": key.pair.public_text, "algorithm": ALGORITHM}


def opened(body: bytes, key: SealingKey | None) -> tuple[bytes, Sealed]:
    """What is in an envelope, and how its reply must travel.

    Raises:
        EnvelopeError: 503 `encryption_unavailable`, 400 `invalid_sealed_envelope`, `kid_mismatch`
            or `decryption_failed`.
    """
    if key is None:
        raise _unavailable()
    try:
        envelope = parse_object(body)
    except InvalidRequestError as error:
        raise _invalid(error.what) from None
    kid = envelope.get("kid", "")
    if not isinstance(kid, str):
        raise _invalid("kid must be text")
    if kid not in {"", key.kid}:
        raise EnvelopeError(
            HTTPStatus.BAD_REQUEST,
            "kid_mismatch",
            "the request was sealed for another key; fetch the present one",
        )
    sender = _bytes(envelope, "ephemeral_public_key")
    if len(sender) != KEY_BYTES:
        raise _invalid(f"ephemeral_public_key must be {KEY_BYTES} bytes")
    if len(_bytes(envelope, "ciphertext")) < MINIMUM_BOX_BYTES:
        raise _invalid("ciphertext is too short for a box")
    try:
        channel = Channel(key.pair, encode_base64(sender))
    except BoxError:
        raise _invalid("ephemeral_public_key is not usable") from None
    try:
        plaintext = channel.open(envelope["ciphertext"])
    except BoxError:
        raise EnvelopeError(
            HTTPStatus.BAD_REQUEST, "decryption_failed", "the request could not be opened"
        ) from None
    return plaintext, Sealed(key.kid, channel)


def _bytes(envelope: dict[str, Any], name: str) -> bytes:
    value = envelope.get(name)
    if not isinstance(value, str):
        raise _invalid(f"{name} is missing")
    try:
        return decode_base64(value)
    except BoxError:
        raise _invalid(f"{name} is not standard base64") from None


def _unavailable() -> EnvelopeError:
    return EnvelopeError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "encryption_unavailable",
        "this coordinator takes no sealed requests",
    )


def _invalid(message: str) -> EnvelopeError:
    return EnvelopeError(HTTPStatus.BAD_REQUEST, "invalid_sealed_envelope", message)
