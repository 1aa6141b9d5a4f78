"""Linking a machine to an account: a code on the machine, approved by a person, becomes a token.

Source: the network's device flow (RFC 8628 in spirit, with its own status codes). A code yields
its token once. Codes and tokens are stored as hashes; only the short user code is in clear.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from darkbloom_provider.coordinator.accounts.people import (
    DEVICE_TOKEN_PREFIX,
    KEY_BYTES,
    RandomHex,
    account_for_device_token,
    digest,
)
from darkbloom_provider.coordinator.rest.refusals import RefusalError
from darkbloom_provider.coordinator.store.schema import device_codes, device_tokens
from darkbloom_provider.logs import Secret

LIFETIME: Final = timedelta(seconds=900)
POLL_INTERVAL_S: Final = 5
ALPHABET: Final = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"
"""No 0, O, 1, I or L: people type these."""
ID_CHARACTERS: Final = 16
MAX_CODES: Final = 1000
"""Live codes at a time: nobody needs a credential to ask for one."""

_HALF: Final = 4
_RETRY_AFTER_S: Final = 60
_REMEMBERED: Final = timedelta(hours=1)
"""For this long an expired code is still answered as expired instead of unknown."""
_UNBIASED: Final = 256 - 256 % len(ALPHABET)
_SHOWN_BY_LOGIN: Final = "type it as `darkbloom login` shows it on the other machine"
_LOGIN_AGAIN: Final = "type `darkbloom login` on the other machine for a new one"


class DeviceLoginError(RefusalError):
    """A step of the flow that cannot be taken."""


@dataclass(frozen=True, slots=True)
class Started:
    """A new pending code."""

    device_code: Secret
    user_code: str


@dataclass(frozen=True, slots=True)
class Authorized:
    """The token an approved code became, and whose account it is."""

    token: Secret
    account_id: str


@dataclass(frozen=True, slots=True)
class Pending:
    """A code that waits for its approval: all that is known of the machine that shows it."""

    user_code: str
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class LinkedDevice:
    """A machine's token, as its owner sees it."""

    id: str
    """The beginning of the token's hash."""
    label: str
    created_at: datetime


def start(connection: Connection, *, random_hex: RandomHex, now: datetime) -> Started:
    """Begin a login.

    Raises:
        DeviceLoginError: 429 when too many logins are under way, 500 when two drawn codes are
            both taken.
    """
    _make_room(connection, now)
    device_code = random_hex(KEY_BYTES)
    # One retry: with 31^8 codes and a thousand live ones, a second collision is a broken source.
    drawn = (_draw_user_code(random_hex) for _ in range(2))
    user_code = next((code for code in drawn if _find(connection, code) is None), None)
    if user_code is None:
        raise DeviceLoginError("No code could be made", status=500, error_type="server_error")
    connection.execute(
        insert(device_codes).values(
            device_code_sha256=digest(device_code),
            user_code=user_code,
            state="pending",
            created_at=now,
            expires_at=now + LIFETIME,
        )
    )
    return Started(Secret(device_code), user_code)


def poll(
    connection: Connection, device_code: str, *, random_hex: RandomHex, now: datetime
) -> Authorized | None:
    """What a waiting machine learns: its token, once; None while nobody has approved.

    Raises:
        DeviceLoginError: 404 `invalid_grant` for an unknown code; 410 `expired_token` for one that
            is past its life, was denied, or has already yielded its token.
    """
    hashed = digest(device_code)
    row = connection.execute(
        select(device_codes).where(device_codes.c.device_code_sha256 == hashed)
    ).one_or_none()
    if row is None:
        raise DeviceLoginError("This code is not known", status=404, error_type="invalid_grant")
    if row.expires_at <= now or row.state == "consumed":
        raise DeviceLoginError(
            "This code has expired or was already used", status=410, error_type="expired_token"
        )
    if row.state == "denied":
        raise DeviceLoginError("This code was denied", status=410, error_type="expired_token")
    if row.state == "pending":
        return None
    token = DEVICE_TOKEN_PREFIX + random_hex(KEY_BYTES)
    connection.execute(
        update(device_codes)
        .where(device_codes.c.device_code_sha256 == hashed)
        .values(state="consumed")
    )
    connection.execute(
        insert(device_tokens).values(
            token_sha256=digest(token),
            account_id=row.account_id,
            label=f"device-{row.user_code}",
            created_at=now,
        )
    )
    return Authorized(Secret(token), row.account_id)


def pending(connection: Connection, user_code: str, *, now: datetime) -> Pending:
    """What a person is about to approve or deny. The dash may be left out.

    Raises:
        DeviceLoginError: 404 `invalid_code`, 410 `expired_code`, or 409 `already_used`.
    """
    spelled = _spelled(user_code)
    row = None if spelled is None else _find(connection, spelled)
    if row is None:
        raise DeviceLoginError(
            "This code is not known",
            status=404,
            error_type="invalid_code",
            next_step=_SHOWN_BY_LOGIN,
        )
    if row.expires_at <= now:
        raise DeviceLoginError(
            "This code has expired", status=410, error_type="expired_code", next_step=_LOGIN_AGAIN
        )
    if row.state != "pending":
        raise DeviceLoginError(
            "This code was already used",
            status=409,
            error_type="already_used",
            next_step=_LOGIN_AGAIN,
        )
    return Pending(row.user_code, row.created_at, row.expires_at)


def approve(connection: Connection, user_code: str, *, account_id: str, now: datetime) -> None:
    """Let the machine that shows this code work for an account. Raises as `pending`."""
    found = pending(connection, user_code, now=now)
    connection.execute(
        update(device_codes)
        .where(device_codes.c.user_code == found.user_code)
        .values(state="approved", account_id=account_id)
    )


def deny(connection: Connection, user_code: str, *, now: datetime) -> None:
    """Make a code worthless: the machine that shows it stops asking. Raises as `pending`."""
    found = pending(connection, user_code, now=now)
    connection.execute(
        update(device_codes)
        .where(device_codes.c.user_code == found.user_code)
        .values(state="denied")
    )


def linked_devices(connection: Connection, account_id: str) -> list[LinkedDevice]:
    """The machines whose tokens are active, oldest first."""
    rows = connection.execute(
        select(device_tokens)
        .where(device_tokens.c.account_id == account_id, device_tokens.c.revoked_at.is_(None))
        .order_by(device_tokens.c.created_at, device_tokens.c.token_sha256)
    )
    return [
        LinkedDevice(row.token_sha256[:ID_CHARACTERS], row.label, row.created_at) for row in rows
    ]


def unlink(connection: Connection, device_id: str, *, account_id: str, now: datetime) -> str | None:
    """Revoke a machine's token by the id it is listed under.

    Returns the hash of the token, or None if it is not an active one of this account.
    """
    start = func.substr(device_tokens.c.token_sha256, 1, ID_CHARACTERS)
    return connection.execute(
        update(device_tokens)
        .where(
            start == device_id,
            device_tokens.c.account_id == account_id,
            device_tokens.c.revoked_at.is_(None),
        )
        .values(revoked_at=now)
        .returning(device_tokens.c.token_sha256)
    ).scalar_one_or_none()


def revoke(connection: Connection, token: str, *, now: datetime) -> bool:
    """Make a device token worthless. False if it is unknown or already revoked."""
    if account_for_device_token(connection, token) is None:
        return False
    connection.execute(
        update(device_tokens)
        .where(device_tokens.c.token_sha256 == digest(token))
        .values(revoked_at=now)
    )
    return True


def _find(connection: Connection, user_code: str) -> Row[Any] | None:
    return connection.execute(
        select(device_codes).where(device_codes.c.user_code == user_code)
    ).one_or_none()


def _spelled(text: str) -> str | None:
    """A typed code as it is stored; None if it cannot be one."""
    letters = text.strip().upper().replace("-", "")
    if len(letters) != 2 * _HALF or not set(letters) <= set(ALPHABET):
        return None
    return f"{letters[:_HALF]}-{letters[_HALF:]}"


def _draw_user_code(random_hex: RandomHex) -> str:
    letters = ""
    while len(letters) < 2 * _HALF:
        drawn = bytes.fromhex(random_hex(2 * _HALF))
        # Bytes above the last whole multiple would make the first letters more likely.
        letters += "".join(ALPHABET[b % len(ALPHABET)] for b in drawn if b < _UNBIASED)
    return f"{letters[:_HALF]}-{letters[_HALF : 2 * _HALF]}"


def _make_room(connection: Connection, now: datetime) -> None:
    connection.execute(delete(device_codes).where(device_codes.c.expires_at <= now - _REMEMBERED))
    if _count(connection) >= MAX_CODES:
        connection.execute(delete(device_codes).where(device_codes.c.expires_at <= now))
    if _count(connection) >= MAX_CODES:
        crowded = DeviceLoginError(
            "Too many logins are under way", status=429, error_type="rate_limit_exceeded"
        )
        crowded.retry_after = _RETRY_AFTER_S
        raise crowded


def _count(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(device_codes)).scalar_one()
