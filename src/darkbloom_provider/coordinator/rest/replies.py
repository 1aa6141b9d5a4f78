"""Replies and request bodies as the network shapes them.

JSON is written as Go's encoder writes it: compact, `<`, `>` and `&` escaped, a newline at the end,
and never NaN. Every error is `{"error": {"type", "message"}}` and nothing else, but where
Anthropic's clients call: they read Anthropic's types, and `"type": "error"` beside them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response

from darkbloom_provider.coordinator.ledger.books import InsufficientFundsError, LedgerError
from darkbloom_provider.coordinator.rest.refusals import RefusalError
from darkbloom_provider.coordinator.store.database import LedgerUnavailableError
from darkbloom_provider.protocol.answers.failure import Failure
from darkbloom_provider.protocol.openai import InvalidRequestError, error_body, parse_object
from darkbloom_provider.protocol.requests.request import MESSAGES_ENDPOINT

MAX_FORM_BYTES: Final = 64 * 1024
"""Bodies of account calls are one small object."""
BODY_SECONDS: Final = 10.0

_ESCAPES: Final = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
Handler = Callable[[Request, Exception], Awaitable[Response]]


class ApiError(Exception):
    """An error reply. `message` is for people and names no secret."""

    def __init__(
        self,
        status: int,
        error_type: str,
        message: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = error_type
        self.message = message
        self.headers = headers


EXPECTED: Final[tuple[type[Exception], ...]] = (
    ApiError,
    RefusalError,
    InsufficientFundsError,
    InvalidRequestError,
    LedgerError,
    LedgerUnavailableError,
)
"""Failures that are answered; others are defects."""


def json_text(value: object) -> str:
    """Compact JSON with Go's escapes, without the newline.

    >>> json_text({"a": "<b>"}) == '{"a":"' + chr(92) + 'u003cb' + chr(92) + 'u003e"}'
    True
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_ESCAPES)


def json_reply(
    value: object, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON reply."""
    body = f"{json_text(value)}\n"
    return Response(body, status, headers=headers, media_type="application/json")


def error_reply(
    status: int, error_type: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """An error reply: exactly `type` and `message`."""
    return json_reply(error_body(error_type, message), status, headers)


def reply_to(request: HTTPConnection, error: ApiError) -> Response:
    """An error reply in the shape that the callers of this path read."""
    if request.url.path == MESSAGES_ENDPOINT:
        shaped = Failure(error.status, error.message).document("messages")
        return json_reply(shaped, error.status, error.headers)
    return error_reply(error.status, error.type, error.message, error.headers)


def rfc3339(instant: datetime) -> str:
    """A UTC time with as many fractional digits as it has, at most six.

    >>> rfc3339(datetime(2026, 5, 1, 12, 0, 0, 120000, tzinfo=UTC))
    '2026-05-01T12:00:00.12Z'
    """
    instant = instant.astimezone(UTC)
    fraction = f".{instant.microsecond:06d}".rstrip("0").rstrip(".")
    return f"{instant:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def rfc3339_seconds(instant: datetime) -> str:
    """A UTC time in whole seconds."""
    return rfc3339(instant.replace(microsecond=0))


async def read_body(
    request: Request, *, limit: int = MAX_FORM_BYTES, seconds: float = BODY_SECONDS
) -> bytes:
    """The request's body, bounded in size and time.

    Raises:
        ApiError: 413 `payload_too_large` or 408 `timeout`; 400 if the client hung up.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > limit:
                    raise ApiError(
                        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                        "payload_too_large",
                        f"the request body is larger than {limit} bytes",
                    )
    except TimeoutError:
        raise ApiError(
            HTTPStatus.REQUEST_TIMEOUT, "timeout", f"the body took longer than {seconds:g} s"
        ) from None
    except ClientDisconnect:
        raise ApiError(
            HTTPStatus.BAD_REQUEST, "invalid_request_error", "the body was not sent to its end"
        ) from None
    return bytes(body)


async def read_json(
    request: Request,
    *,
    error_type: str = "invalid_request_error",
    limit: int = MAX_FORM_BYTES,
    seconds: float = BODY_SECONDS,
    empty: bool = False,
) -> dict[str, Any]:
    """The request's body as a JSON object. With `empty`, no body at all means no fields.

    Raises:
        ApiError: 400 of the given type, or what `read_body` raises.
    """
    body = await read_body(request, limit=limit, seconds=seconds)
    return {} if empty and not body.strip() else json_object(body, error_type=error_type)


def json_object(body: bytes, *, error_type: str = "invalid_request_error") -> dict[str, Any]:
    """A body as a JSON object.

    Raises:
        ApiError: 400 of the given type.
    """
    try:
        return parse_object(body)
    except InvalidRequestError as error:
        raise ApiError(error.status_code, error_type, error.what) from None


def text_field(
    document: Mapping[str, Any],
    name: str,
    *,
    default: str | None = None,
    error_type: str = "invalid_request_error",
    exact: bool = False,
) -> str:
    """A field that holds text.

    Args:
        document: The body.
        name: The field.
        default: What an absent field means; without one the field must be there and not be empty.
        error_type: The type of the error otherwise.
        exact: Leave blanks at the ends as they are, as in a password.

    Raises:
        ApiError: 400, it is absent, empty, no text, or text that cannot be stored.
    """
    value = document.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or not (value.strip() or default is not None):
        raise ApiError(HTTPStatus.BAD_REQUEST, error_type, f"{name} is required")
    if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ApiError(HTTPStatus.BAD_REQUEST, error_type, f"{name} is not readable text")
    return value if exact else value.strip()


def exception_handlers() -> dict[Any, Handler]:
    """What Starlette is given so that every failure becomes a reply of the right shape."""
    return dict.fromkeys(EXPECTED, _failed)


def api_error_of(error: Exception) -> ApiError:
    """The reply to a failure; 500 for one that nobody expected."""
    match error:
        case ApiError():
            known = error
        case RefusalError():
            headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
            known = ApiError(error.status, error.type, str(error), headers)
        case InsufficientFundsError():
            known = ApiError(HTTPStatus.PAYMENT_REQUIRED, "insufficient_funds", str(error))
        case InvalidRequestError():
            known = ApiError(error.status_code, "invalid_request_error", error.what)
        case LedgerError():
            known = ApiError(HTTPStatus.BAD_REQUEST, "invalid_request_error", str(error))
        case LedgerUnavailableError():
            # The cause names paths of this machine: it is in the log, not in the reply.
            known = ApiError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "server_error",
                "the ledger is not available now; nothing was charged, please try again",
                {"Retry-After": "5"},
            )
        case _:
            known = ApiError(500, "internal_error", "internal error")
    return known


async def _failed(request: Request, error: Exception) -> Response:
    return reply_to(request, api_error_of(error))
