"""A job's way out: guards the order of its frames, slows it when the other side is slow."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable
from typing import Final

from darkbloom_provider.link.outbox import Outbox, ReplyClosedError
from darkbloom_provider.protocol.codec import MAX_PROVIDER_FRAME, encode
from darkbloom_provider.protocol.messages import (
    EncryptedPayload,
    InferenceAccepted,
    InferenceComplete,
    InferenceError,
    InferenceResponseChunk,
    Usage,
)

ERROR_GAP_S: Final = 0.02
"""Between the last chunk and an error. A coordinator that gets both at once may lose either."""
ERROR_LENGTH: Final = 500
"""Characters of an error text that reach the consumer."""
_UTF8_WIDTH: Final = 4


class ReplyOrderError(RuntimeError):
    """The job broke the order accepted → chunks → complete or error. A fault of this program."""


class FrameOverLimitError(ReplyClosedError):
    """A frame was over the size limit. The job has been ended with an error; stop it."""


class _Stage(enum.Enum):
    NEW = "not accepted yet"
    ACCEPTED = "accepted"
    ENDED = "ended"


def inference_error(request_id: str, message: str, status_code: int) -> str:
    """The `inference_error` frame. A code outside 400-599 becomes 500: others confuse consumers."""
    code = status_code if 400 <= status_code <= 599 else 500  # noqa: PLR2004 — HTTP's error codes
    return encode(
        InferenceError(request_id=request_id, error=message[:ERROR_LENGTH], status_code=code)
    )


class Reply:
    """The answer to one request, on the connection that it came on.

    Order: `accepted`, any number of `chunk`, then `complete` or `error` exactly once; `error` may
    come at any time before. Every job must end with one of the two, or be cancelled or aborted.
    `complete` and `error` return once the frame has been written to the socket, so a job that
    returns from `complete` was reported as far as this side can know.
    After a cancel or the loss of the connection every call raises `ReplyClosedError` and nothing
    more is sent.
    """

    def __init__(
        self,
        request_id: str,
        outbox: Outbox,
        *,
        ended: Callable[[], None],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """For the connection only.

        Args:
            request_id: Whose answer this is.
            outbox: Where frames queue.
            ended: Called once, when the last frame has been written; never after `close`.
            sleep: Waits for seconds.
        """
        self.request_id = request_id
        self._outbox = outbox
        self._lane = outbox.open_lane(request_id)
        self._ended = ended
        self._sleep = sleep
        self._stage = _Stage.NEW
        self._chunks = 0
        self._closed_for: str | None = None

    async def accepted(self) -> None:
        """Tell the coordinator that the request is taken. At once, before any model is loaded.

        Raises:
            ReplyClosedError: Nobody listens any more.
        """
        self._expect(_Stage.NEW)
        self._stage = _Stage.ACCEPTED
        text = encode(InferenceAccepted(request_id=self.request_id))
        self._outbox.control(text, job=self.request_id)

    async def chunk(self, payload: EncryptedPayload, usage: Usage) -> None:
        """Send one sealed piece; waits while this job's earlier pieces have not left.

        Args:
            payload: The piece, sealed with the request's session key.
            usage: Tokens so far.

        Raises:
            ReplyClosedError: Nobody listens any more.
            FrameOverLimitError: The piece is too large for one frame; the job is ended with 500.
        """
        self._expect(_Stage.ACCEPTED)
        text = encode(
            InferenceResponseChunk(request_id=self.request_id, encrypted_data=payload, usage=usage)
        )
        if _over_limit(text):
            await self.error("the answer is too large for one frame", 500)
            raise FrameOverLimitError("the frame is over the size limit")
        await self._lane.put(text)
        self._chunks += 1

    async def complete(
        self, usage: Usage, response_hash: str | None = None, se_signature: str | None = None
    ) -> None:
        """Report success with the tokens to be paid; returns once it is written to the socket.

        Raises:
            ReplyClosedError: Nobody listens any more. The completion may or may not have arrived.
        """
        self._expect(_Stage.ACCEPTED)
        self._stage = _Stage.ENDED
        message = InferenceComplete(
            request_id=self.request_id,
            usage=usage,
            response_hash=response_hash,
            se_signature=se_signature,
        )
        await self._finish(encode(message))

    async def error(self, message: str, status_code: int) -> None:
        """Report failure; returns once it is written to the socket.

        Args:
            message: Reaches the consumer: no content, no paths.
            status_code: 400-599.

        Raises:
            ReplyClosedError: Nobody listens any more.
        """
        self._expect(_Stage.NEW, _Stage.ACCEPTED)
        self._stage = _Stage.ENDED
        text = inference_error(self.request_id, message, status_code)
        if not self._chunks:
            await self._finish(text)
            return
        try:
            await self._lane.flushed()
            await self._sleep(ERROR_GAP_S)
        except asyncio.CancelledError:  # a job stopped in the gap still says how it ended
            self._put_last(text)
            raise
        await self._finish(text)

    def close(self, cause: str) -> None:
        """For the connection only: nobody listens any more. Drops what waits."""
        self._closed_for = cause
        self._outbox.close_lane(self.request_id, cause)

    async def _finish(self, text: str) -> None:
        self._put_last(text)
        await self._lane.flushed()

    def _put_last(self, text: str) -> None:
        self._lane.put_last(text, self._ended)

    def _expect(self, *stages: _Stage) -> None:
        if self._closed_for is not None:
            raise ReplyClosedError(self._closed_for)
        if self._stage not in stages:
            raise ReplyOrderError(f"the reply is {self._stage.value}")


def _over_limit(text: str) -> bool:
    if len(text) * _UTF8_WIDTH <= MAX_PROVIDER_FRAME:
        return False
    return len(text.encode()) > MAX_PROVIDER_FRAME
