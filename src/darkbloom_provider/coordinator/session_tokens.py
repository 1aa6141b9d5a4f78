"""Session tokens of people: ES256 JWTs, signed with the coordinator's own key.

Format: RFC 7519 with RFC 7518's ES256 (P-256, SHA-256, the signature as r and s of 32 bytes each).
Only what we issue is accepted: one algorithm, one issuer, one audience, and an expiry.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from darkbloom_provider import paths
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.logs import Secret

KEY_FILE: Final = "session-key.pem"
ISSUER: Final = "darkbloom-coordinator"
AUDIENCE: Final = "darkbloom-console"
LIFETIME: Final = timedelta(hours=12)

_HEADER: Final = {"alg": "ES256", "typ": "JWT"}
_ALGORITHM: Final = ec.ECDSA(hashes.SHA256())
_COORDINATE_BYTES: Final = 32
_MAX_TOKEN_CHARACTERS: Final = 4096


class InvalidSessionError(DarkbloomError):
    """A session token that we did not issue, or that has expired."""


class SigningKeyError(DarkbloomError):
    """The coordinator's key file cannot be used."""


class SessionKeys:
    """The P-256 key pair that session tokens are signed with."""

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        self._private = private
        self._public = private.public_key()

    @classmethod
    def generate(cls) -> SessionKeys:
        """A new key pair that is kept nowhere."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load_or_create(cls, directory: Path) -> SessionKeys:
        """The pair in `directory`, made (0600) at the first start.

        Raises:
            SigningKeyError: The file is damaged or unreadable, or cannot be written.
        """
        path = directory / KEY_FILE
        try:
            return cls(_read(path.read_bytes()))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError) as error:
            raise SigningKeyError(
                f"The coordinator's session key {path} cannot be used",
                why=type(error).__name__,
                next_step="restore it, or delete it to sign everybody out and start with a new one",
            ) from error
        private = ec.generate_private_key(ec.SECP256R1())
        try:
            paths.write_private(path, _pem(private))
        except OSError as error:
            raise SigningKeyError(
                f"The coordinator's session key {path} cannot be written",
                why=error.strerror,
                next_step="check the disk that holds the coordinator's directory",
            ) from error
        return cls(private)

    def issue(self, account_id: str, *, now: datetime, lifetime: timedelta = LIFETIME) -> Secret:
        """A token that says its bearer is this account, until `now + lifetime`."""
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": account_id,
            "iat": int(now.timestamp()),
            "exp": int((now + lifetime).timestamp()),
        }
        signed = f"{_encode(_json(_HEADER))}.{_encode(_json(claims))}"
        r, s = decode_dss_signature(self._private.sign(signed.encode(), _ALGORITHM))
        raw = r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")
        return Secret(f"{signed}.{_encode(raw)}")

    def verify(self, token: str, *, now: datetime) -> str:
        """The account a token belongs to.

        Raises:
            InvalidSessionError: Not a token of ours, or past its expiry.
        """
        if len(token) > _MAX_TOKEN_CHARACTERS or token.count(".") != 2:  # noqa: PLR2004 - header.claims.signature
            raise InvalidSessionError("This is not a session token")
        signed, _, signature = token.rpartition(".")
        header, _, claims = signed.partition(".")
        if _object(header).get("alg") != _HEADER["alg"]:
            raise InvalidSessionError("This session token has another algorithm")
        raw = _decode(signature)
        if len(raw) != 2 * _COORDINATE_BYTES:
            raise InvalidSessionError("This session token is not signed by this coordinator")
        r, s = (int.from_bytes(half, "big") for half in (raw[:32], raw[32:]))
        try:
            self._public.verify(encode_dss_signature(r, s), signed.encode(), _ALGORITHM)
        except InvalidSignature:
            raise InvalidSessionError(
                "This session token is not signed by this coordinator"
            ) from None
        return _subject(_object(claims), now)


def _pem(private: ec.EllipticCurvePrivateKey) -> bytes:
    return private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _read(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TypeError("not a P-256 key")
    return key


def _subject(claims: Mapping[str, Any], now: datetime) -> str:
    if claims.get("iss") != ISSUER or claims.get("aud") != AUDIENCE:
        raise InvalidSessionError("This session token was issued for something else")
    expires, subject = claims.get("exp"), claims.get("sub")
    if not isinstance(expires, int) or isinstance(expires, bool) or expires <= now.timestamp():
        raise InvalidSessionError("This session has expired", next_step="sign in again")
    if not isinstance(subject, str) or not subject:
        raise InvalidSessionError("This session token names no account")
    return subject


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidSessionError("This is not a session token") from None


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(_decode(text))
    except (ValueError, RecursionError):
        raise InvalidSessionError("This is not a session token") from None
    if not isinstance(value, dict):
        raise InvalidSessionError("This is not a session token")
    return value
