"""`Idempotency-Key`: a request that moves money, sent twice, moves it once and is answered alike.

The key is kept in the transaction that moves the money, so there is no moment at which one exists
without the other. A refused request keeps nothing: it moved nothing, and may be sent again.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Final

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from darkbloom_provider.coordinator.rest.refusals import RefusalError
from darkbloom_provider.coordinator.store.schema import idempotency_keys

HEADER: Final = "Idempotency-Key"
LIFETIME: Final = timedelta(hours=24)
_ACCEPTABLE: Final = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)


class BadIdempotencyKeyError(RefusalError):
    """The key is empty, too long, or not printable ASCII."""


class IdempotencyConflictError(RefusalError):
    """The key was used for another request."""

    status = HTTPStatus.CONFLICT
    type = "conflict"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request under a key of its caller's choice; `key` is None if none was given."""

    account_id: str
    key: str | None
    request_sha256: str


@dataclass(frozen=True, slots=True)
class Earlier:
    """What the same request came to before."""

    resource: str
    """What it made."""
    status: int | None
    """Of the reply; None if it was never finished."""
    reply: str | None


def attempt(account_id: str, key: str | None, method: str, path: str, body: bytes) -> Attempt:
    """Name a request.

    Raises:
        BadIdempotencyKeyError: The key is not a key.
    """
    if key is not None and _ACCEPTABLE.fullmatch(key) is None:
        raise BadIdempotencyKeyError(f"{HEADER} must be 1 to 255 printable ASCII characters")
    digest = hashlib.sha256(f"{method} {path}\n".encode() + body).hexdigest()
    return Attempt(account_id, key, digest)


def earlier(connection: Connection, request: Attempt, *, now: datetime) -> Earlier | None:
    """What this request came to when it was made first; None if this is the first time.

    Raises:
        IdempotencyConflictError: The key was used for another request.
    """
    if request.key is None:
        return None
    connection.execute(
        delete(idempotency_keys).where(idempotency_keys.c.created_at <= now - LIFETIME)
    )
    row = connection.execute(select(idempotency_keys).where(*_is(request))).one_or_none()
    if row is None:
        return None
    if row.request_sha256 != request.request_sha256:
        raise IdempotencyConflictError(f"This {HEADER} was used for another request")
    return Earlier(row.resource, row.status, row.reply)


def begin(connection: Connection, request: Attempt, *, resource: str = "", now: datetime) -> None:
    """Keep the key with what its request made, in the same transaction."""
    if request.key is not None:
        connection.execute(
            insert(idempotency_keys).values(
                account_id=request.account_id,
                idempotency_key=request.key,
                request_sha256=request.request_sha256,
                resource=resource,
                created_at=now,
            )
        )


def finish(connection: Connection, request: Attempt, *, status: int, reply: str) -> None:
    """Keep the reply, for whoever asks again."""
    if request.key is not None:
        connection.execute(
            update(idempotency_keys).where(*_is(request)).values(status=status, reply=reply)
        )


def _is(request: Attempt) -> list[ColumnElement[bool]]:
    return [
        idempotency_keys.c.account_id == request.account_id,
        idempotency_keys.c.idempotency_key == request.key,
    ]
