"""Session tokens of people: ES256 JWTs, signed with the coordinator's own key.

Format: RFC 7519 with RFC 7518's ES256, by PyJWT. Only what we issue is accepted: one algorithm, one
issuer, one audience, and an expiry. Whether a session has been ended is for `accounts` to look up.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from darkbloom_provider import paths
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.logs import Secret

KEY_FILE: Final = "session-key.pem"
ISSUER: Final = "darkbloom-coordinator"
AUDIENCE: Final = "darkbloom-console"
LIFETIME: Final = timedelta(hours=12)
SESSION_ID_BYTES: Final = 16

_ALGORITHM: Final = "ES256"
_CLAIMS: Final = ("iss", "aud", "sub", "iat", "exp", "jti", "gen")
_MAX_TOKEN_CHARACTERS: Final = 4096


class InvalidSessionError(DarkbloomError):
    """A session token that we did not issue, or that has expired."""


class SigningKeyError(DarkbloomError):
    """The coordinator's key file cannot be used."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a session token says."""

    account_id: str
    session_id: str
    """Ended by itself when somebody signs out."""
    generation: int
    """Ended with all others of the account when this is not the account's present one."""
    expires_at: datetime


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

    def issue(
        self,
        account_id: str,
        *,
        session_id: str,
        now: datetime,
        generation: int = 0,
        lifetime: timedelta = LIFETIME,
    ) -> Secret:
        """A token that says its bearer is this account, until `now + lifetime`."""
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": account_id,
            "iat": int(now.timestamp()),
            "exp": int((now + lifetime).timestamp()),
            "jti": session_id,
            "gen": generation,
        }
        return Secret(jwt.encode(claims, self._private, algorithm=_ALGORITHM))

    def verify(self, token: str, *, now: datetime) -> Session:
        """What a token of ours says.

        Raises:
            InvalidSessionError: Not a token of ours, or past its expiry.
        """
        if len(token) > _MAX_TOKEN_CHARACTERS:
            raise InvalidSessionError("This is not a session token")
        try:
            claims = jwt.decode(
                token,
                self._public,
                algorithms=[_ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                # Expiry is checked below, by the coordinator's own clock.
                options={"require": list(_CLAIMS), "verify_exp": False, "verify_iat": False},
            )
        # Text that is no JWT at all can make the parser stumble in other ways than its own.
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise InvalidSessionError("This session token is not of this coordinator") from None
        return _session(claims, now)


def _session(claims: dict[str, Any], now: datetime) -> Session:
    expires, subject, name, generation = (claims[n] for n in ("exp", "sub", "jti", "gen"))
    if not (isinstance(expires, int) and isinstance(generation, int) and isinstance(name, str)):
        raise InvalidSessionError("This session token is not of this coordinator")
    if expires <= now.timestamp():
        raise InvalidSessionError("This session has expired", next_step="sign in again")
    return Session(str(subject), name, generation, datetime.fromtimestamp(expires, UTC))


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
