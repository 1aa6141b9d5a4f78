"""What leaves first, who waits, and that nobody waits for ever."""

from __future__ import annotations

import asyncio

import pytest

from darkbloom_provider.link.outbox import (
    CONTROL_LIMIT,
    HIGH_WATER,
    LOW_WATER,
    Depth,
    Outbox,
    ReplyClosedError,
)
from support.manual_time import settle

BIG = "x" * HIGH_WATER


async def take(outbox: Outbox) -> str:
    """Write the next frame, as the writer does."""
    async with asyncio.timeout(5):
        frame = await outbox.next()
    outbox.sent(frame)
    return frame.text


async def test_control_frames_leave_before_every_jobs() -> None:
    outbox = Outbox()
    lane = outbox.open_lane("a")
    await lane.put("chunk 1")
    await lane.put("chunk 2")
    outbox.control("challenge answer")
    assert [await take(outbox) for _ in range(3)] == ["challenge answer", "chunk 1", "chunk 2"]


async def test_jobs_take_turns() -> None:
    outbox = Outbox()
    a, b, c = (outbox.open_lane(job) for job in "abc")
    for lane, texts in ((a, ["a1", "a2", "a3"]), (b, ["b1"]), (c, ["c1", "c2"])):
        for text in texts:
            await lane.put(text)
    assert [await take(outbox) for _ in range(6)] == ["a1", "b1", "c1", "a2", "c2", "a3"]


async def test_a_full_lane_makes_its_own_job_wait_and_no_other() -> None:
    outbox = Outbox()
    full, free = outbox.open_lane("full"), outbox.open_lane("free")
    await full.put(BIG)
    waiting = asyncio.create_task(full.put("more"))
    await settle()
    assert not waiting.done()
    await free.put("quick")
    assert [await take(outbox) for _ in range(2)] == [BIG, "quick"]
    await waiting
    assert await take(outbox) == "more"


async def test_a_lane_fills_again_only_from_the_low_water_mark() -> None:
    outbox = Outbox()
    lane = outbox.open_lane("a")
    pieces = 8
    for _ in range(pieces):
        await lane.put("x" * (HIGH_WATER // pieces))
    waiting = asyncio.create_task(lane.put("more"))
    while lane.characters - HIGH_WATER // pieces > LOW_WATER:
        await take(outbox)
        await settle()
        assert not waiting.done()
    await take(outbox)
    await waiting


async def test_a_job_cancelled_while_waiting_for_room_has_queued_nothing() -> None:
    outbox = Outbox()
    lane = outbox.open_lane("a")
    await lane.put(BIG)
    waiting = asyncio.create_task(lane.put("never"))
    await settle()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert await take(outbox) == BIG
    assert outbox.depth.job_frames == 0


async def test_flushed_returns_when_the_last_frame_has_been_written() -> None:
    outbox = Outbox()
    lane = outbox.open_lane("a")
    lane.put_last("the end")
    lane_flushed = asyncio.create_task(lane.flushed())
    all_flushed = asyncio.create_task(outbox.flushed())
    frame = await outbox.next()
    await settle()
    assert not lane_flushed.done()
    assert not all_flushed.done()
    outbox.sent(frame)
    await asyncio.gather(lane_flushed, all_flushed)


async def test_closing_a_lane_drops_its_frames_and_wakes_its_job() -> None:
    outbox = Outbox()
    lane, other = outbox.open_lane("a"), outbox.open_lane("b")
    outbox.control("accepted a", job="a")
    outbox.control("heartbeat")
    await lane.put(BIG)
    await other.put("b1")
    waiting = asyncio.create_task(lane.put("more"))
    flushing = asyncio.create_task(lane.flushed())
    await settle()
    outbox.close_lane("a", "cancelled")
    for task in (waiting, flushing):
        with pytest.raises(ReplyClosedError, match="cancelled"):
            await task
    with pytest.raises(ReplyClosedError):
        lane.put_last("the end")
    assert [await take(outbox) for _ in range(2)] == ["heartbeat", "b1"]


async def test_closing_a_lane_twice_or_an_unknown_one_is_fine() -> None:
    outbox = Outbox()
    outbox.open_lane("a")
    outbox.close_lane("a", "first")
    outbox.close_lane("a", "second")
    await outbox.flushed()


async def test_a_frame_in_flight_may_land_after_its_lane_is_closed() -> None:
    outbox = Outbox()
    lane = outbox.open_lane("a")
    await lane.put("chunk")
    frame = await outbox.next()
    outbox.close_lane("a", "cancelled")
    outbox.sent(frame)
    await outbox.flushed()


async def test_closing_wakes_everyone() -> None:
    outbox = Outbox()
    lane = outbox.open_lane("a")
    await lane.put(BIG)
    putting = asyncio.create_task(lane.put("more"))
    flushing = asyncio.create_task(lane.flushed())
    await settle()
    outbox.close("the connection is gone")
    outbox.close("twice")
    for task in (putting, flushing):
        with pytest.raises(ReplyClosedError, match="the connection is gone"):
            await task
    await outbox.flushed()
    with pytest.raises(ReplyClosedError):
        outbox.control("late")
    with pytest.raises(ReplyClosedError):
        outbox.open_lane("b")


async def test_closing_wakes_an_idle_writer() -> None:
    outbox = Outbox()
    writing = asyncio.create_task(outbox.next())
    await settle()
    outbox.close("the connection is gone")
    with pytest.raises(ReplyClosedError, match="the connection is gone"):
        await writing


async def test_a_peer_that_reads_nothing_cannot_fill_memory_with_control_frames() -> None:
    outbox = Outbox()
    for _ in range(CONTROL_LIMIT):
        outbox.control("answer")
    with pytest.raises(ReplyClosedError, match="stopped reading"):
        outbox.control("one more")
    assert outbox.depth == Depth(control_frames=0, jobs=0, job_frames=0, job_characters=0)


async def test_the_depth_counts_what_waits() -> None:
    outbox = Outbox()
    lane = outbox.open_lane("a")
    outbox.open_lane("idle")
    await lane.put("12345")
    outbox.control("beat")
    assert outbox.depth == Depth(control_frames=1, jobs=2, job_frames=1, job_characters=5)
    outbox.release_lane("idle")
    assert outbox.depth.jobs == 1
