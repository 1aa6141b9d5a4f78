"""Requests that may be sent twice: with an `Idempotency-Key` they act once, and answer alike."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.ledger import idempotency
from darkbloom_provider.coordinator.ledger.idempotency import Attempt
from darkbloom_provider.coordinator.rest.guards import admitted
from darkbloom_provider.coordinator.rest.replies import json_text
from darkbloom_provider.coordinator.services import Services


def named(request: Request, body: bytes) -> Attempt:
    """The request under the key that its caller chose, if any.

    Raises:
        BadIdempotencyKeyError: The key is not a key.
    """
    key = request.headers.get(idempotency.HEADER)
    account_id = admitted(request).account_id
    return idempotency.attempt(account_id, key, request.method, request.url.path, body)


async def once(
    services: Services, request: Request, body: bytes, work: Callable[[Connection], object]
) -> Response:
    """Do a request whose whole effect is one transaction, and answer with what `work` returns.

    Raises:
        BadIdempotencyKeyError: The key is not a key.
        IdempotencyConflictError: The key was used for another request.
    """
    attempt, now = named(request, body), services.clock()

    def operation(connection: Connection) -> str:
        before = idempotency.earlier(connection, attempt, now=now)
        if before is not None and before.reply is not None:
            return before.reply
        text = f"{json_text(work(connection))}\n"
        idempotency.begin(connection, attempt, now=now)
        idempotency.finish(connection, attempt, status=HTTPStatus.OK, reply=text)
        return text

    return Response(await services.db.write(operation), media_type="application/json")
