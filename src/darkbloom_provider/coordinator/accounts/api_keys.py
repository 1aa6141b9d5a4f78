"""API keys: shown once, kept as a hash, named by their owner, revoked one by one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, Connection, func, insert, select, update

from darkbloom_provider.coordinator.accounts.people import (
    API_KEY_PREFIX,
    KEY_BYTES,
    AccountError,
    RandomHex,
    digest,
)
from darkbloom_provider.coordinator.store.schema import api_keys
from darkbloom_provider.logs import Secret

MAX_NAME_CHARACTERS: Final = 64
ID_CHARACTERS: Final = 16
_HINT_CHARACTERS: Final = 4


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What may be shown of a key after it was made."""

    id: str
    """The beginning of the key's hash. Tells keys apart and lets nobody in."""
    name: str
    hint: str
    """The key's last characters, as its owner may have noted it. Empty for very old keys."""
    created_at: datetime
    revoked_at: datetime | None


def key_id(key: str) -> str:
    """The id that a key is listed under."""
    return digest(key)[:ID_CHARACTERS]


def create_api_key(
    connection: Connection,
    account_id: str,
    *,
    random_hex: RandomHex,
    now: datetime,
    name: str = "",
) -> Secret:
    """A new API key of a user. Shown once: only its hash is kept.

    Raises:
        AccountError: The name is too long, or an active key of the user has it.
    """
    name = name.strip()
    if len(name) > MAX_NAME_CHARACTERS or not (name.isprintable() or not name):
        raise AccountError(f"The name of a key has at most {MAX_NAME_CHARACTERS} characters")
    if name and any(key.name == name for key in list_api_keys(connection, account_id)):
        raise AccountError(
            f"There is already a key named {name!r}",
            why="a key is shown only once, when it is made",
            next_step="revoke that one first, or choose another name",
        )
    key = API_KEY_PREFIX + random_hex(KEY_BYTES)
    connection.execute(
        insert(api_keys).values(
            key_sha256=digest(key),
            account_id=account_id,
            created_at=now,
            name=name,
            hint=key[-_HINT_CHARACTERS:],
        )
    )
    return Secret(key)


def list_api_keys(
    connection: Connection, account_id: str, *, revoked: bool = False
) -> list[ApiKey]:
    """The keys of an account, oldest first; the active ones, or those that were `revoked` too."""
    query = select(api_keys).where(api_keys.c.account_id == account_id)
    if not revoked:
        query = query.where(api_keys.c.revoked_at.is_(None))
    rows = connection.execute(query.order_by(api_keys.c.created_at, api_keys.c.key_sha256))
    return [
        ApiKey(row.key_sha256[:ID_CHARACTERS], row.name, row.hint, row.created_at, row.revoked_at)
        for row in rows
    ]


def revoke_api_key(connection: Connection, key: str, *, account_id: str, now: datetime) -> bool:
    """Revoke a key of this account. False if it is not theirs, unknown or already revoked."""
    return _revoke(connection, api_keys.c.key_sha256 == digest(key), account_id, now)


def revoke_api_key_by_id(
    connection: Connection, listed_id: str, *, account_id: str, now: datetime
) -> bool:
    """The same, for a key as it is listed."""
    if len(listed_id) != ID_CHARACTERS:
        return False
    start = func.substr(api_keys.c.key_sha256, 1, ID_CHARACTERS)
    return _revoke(connection, start == listed_id, account_id, now)


def _revoke(
    connection: Connection, which: ColumnElement[bool], account_id: str, now: datetime
) -> bool:
    result = connection.execute(
        update(api_keys)
        .where(which, api_keys.c.account_id == account_id, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    return result.rowcount == 1
