"""A job's answer: the order of its frames, exactly one end, and silence afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from darkbloom_provider.link.outbox import HIGH_WATER, Outbox, ReplyClosedError
from darkbloom_provider.link.reply import (
    ERROR_GAP_S,
    ERROR_LENGTH,
    FrameOverLimitError,
    Reply,
    ReplyOrderError,
    inference_error,
)
from darkbloom_provider.protocol.codec import MAX_PROVIDER_FRAME, decode_from_provider
from darkbloom_provider.protocol.messages import (
    EncryptedPayload,
    InferenceAccepted,
    InferenceComplete,
    InferenceError,
    InferenceResponseChunk,
    ProviderMessage,
    Usage,
)
from support.manual_time import ManualTime, settle

PIECE = EncryptedPayload(ephemeral_public_key="key", ciphertext="box")
USAGE = Usage(prompt_tokens=17, completion_tokens=42)


class Bench:
    """One reply over an outbox; `writing` sends what is queued."""

    def __init__(self) -> None:
        self.time = ManualTime()
        self.outbox = Outbox()
        self.ended = 0
        self.sent: list[ProviderMessage] = []
        self.reply = Reply("job", self.outbox, ended=self._count, sleep=self.time.sleep)
        self.writer: asyncio.Task[None] | None = None

    def _count(self) -> None:
        self.ended += 1

    def start_writing(self) -> None:
        self.writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while True:
            frame = await self.outbox.next()
            self.sent.append(decode_from_provider(frame.text))
            self.outbox.sent(frame)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    if bench.writer is not None:
        bench.writer.cancel()
        await asyncio.wait([bench.writer])


async def test_accepted_chunks_and_completion_leave_in_order(bench: Bench) -> None:
    bench.start_writing()
    await bench.reply.accepted()
    await bench.reply.chunk(PIECE, USAGE)
    await bench.reply.complete(USAGE, response_hash="ab", se_signature="cd")
    assert bench.sent == [
        InferenceAccepted(request_id="job"),
        InferenceResponseChunk(request_id="job", encrypted_data=PIECE, usage=USAGE),
        InferenceComplete(request_id="job", usage=USAGE, response_hash="ab", se_signature="cd"),
    ]
    assert bench.ended == 1


async def test_a_completion_returns_only_when_it_has_been_written(bench: Bench) -> None:
    await bench.reply.accepted()
    completing = asyncio.create_task(bench.reply.complete(USAGE))
    await settle()
    assert not completing.done()
    assert bench.ended == 0
    bench.start_writing()
    await completing
    assert bench.ended == 1


async def test_a_completion_whose_connection_is_lost_is_not_a_success(bench: Bench) -> None:
    await bench.reply.accepted()
    completing = asyncio.create_task(bench.reply.complete(USAGE))
    await settle()
    bench.reply.close("the connection was lost")
    with pytest.raises(ReplyClosedError):
        await completing
    assert bench.ended == 0


async def test_a_completion_is_sent_even_if_its_job_is_stopped_while_it_waits(
    bench: Bench,
) -> None:
    await bench.reply.accepted()
    completing = asyncio.create_task(bench.reply.complete(USAGE))
    await settle()
    completing.cancel()
    await asyncio.wait([completing])
    bench.start_writing()
    await bench.outbox.flushed()
    assert isinstance(bench.sent[-1], InferenceComplete)
    assert bench.ended == 1


async def test_a_job_ends_exactly_once(bench: Bench) -> None:
    bench.start_writing()
    await bench.reply.accepted()
    await bench.reply.complete(USAGE)
    for again in (
        bench.reply.complete(USAGE),
        bench.reply.error("late", 500),
        bench.reply.chunk(PIECE, USAGE),
        bench.reply.accepted(),
    ):
        with pytest.raises(ReplyOrderError):
            await again
    assert len(bench.sent) == 2


async def test_nothing_but_an_error_comes_before_accepted(bench: Bench) -> None:
    with pytest.raises(ReplyOrderError):
        await bench.reply.chunk(PIECE, USAGE)
    with pytest.raises(ReplyOrderError):
        await bench.reply.complete(USAGE)
    bench.start_writing()
    await bench.reply.error("unknown model", 404)
    assert bench.sent == [InferenceError(request_id="job", error="unknown model", status_code=404)]


async def test_a_cancelled_job_sends_nothing_more(bench: Bench) -> None:
    await bench.reply.accepted()
    await bench.reply.chunk(PIECE, USAGE)
    bench.reply.close("the coordinator cancelled it")
    for late in (
        bench.reply.accepted(),
        bench.reply.chunk(PIECE, USAGE),
        bench.reply.complete(USAGE),
        bench.reply.error("late", 500),
    ):
        with pytest.raises(ReplyClosedError, match="cancelled"):
            await late
    bench.start_writing()
    await bench.outbox.flushed()
    assert bench.sent == []
    assert bench.ended == 0


async def test_a_slow_line_slows_the_job(bench: Bench) -> None:
    await bench.reply.accepted()
    big = EncryptedPayload(ephemeral_public_key="key", ciphertext="x" * HIGH_WATER)
    await bench.reply.chunk(big, USAGE)
    next_chunk = asyncio.create_task(bench.reply.chunk(PIECE, USAGE))
    await settle()
    assert not next_chunk.done()
    bench.start_writing()
    await next_chunk


async def test_an_error_after_chunks_leaves_a_gap(bench: Bench) -> None:
    bench.start_writing()
    await bench.reply.accepted()
    await bench.reply.chunk(PIECE, USAGE)
    failing = asyncio.create_task(bench.reply.error("engine failure", 500))
    await bench.time.advance(ERROR_GAP_S / 2)
    assert not any(isinstance(message, InferenceError) for message in bench.sent)
    await bench.time.advance(ERROR_GAP_S / 2)
    await failing
    assert isinstance(bench.sent[-1], InferenceError)


async def test_a_job_stopped_in_the_gap_still_says_how_it_ended(bench: Bench) -> None:
    bench.start_writing()
    await bench.reply.accepted()
    await bench.reply.chunk(PIECE, USAGE)
    failing = asyncio.create_task(bench.reply.error("engine failure", 500))
    await settle()
    failing.cancel()
    await asyncio.wait([failing])
    assert failing.cancelled()
    await bench.outbox.flushed()
    assert isinstance(bench.sent[-1], InferenceError)
    assert bench.ended == 1


async def test_a_job_cancelled_in_the_gap_stays_silent(bench: Bench) -> None:
    bench.start_writing()
    await bench.reply.accepted()
    await bench.reply.chunk(PIECE, USAGE)
    failing = asyncio.create_task(bench.reply.error("engine failure", 500))
    await settle()
    bench.reply.close("the coordinator cancelled it")
    await bench.time.advance(ERROR_GAP_S)
    with pytest.raises(ReplyClosedError):
        await failing
    assert not any(isinstance(message, InferenceError) for message in bench.sent)


@pytest.mark.parametrize("letter", ["x", "é"])
async def test_a_frame_over_the_limit_ends_the_job_and_not_the_connection(
    bench: Bench, letter: str
) -> None:
    bench.start_writing()
    await bench.reply.accepted()
    width = len(letter.encode())
    huge = EncryptedPayload(
        ephemeral_public_key="key", ciphertext=letter * (MAX_PROVIDER_FRAME // width)
    )
    with pytest.raises(FrameOverLimitError):
        await bench.reply.chunk(huge, USAGE)
    last = bench.sent[-1]
    assert isinstance(last, InferenceError)
    assert last.status_code == 500
    assert bench.ended == 1


async def test_a_frame_just_under_the_limit_is_sent(bench: Bench) -> None:
    bench.start_writing()
    await bench.reply.accepted()
    large = EncryptedPayload(
        ephemeral_public_key="key", ciphertext="x" * (MAX_PROVIDER_FRAME - 300)
    )
    await bench.reply.chunk(large, USAGE)
    await bench.reply.complete(USAGE)
    assert isinstance(bench.sent[1], InferenceResponseChunk)


@pytest.mark.parametrize(("asked", "sent"), [(404, 404), (200, 500), (0, 500), (600, 500)])
def test_an_error_carries_an_error_code_and_a_short_text(asked: int, sent: int) -> None:
    message = decode_from_provider(inference_error("job", "x" * 10_000, asked))
    assert isinstance(message, InferenceError)
    assert message.status_code == sent
    assert len(message.error) == ERROR_LENGTH
