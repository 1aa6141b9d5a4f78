"""Replies look as the network's do, whatever goes wrong."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from darkbloom_provider.coordinator.ledger.books import InsufficientFundsError
from darkbloom_provider.coordinator.rest import replies
from darkbloom_provider.coordinator.rest.middleware import (
    CorsMiddleware,
    FailureMiddleware,
    RequestIdMiddleware,
)
from darkbloom_provider.protocol.openai import InvalidRequestError
from support.desk import error_of


async def echo(request: Request) -> Response:
    return replies.json_reply(await replies.read_json(request, limit=100, seconds=0.05))


async def broken(_request: Request) -> Response:
    raise ZeroDivisionError("the consumer said: secret words")


async def poor(_request: Request) -> Response:
    raise InsufficientFundsError(needed=6_389, available=5)


async def wrong(_request: Request) -> Response:
    raise InvalidRequestError("max_tokens must be positive", param="max_tokens")


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = Starlette(
        routes=[
            Route("/echo", echo, methods=["POST"]),
            Route("/broken", broken),
            Route("/poor", poor),
            Route("/wrong", wrong),
        ],
        middleware=[
            Middleware(RequestIdMiddleware, rng=random.SystemRandom()),
            Middleware(CorsMiddleware, origin="https://console.example"),
            Middleware(FailureMiddleware),
        ],
        exception_handlers=replies.exception_handlers(),
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://c.test") as client:
        yield client


async def test_json_ends_in_a_newline_and_escapes_markup(client: httpx.AsyncClient) -> None:
    reply = await client.post("/echo", json={"a": "<b>&ü\u2028"})
    assert reply.text == '{"a":"\\u003cb\\u003e\\u0026ü\\u2028"}\n'
    assert reply.headers["content-type"] == "application/json"


def test_nan_is_never_written() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            replies.json_reply({"value": value})


@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"[]", b'"text"', b"{", b"\xff\xfe", b'{"a":NaN}', b"[" * 90]
)
async def test_a_body_that_is_no_json_object_is_refused(
    client: httpx.AsyncClient, body: bytes
) -> None:
    assert error_of(await client.post("/echo", content=body)) == (400, "invalid_request_error")


async def test_a_body_over_the_limit_is_refused(client: httpx.AsyncClient) -> None:
    assert error_of(await client.post("/echo", content=b"x" * 101)) == (413, "payload_too_large")


async def test_a_body_that_does_not_arrive_is_refused() -> None:
    async def never() -> dict[str, object]:
        await asyncio.Event().wait()
        raise AssertionError

    request = Request({"type": "http", "method": "POST", "headers": []}, receive=never)
    with pytest.raises(replies.ApiError) as refused:
        await replies.read_body(request, limit=10, seconds=0.01)
    assert (refused.value.status, refused.value.type) == (408, "timeout")


async def test_a_client_that_hangs_up_is_no_crash() -> None:
    async def gone() -> dict[str, object]:
        return {"type": "http.disconnect"}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive=gone)
    with pytest.raises(replies.ApiError) as refused:
        await replies.read_body(request, limit=10)
    assert refused.value.status == 400


async def test_a_crash_is_a_typed_error_that_quotes_nothing(
    client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    reply = await client.get("/broken")
    assert error_of(reply) == (500, "internal_error")
    printed = capsys.readouterr()
    assert "secret words" not in reply.text + printed.out + printed.err


async def test_errors_of_the_ledger_and_of_the_request_have_their_codes(
    client: httpx.AsyncClient,
) -> None:
    reply = await client.get("/poor")
    assert error_of(reply) == (402, "insufficient_funds")
    assert "$0.006389" in reply.json()["error"]["message"]
    assert error_of(await client.get("/wrong")) == (400, "invalid_request_error")


async def test_an_unknown_path_is_plain_text_and_a_wrong_method_says_which_is_right(
    client: httpx.AsyncClient,
) -> None:
    missing = await client.get("/nowhere")
    assert (missing.status_code, missing.headers["content-type"][:10]) == (404, "text/plain")
    wrong_method = await client.get("/echo")
    assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/poor", "/nowhere"])
async def test_every_reply_carries_a_request_id(client: httpx.AsyncClient, path: str) -> None:
    assert re.fullmatch(r"[0-9a-v]{12}", (await client.get(path)).headers["x-request-id"])
    own = await client.get(path, headers={"X-Request-ID": "mine-1"})
    assert own.headers["x-request-id"] == "mine-1"
    long = await client.get(path, headers={"X-Request-ID": "x" * 500})
    assert re.fullmatch(r"[0-9a-v]{12}", long.headers["x-request-id"])


async def test_every_reply_lets_the_console_in(client: httpx.AsyncClient) -> None:
    for reply in (await client.get("/poor"), await client.options("/nowhere")):
        assert reply.headers["access-control-allow-origin"] == "https://console.example"
        assert reply.headers["access-control-allow-methods"] == "GET, POST, PUT, DELETE, OPTIONS"
        assert reply.headers["access-control-allow-headers"] == "Content-Type, Authorization"
        assert reply.headers["access-control-allow-credentials"] == "true"
    asked = await client.options("/echo")
    assert (asked.status_code, asked.content) == (204, b"")
    assert asked.headers["x-request-id"]


@pytest.mark.parametrize(
    ("instant", "text"),
    [
        (datetime(2026, 5, 1, 12, tzinfo=UTC), "2026-05-01T12:00:00Z"),
        (datetime(2026, 5, 1, 12, 0, 0, 1, tzinfo=UTC), "2026-05-01T12:00:00.000001Z"),
        (datetime(2026, 5, 1, 12, 0, 0, 500_000, tzinfo=UTC), "2026-05-01T12:00:00.5Z"),
        (datetime(2026, 5, 1, 12, tzinfo=timezone(timedelta(hours=2))), "2026-05-01T10:00:00Z"),
    ],
)
def test_times_are_written_in_utc_without_idle_zeros(instant: datetime, text: str) -> None:
    assert replies.rfc3339(instant) == text
