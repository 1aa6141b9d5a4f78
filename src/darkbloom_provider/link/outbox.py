"""What waits to leave on one connection: a control lane ahead of all, and one lane for each job.

Heartbeats, challenge answers and other control frames never wait behind a job's text. Jobs take
turns, one frame each. A job whose lane is full waits for room; the others do not notice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from darkbloom_provider.errors import DarkbloomError

HIGH_WATER: Final = 32 * 1024
"""Characters (frames are almost pure ASCII) queued for one job at which its next frame waits."""
LOW_WATER: Final = 8 * 1024
"""Characters down to which the lane must empty before the job goes on."""
CONTROL_LIMIT: Final = 1024
"""Control frames at which the other side counts as no longer reading."""


class ReplyClosedError(DarkbloomError):
    """Nobody listens to this answer any more: it was cancelled, or the connection is gone."""

    def __init__(self, cause: str) -> None:
        super().__init__("The answer is no longer wanted", why=cause)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One message on its way out."""

    text: str
    job: str | None = None
    """The request it belongs to, if any."""
    lane: JobLane | None = None
    """The lane it queued in; None is the control lane."""
    on_sent: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Depth:
    """How much waits."""

    control_frames: int
    jobs: int
    job_frames: int
    job_characters: int


class JobLane:
    """One job's queue. Bounded: at most `HIGH_WATER` characters and one more frame."""

    def __init__(self, job: str, ready: Callable[[JobLane], None]) -> None:
        self.job = job
        self._ready = ready
        self._frames: deque[Frame] = deque()
        self._characters = 0
        self._unsent = 0
        self._room = asyncio.Event()
        self._room.set()
        self._flushed = asyncio.Event()
        self._flushed.set()
        self._closed_for: str | None = None

    @property
    def frames(self) -> int:
        """Frames that wait."""
        return len(self._frames)

    @property
    def characters(self) -> int:
        """Characters that wait."""
        return self._characters

    async def put(self, text: str) -> None:
        """Queue a frame, waiting for room first. Cancelled while waiting, nothing was queued.

        Raises:
            ReplyClosedError: The lane is or becomes closed.
        """
        while not self._room.is_set() and self._closed_for is None:
            await self._room.wait()
        self.put_last(text)

    def put_last(self, text: str, on_sent: Callable[[], None] | None = None) -> None:
        """Queue a frame without waiting for room: the one that ends the job.

        Raises:
            ReplyClosedError: The lane is closed.
        """
        self._check_open()
        self._frames.append(Frame(text, self.job, self, on_sent))
        self._characters += len(text)
        self._unsent += 1
        self._flushed.clear()
        if self._characters >= HIGH_WATER:
            self._room.clear()
        if len(self._frames) == 1:
            self._ready(self)

    async def flushed(self) -> None:
        """Wait until every frame queued here has been written to the socket.

        Raises:
            ReplyClosedError: The lane is or becomes closed.
        """
        await self._flushed.wait()
        self._check_open()

    def take(self) -> Frame:
        """The oldest frame, for the writer; `sent` must follow."""
        frame = self._frames.popleft()
        self._characters -= len(frame.text)
        if self._characters <= LOW_WATER:
            self._room.set()
        return frame

    def sent(self) -> None:
        """One frame taken before has been written."""
        self._unsent -= 1
        if not self._unsent:
            self._flushed.set()

    def close(self, cause: str) -> None:
        """Drop what waits and wake whoever waits with `ReplyClosedError`. May be repeated."""
        if self._closed_for is None:
            self._closed_for = cause
        self._frames.clear()
        self._characters = 0
        self._room.set()
        self._flushed.set()

    def _check_open(self) -> None:
        if self._closed_for is not None:
            raise ReplyClosedError(self._closed_for)


class Outbox:
    """All lanes of one connection. One writer takes from it with `next` and reports `sent`."""

    def __init__(self) -> None:
        self._control: deque[Frame] = deque()
        self._lanes: dict[str, JobLane] = {}
        self._turns: deque[JobLane] = deque()
        """Lanes with something to send, each once, in the order of their turns."""
        self._in_flight = 0
        self._ready = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed_for: str | None = None

    def control(
        self, text: str, *, job: str | None = None, on_sent: Callable[[], None] | None = None
    ) -> None:
        """Queue a frame ahead of every job's.

        Raises:
            ReplyClosedError: The outbox is closed, or closes now because the lane is full.
        """
        if self._closed_for is None and len(self._control) >= CONTROL_LIMIT:
            self.close("the coordinator stopped reading")
        self._check_open()
        self._control.append(Frame(text, job=job, on_sent=on_sent))
        self._wake()

    def open_lane(self, job: str) -> JobLane:
        """A fresh lane for a job.

        Raises:
            ReplyClosedError: The outbox is closed.
        """
        self._check_open()
        lane = JobLane(job, self._lane_ready)
        self._lanes[job] = lane
        return lane

    def release_lane(self, job: str) -> None:
        """Forget the lane of a job whose last frame has been sent."""
        self._lanes.pop(job, None)

    def close_lane(self, job: str, cause: str) -> None:
        """Drop everything that waits for `job`, in both lanes. Unknown jobs are fine."""
        if (lane := self._lanes.pop(job, None)) is not None:
            lane.close(cause)
            if lane in self._turns:
                self._turns.remove(lane)
        if any(frame.job == job for frame in self._control):
            self._control = deque(frame for frame in self._control if frame.job != job)
        self._settle()

    async def next(self) -> Frame:
        """The frame to send now; waits for one.

        Raises:
            ReplyClosedError: The outbox is closed.
        """
        while True:
            self._check_open()
            if (frame := self._take()) is not None:
                self._in_flight += 1
                return frame
            self._ready.clear()
            await self._ready.wait()

    def sent(self, frame: Frame) -> None:
        """`frame` has been written to the socket."""
        self._in_flight -= 1
        if frame.lane is not None:
            frame.lane.sent()
        self._settle()
        if frame.on_sent is not None:
            frame.on_sent()

    async def flushed(self) -> None:
        """Wait until nothing waits and nothing is being written, or the outbox is closed."""
        await self._idle.wait()

    def close(self, cause: str) -> None:
        """Drop everything and wake whoever waits with `ReplyClosedError`. May be repeated."""
        if self._closed_for is None:
            self._closed_for = cause
        self._control.clear()
        self._turns.clear()
        for lane in self._lanes.values():
            lane.close(self._closed_for)
        self._lanes.clear()
        self._ready.set()
        self._idle.set()

    @property
    def depth(self) -> Depth:
        """How much waits now."""
        lanes = self._lanes.values()
        return Depth(
            control_frames=len(self._control),
            jobs=len(lanes),
            job_frames=sum(lane.frames for lane in lanes),
            job_characters=sum(lane.characters for lane in lanes),
        )

    def _take(self) -> Frame | None:
        if self._control:
            return self._control.popleft()
        if not self._turns:
            return None
        lane = self._turns.popleft()
        frame = lane.take()
        if lane.frames:
            self._turns.append(lane)
        return frame

    def _lane_ready(self, lane: JobLane) -> None:
        self._turns.append(lane)
        self._wake()

    def _wake(self) -> None:
        self._idle.clear()
        self._ready.set()

    def _settle(self) -> None:
        if not self._control and not self._turns and not self._in_flight:
            self._idle.set()

    def _check_open(self) -> None:
        if self._closed_for is not None:
            raise ReplyClosedError(self._closed_for)
