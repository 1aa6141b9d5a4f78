"""The caller's end of one request at the local endpoint: what it sent, whether it still waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final

from starlette.types import Receive, Send

from darkbloom_provider.protocol.answers.failure import Failure
from darkbloom_provider.protocol.requests.document import MAX_BODY_BYTES, InvalidRequestError
from darkbloom_provider.protocol.requests.request import Dialect

BODY_SECONDS: Final = 60.0
"""How long a caller may take to send its request."""
UNREAD_SECONDS: Final = 600.0
"""How long a caller may read nothing of its answer, which stands still meanwhile and holds memory.
The network gives a consumer as long."""

_JSON: Final = (b"content-type", b"application/json")
_STREAM: Final = ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache"))


class CallerLeftError(Exception):
    """The caller hung up, or has stopped reading."""


class Caller:
    """One HTTP request.

    Args:
        receive: The request's body and the news of its caller's end.
        send: The way back. Waits while the caller is slow.
        dialect: The shape of errors.
        request_id: Told with the answer.
        patience_s: How long a piece of the answer may wait to be read.
    """

    def __init__(
        self,
        receive: Receive,
        send: Send,
        dialect: Dialect,
        request_id: str,
        *,
        patience_s: float = UNREAD_SECONDS,
    ) -> None:
        self._receive = receive
        self._send = send
        self._dialect: Dialect = dialect
        self.request_id = request_id
        self._patience_s = patience_s
        self._streaming = False
        self.left = False

    async def body(self) -> bytes:
        """The request's body.

        Raises:
            InvalidRequestError: 413, it is too large; 408, it did not come.
            CallerLeftError: Nobody waits any more.
        """
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                more = True
                while more:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise CallerLeftError
                    part: bytes = message.get("body", b"")
                    parts.append(part)
                    size += len(part)
                    more = message.get("more_body", False)
                    if size > MAX_BODY_BYTES:
                        raise InvalidRequestError(
                            f"the request body is larger than {MAX_BODY_BYTES} bytes",
                            status_code=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                        )
        except TimeoutError:
            raise InvalidRequestError(
                f"the request body did not come within {BODY_SECONDS:.0f} seconds",
                status_code=HTTPStatus.REQUEST_TIMEOUT,
            ) from None
        return b"".join(parts)

    async def watch(self, on_leaving: Callable[[], None]) -> None:
        """Return when the caller has hung up, after telling whoever waits. After `body`."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.left = True
        on_leaving()

    async def write(self, data: bytes, *, last: bool) -> None:
        """Send a piece of an event stream. Returns at once if the caller has hung up.

        Raises:
            CallerLeftError: The caller reads nothing any more.
        """
        if not self._streaming:
            self._streaming = True
            await self._start(HTTPStatus.OK, *_STREAM)
        piece = {"type": "http.response.body", "body": data, "more_body": not last}
        try:
            async with asyncio.timeout(self._patience_s):
                await self._send(piece)
        except TimeoutError:
            raise CallerLeftError from None

    async def answer(self, data: bytes, status: int = HTTPStatus.OK, **more: bytes) -> None:
        """Send one JSON document."""
        length = (b"content-length", str(len(data)).encode())
        extra = [(name.replace("_", "-").encode(), value) for name, value in more.items()]
        await self._start(status, _JSON, length, *extra)
        await self._send({"type": "http.response.body", "body": data})

    async def fail(self, failure: Failure) -> None:
        """Say why there is no answer, or no more of it."""
        if self._streaming:
            await self.write(f"{failure.event(self._dialect)}\n\n".encode(), last=True)
            return
        more: Mapping[str, bytes] = {}
        if failure.status == HTTPStatus.SERVICE_UNAVAILABLE:
            more = {"retry_after": b"1"}
        elif failure.status == HTTPStatus.UNAUTHORIZED:
            more = {"www_authenticate": b"Bearer"}
        await self.answer(failure.body(self._dialect), failure.status, **more)

    async def _start(self, status: int, *headers: tuple[bytes, bytes]) -> None:
        safe = (b"x-content-type-options", b"nosniff")
        await self._send(
            {
                "type": "http.response.start",
                "status": int(status),
                "headers": [*headers, (b"x-request-id", self.request_id.encode()), safe],
            }
        )
