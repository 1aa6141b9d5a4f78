"""People, their keys and tokens, and who is calling.

Keys and tokens are kept only as the SHA-256 of their full text, so a copy of the database lets
nobody in. Formats and the four guard levels: the network's authentication rules; device tokens
may read their own account's money and nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from sqlalchemy import Connection, insert, select, update

from darkbloom_provider.coordinator import books
from darkbloom_provider.coordinator.schema import api_keys, device_tokens, users
from darkbloom_provider.coordinator.session_tokens import InvalidSessionError, SessionKeys
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.logs import Secret

API_KEY_PREFIX: Final = "eigeninference-"
DEVICE_TOKEN_PREFIX: Final = API_KEY_PREFIX + "pt-"
SESSION_PREFIX: Final = "eyJ"
KEY_BYTES: Final = 32
ADMIN_ACCOUNT: Final = "admin"

RandomHex = Callable[[int], str]
Guard = Literal["any", "user", "session"]
"""How sure an endpoint must be of its caller: any credential, one of a user, or a sign-in."""
Kind = Literal["api_key", "device_token", "session", "admin"]


class AccountError(DarkbloomError):
    """An account cannot be made as asked."""


class AuthenticationError(DarkbloomError):
    """The caller is not who the endpoint needs. `status` and `type` are the reply's."""

    def __init__(
        self, what: str, *, status: int = 401, error_type: str = "authentication_error"
    ) -> None:
        super().__init__(what)
        self.status = status
        self.type = error_type


@dataclass(frozen=True, slots=True)
class User:
    """A person with an account here."""

    account_id: str
    email: str


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling, and how they showed it."""

    kind: Kind
    account_id: str
    user: User | None


@dataclass(frozen=True, slots=True)
class Identity:
    """What callers are checked against, beside the database."""

    sessions: SessionKeys
    admin_key: Secret | None = None

    def is_admin(self, bearer: str) -> bool:
        """Whether this is the operator's key. Takes the same time for every wrong one."""
        if self.admin_key is None:
            return False
        return hmac.compare_digest(self.admin_key.reveal().encode(), bearer.encode())


def digest(credential: str) -> str:
    """What is stored of a key, token or code: the SHA-256 of its text, in hex."""
    return hashlib.sha256(credential.encode("utf-8", "surrogatepass")).hexdigest()


def bearer_of(authorization: str | None) -> str | None:
    """The token of an `Authorization` header; None if there is none.

    >>> bearer_of("bearer  abc ")
    'abc'
    """
    scheme, _, token = (authorization or "").strip().partition(" ")
    return (token.strip() or None) if scheme.lower() == "bearer" else None


def create_user(connection: Connection, *, account_id: str, email: str, now: datetime) -> User:
    """Make a user and their account.

    Raises:
        AccountError: The e-mail address is empty or already has an account.
    """
    address = email.strip().lower()
    if not address:
        raise AccountError("An account needs an e-mail address")
    if find_user(connection, email=address) is not None:
        raise AccountError("This e-mail address already has an account")
    books.open_account(connection, account_id, "user", now)
    connection.execute(insert(users).values(account_id=account_id, email=address, created_at=now))
    return User(account_id, address)


def find_user(
    connection: Connection, *, account_id: str | None = None, email: str | None = None
) -> User | None:
    """The user with this account id or this e-mail address."""
    query = select(users.c.account_id, users.c.email)
    if account_id is not None:
        query = query.where(users.c.account_id == account_id)
    if email is not None:
        query = query.where(users.c.email == email.strip().lower())
    row = connection.execute(query.limit(1)).one_or_none()
    return None if row is None else User(row.account_id, row.email)


def create_api_key(
    connection: Connection, account_id: str, *, random_hex: RandomHex, now: datetime
) -> Secret:
    """A new API key of a user. Shown once: only its hash is kept."""
    key = API_KEY_PREFIX + random_hex(KEY_BYTES)
    connection.execute(
        insert(api_keys).values(key_sha256=digest(key), account_id=account_id, created_at=now)
    )
    return Secret(key)


def revoke_api_key(connection: Connection, key: str, *, account_id: str, now: datetime) -> bool:
    """Revoke a key of this account. False if it is not theirs, unknown or already revoked."""
    result = connection.execute(
        update(api_keys)
        .where(
            api_keys.c.key_sha256 == digest(key),
            api_keys.c.account_id == account_id,
            api_keys.c.revoked_at.is_(None),
        )
        .values(revoked_at=now)
    )
    return result.rowcount == 1


def account_for_device_token(connection: Connection, token: str) -> str | None:
    """The account an active device token is linked to; None if it is unknown or revoked."""
    return connection.execute(
        select(device_tokens.c.account_id).where(
            device_tokens.c.token_sha256 == digest(token), device_tokens.c.revoked_at.is_(None)
        )
    ).scalar_one_or_none()


def authenticate(
    connection: Connection,
    bearer: str | None,
    *,
    identity: Identity,
    now: datetime,
    guard: Guard = "any",
    device_token: bool = False,
) -> Principal:
    """Who the bearer of a token is, if the endpoint may be used with it.

    Args:
        connection: Where keys and tokens are looked up.
        bearer: The token of the `Authorization` header.
        identity: The keys of sessions and of the operator.
        now: The time, for the expiry of sessions.
        guard: How sure the endpoint must be.
        device_token: Whether the endpoint also answers a machine about its own account.

    Raises:
        AuthenticationError: With the status and error type of the reply.
    """
    if bearer is None:
        raise AuthenticationError("Missing Authorization: Bearer token")
    if guard == "session" and not bearer.startswith(SESSION_PREFIX):
        raise AuthenticationError(
            "This needs a sign-in, not a key", status=403, error_type="forbidden"
        )
    principal = _principal(connection, bearer, identity=identity, now=now)
    if principal is None or (principal.kind == "device_token" and not device_token):
        raise AuthenticationError("This token or key is not valid here")
    if guard == "user" and principal.user is None:
        raise AuthenticationError("This needs a user account", error_type="auth_error")
    return principal


def _principal(
    connection: Connection, bearer: str, *, identity: Identity, now: datetime
) -> Principal | None:
    if bearer.startswith(SESSION_PREFIX):
        try:
            account_id = identity.sessions.verify(bearer, now=now)
        except InvalidSessionError as error:
            raise AuthenticationError(error.what) from None
        return _of_user(connection, "session", account_id)
    if identity.is_admin(bearer):
        return Principal("admin", ADMIN_ACCOUNT, None)
    if bearer.startswith(DEVICE_TOKEN_PREFIX):
        return _of_user(connection, "device_token", account_for_device_token(connection, bearer))
    owner = connection.execute(
        select(api_keys.c.account_id).where(
            api_keys.c.key_sha256 == digest(bearer), api_keys.c.revoked_at.is_(None)
        )
    ).scalar_one_or_none()
    return _of_user(connection, "api_key", owner)


def _of_user(connection: Connection, kind: Kind, account_id: str | None) -> Principal | None:
    user = None if account_id is None else find_user(connection, account_id=account_id)
    return None if user is None else Principal(kind, user.account_id, user)
