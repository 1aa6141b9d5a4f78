"""People, and who is calling: what each kind of credential proves.

Keys and tokens are kept only as the SHA-256 of their full text, so a copy of the database lets
nobody in. Formats and the four guard levels: the network's authentication rules; device tokens
may read their own account's money and nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, bindparam, delete, insert, select, update

from darkbloom_provider.coordinator.accounts.session_tokens import (
    InvalidSessionError,
    Session,
    SessionKeys,
)
from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.rest.refusals import RefusalError
from darkbloom_provider.coordinator.store.schema import (
    api_keys,
    device_tokens,
    ended_sessions,
    users,
)
from darkbloom_provider.logs import Secret

API_KEY_PREFIX: Final = "eigeninference-"
DEVICE_TOKEN_PREFIX: Final = API_KEY_PREFIX + "pt-"
SESSION_PREFIX: Final = "eyJ"
KEY_BYTES: Final = 32
ADMIN_ACCOUNT: Final = "admin"
MAX_EMAIL_CHARACTERS: Final = 254

_EMAIL: Final = re.compile(r"[^@\s\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+")

RandomHex = Callable[[int], str]
Guard = Literal["any", "user", "session", "admin", "administrator"]
"""How sure an endpoint must be of its caller: any credential, one of a user, a sign-in, the
operator's (the admin key, or any credential of a user who is an administrator), or an
administrator's in person (not the admin key)."""
Kind = Literal["api_key", "device_token", "session", "admin"]


class AccountError(RefusalError):
    """An account or a key cannot be made as asked."""


class AuthenticationError(RefusalError):
    """The caller is not who the endpoint needs."""

    status = HTTPStatus.UNAUTHORIZED
    type = "authentication_error"


@dataclass(frozen=True, slots=True)
class User:
    """A person with an account here."""

    account_id: str
    email: str
    is_admin: bool = False


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling, and how they showed it."""

    kind: Kind
    account_id: str
    user: User | None
    session: Session | None = None

    @property
    def is_admin(self) -> bool:
        """Whether this is the operator."""
        return self.kind == "admin" or (self.user is not None and self.user.is_admin)


@dataclass(frozen=True, slots=True)
class Identity:
    """What callers are checked against, beside the database."""

    sessions: SessionKeys
    admin_key: Secret | None = None
    release_key: Secret | None = None

    def is_admin(self, bearer: str) -> bool:
        """Whether this is the operator's key. Takes the same time for every wrong one."""
        return _same(self.admin_key, bearer)

    def is_release(self, bearer: str) -> bool:
        """Whether this is the key of whoever builds releases."""
        return _same(self.release_key, bearer)


def _same(key: Secret | None, bearer: str) -> bool:
    return key is not None and hmac.compare_digest(key.reveal().encode(), bearer.encode())


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


def create_user(
    connection: Connection,
    *,
    account_id: str,
    email: str,
    now: datetime,
    password_hash: str | None = None,
    is_admin: bool = False,
) -> User:
    """Make a user and their account. Without a password nobody can sign in as them.

    Raises:
        AccountError: The e-mail address is not one, or already has an account.
    """
    address = email_address(email)
    if find_user(connection, email=address) is not None:
        raise AccountError("This e-mail address already has an account")
    books.open_account(connection, account_id, "user", now)
    connection.execute(
        insert(users).values(
            account_id=account_id,
            email=address,
            created_at=now,
            password_hash=password_hash,
            is_admin=is_admin,
            session_generation=0,
        )
    )
    return User(account_id, address, is_admin)


def email_address(text: str) -> str:
    """An address in the one spelling it is stored and looked up in.

    Raises:
        AccountError: It is not shaped like an address. Whether it receives mail is not asked.
    """
    address = text.strip().lower()
    if len(address) > MAX_EMAIL_CHARACTERS or _EMAIL.fullmatch(address) is None:
        raise AccountError("This is not an e-mail address", next_step="spell it name@example.org")
    return address


def find_user(
    connection: Connection, *, account_id: str | None = None, email: str | None = None
) -> User | None:
    """The user with this account id or this e-mail address."""
    row = _user_row(connection, account_id=account_id, email=email)
    return None if row is None else User(row.account_id, row.email, row.is_admin)


def _user_row(
    connection: Connection, *, account_id: str | None = None, email: str | None = None
) -> Row[Any] | None:
    query = select(users)
    if account_id is not None:
        query = query.where(users.c.account_id == account_id)
    if email is not None:
        query = query.where(users.c.email == email.strip().lower())
    return connection.execute(query.limit(1)).one_or_none()


def list_users(connection: Connection) -> list[User]:
    """Everybody with an account here, by e-mail address."""
    rows = connection.execute(select(users).order_by(users.c.email))
    return [User(row.account_id, row.email, row.is_admin) for row in rows]


def set_admin(connection: Connection, account_id: str, *, is_admin: bool) -> None:
    """Make a user an administrator, or an ordinary one again."""
    connection.execute(
        update(users).where(users.c.account_id == account_id).values(is_admin=is_admin)
    )


def has_admin(connection: Connection) -> bool:
    """Whether there is an administrator who can sign in."""
    query = select(users.c.account_id).where(users.c.is_admin, users.c.password_hash.is_not(None))
    return connection.execute(query.limit(1)).first() is not None


# ---------------------------------------------------------------- passwords and sessions


@dataclass(frozen=True, slots=True)
class SignInRecord:
    """What a sign-in is checked against."""

    user: User
    password_hash: str | None
    generation: int
    """Sessions of an earlier generation have ended."""


def sign_in_record(connection: Connection, email: str) -> SignInRecord | None:
    """The record of this e-mail address; None if nobody has it."""
    row = _user_row(connection, email=email)
    if row is None:
        return None
    user = User(row.account_id, row.email, row.is_admin)
    return SignInRecord(user, row.password_hash, row.session_generation)


def set_password(connection: Connection, account_id: str, password_hash: str) -> int:
    """Give a user a password, and end all their sessions. The generation of the next ones."""
    connection.execute(
        update(users).where(users.c.account_id == account_id).values(password_hash=password_hash)
    )
    return end_all_sessions(connection, account_id)


def end_session(connection: Connection, session: Session, *, now: datetime) -> None:
    """Sign out one session. Doing it twice is no different from once."""
    connection.execute(delete(ended_sessions).where(ended_sessions.c.expires_at <= now))
    if not _has_ended(connection, session.session_id):
        connection.execute(
            insert(ended_sessions).values(
                session_id=session.session_id, expires_at=session.expires_at
            )
        )


def end_all_sessions(connection: Connection, account_id: str) -> int:
    """Sign a user out everywhere. The generation of the next session."""
    generation = connection.execute(
        update(users)
        .where(users.c.account_id == account_id)
        .values(session_generation=users.c.session_generation + 1)
        .returning(users.c.session_generation)
    ).scalar_one()
    return int(generation)


def _has_ended(connection: Connection, session_id: str) -> bool:
    query = select(ended_sessions.c.session_id).where(ended_sessions.c.session_id == session_id)
    return connection.execute(query).first() is not None


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
    if guard == "session" and principal is not None and principal.session is None:
        raise AuthenticationError(
            "This needs a person who has signed in", status=403, error_type="forbidden"
        )
    if principal is None or (principal.kind == "device_token" and not device_token):
        raise AuthenticationError("This token or key is not valid here")
    if guard == "user" and principal.user is None:
        raise AuthenticationError("This needs a user account", error_type="auth_error")
    if guard == "admin" and not principal.is_admin:
        raise AuthenticationError(
            "This is for the operator only", status=403, error_type="forbidden"
        )
    if guard == "administrator" and not (principal.user and principal.user.is_admin):
        raise AuthenticationError(
            "This is for an administrator with an account", status=403, error_type="forbidden"
        )
    return principal


# Built once: it is asked for every request of a consumer.
_OWNER_OF_KEY: Final = (
    select(users.c.account_id, users.c.email, users.c.is_admin)
    .join(api_keys, api_keys.c.account_id == users.c.account_id)
    .where(api_keys.c.key_sha256 == bindparam("key"), api_keys.c.revoked_at.is_(None))
)


def _principal(
    connection: Connection, bearer: str, *, identity: Identity, now: datetime
) -> Principal | None:
    if bearer.startswith(SESSION_PREFIX):
        try:
            session = identity.sessions.verify(bearer, now=now)
        except InvalidSessionError as error:
            raise AuthenticationError(error.what) from None
        if session.account_id == ADMIN_ACCOUNT:
            # Of the operator's own commands (`beside`): nobody can sign in to this account.
            return Principal("admin", ADMIN_ACCOUNT, None)
        return _of_session(connection, session)
    if identity.is_admin(bearer):
        return Principal("admin", ADMIN_ACCOUNT, None)
    if bearer.startswith(DEVICE_TOKEN_PREFIX):
        return _of_user(connection, "device_token", account_for_device_token(connection, bearer))
    row = connection.execute(_OWNER_OF_KEY, {"key": digest(bearer)}).one_or_none()
    if row is None:
        return None
    user = User(row.account_id, row.email, row.is_admin)
    return Principal("api_key", user.account_id, user)


def _of_user(connection: Connection, kind: Kind, account_id: str | None) -> Principal | None:
    user = None if account_id is None else find_user(connection, account_id=account_id)
    return None if user is None else Principal(kind, user.account_id, user)


def _of_session(connection: Connection, session: Session) -> Principal:
    row = _user_row(connection, account_id=session.account_id)
    if (
        row is None
        or row.session_generation != session.generation
        or _has_ended(connection, session.session_id)
    ):
        raise AuthenticationError("This session has ended; sign in again")
    user = User(row.account_id, row.email, row.is_admin)
    return Principal("session", user.account_id, user, session)
