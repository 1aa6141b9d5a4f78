"""What browsers send: forms, and the addresses to go to afterwards."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl

from starlette.requests import Request

from darkbloom_provider.coordinator.rest.replies import ApiError, read_body

FORM_TYPE: Final = "application/x-www-form-urlencoded"
_MAX_FIELDS: Final = 30


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form; of a field that comes twice, the last.

    Raises:
        ApiError: 415 for another kind of body, 400 for an unreadable one, or as `read_body`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != FORM_TYPE:
        raise ApiError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", "This is not a form"
        )
    body = await read_body(request)
    try:
        fields = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=_MAX_FIELDS,
        )
    except ValueError:
        raise ApiError(
            HTTPStatus.BAD_REQUEST, "invalid_request_error", "The form cannot be read"
        ) from None
    return dict(fields)


def local_path(text: str, default: str) -> str:
    """Where to go next, if it is a page of ours; nobody is sent from here to another site.

    >>> local_path("/link?code=ABCD-2345", "/earn"), local_path("//evil.example", "/earn")
    ('/link?code=ABCD-2345', '/earn')
    """
    plain = text.isascii() and text.isprintable() and "\\" not in text
    return text if plain and text.startswith("/") and not text.startswith("//") else default
