"""A thousand connections that come to nothing, each in its own way."""

from __future__ import annotations

import asyncio
import gc
import random
import tracemalloc
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import psutil
import pytest

from darkbloom_provider.link.coordinator_link import CoordinatorLink
from darkbloom_provider.link.state import LinkState, Phase
from darkbloom_provider.protocol.messages import AttestationChallenge, Register
from support.link_rig import Facts, Jobs
from support.manual_time import ManualTime, settle
from support.rude_server import RudeConnection, rude_server

FLAPS = 1000
TOKEN = "eigeninference-pt-0123456789abcdef"
CHALLENGE = AttestationChallenge(nonce="nonce", timestamp="2026-01-02T03:04:05Z")
HTML = "<!doctype html><html><body>Please log in to the hotel's network</body></html>"


@dataclass
class Flap:
    """One way for a connection to fail."""

    treat: Callable[[RudeConnection], Awaitable[None]]
    registers: int = 0
    """Registrations that are to arrive."""
    least_s: float = 0.0
    """What `Retry-After` asked for."""
    refused: bool = False
    """It is for the owner to settle: tried again after a quarter of an hour."""
    passes: float = 0.0
    """Seconds that must pass for it to fail."""
    told: str = ""
    """A word of what the owner is told."""


async def _close_at_once(c: RudeConnection) -> None:
    c.upgrade()
    await c.close()


async def _close_after_the_registration(c: RudeConnection) -> None:
    c.upgrade()
    await c.hear(2)
    await c.close(1011, "restarting")


async def _close_after_the_challenge(c: RudeConnection) -> None:
    c.upgrade()
    await c.hear(2)
    c.say(CHALLENGE)
    await c.hear(1)
    await c.close(1001, "going away")


async def _end_without_a_word(c: RudeConnection) -> None:
    c.upgrade()
    await c.hear(2)
    await c.hang_up()


async def _reset_before_the_answer(c: RudeConnection) -> None:
    c.reset()


async def _reset_after_the_registration(c: RudeConnection) -> None:
    c.upgrade()
    await c.hear(2)
    c.reset()


async def _stall(c: RudeConnection) -> None:
    c.upgrade()
    await c.hear(99)


async def _half_a_frame(c: RudeConnection) -> None:
    c.upgrade()
    await c.hear(2)
    c.write(b"\x81\x7e\x01\x00" + b'{"type":"attestation_chall')  # 256 bytes were announced
    await c.hang_up()


async def _half_a_response(c: RudeConnection) -> None:
    c.write(b"HTTP/1.1 101 Switching Prot")
    await c.hang_up()


async def _a_page(c: RudeConnection) -> None:
    await c.respond(200, HTML, Content_Type="text/html")


def _http(status: int, **headers: str) -> Callable[[RudeConnection], Awaitable[None]]:
    async def respond(c: RudeConnection) -> None:
        await c.respond(status, "<html>sorry</html>", Content_Type="text/html", **headers)

    return respond


async def _never(_: RudeConnection) -> None:
    raise AssertionError("nobody listens")


REFUSE_THE_CONNECTION = Flap(_never, told="cannot be reached")
FLAPS_BY_NAME: dict[str, Flap] = {
    "closes at once": Flap(_close_at_once, told="ended"),
    "closes after the registration": Flap(_close_after_the_registration, 1, told="ended"),
    "closes after the challenge": Flap(_close_after_the_challenge, 1, told="ended"),
    "ends without a word": Flap(_end_without_a_word, 1, told="ended"),
    "resets before the answer": Flap(_reset_before_the_answer, told="cannot be reached"),
    "resets after the registration": Flap(_reset_after_the_registration, 1, told="ended"),
    "stalls": Flap(_stall, 1, passes=16, told="did not accept the registration"),
    "sends half a frame": Flap(_half_a_frame, 1, told="ended"),
    "sends half a response": Flap(_half_a_response, told="cannot be reached"),
    "answers with a page": Flap(_a_page, told="not a coordinator"),
    "401": Flap(_http(401), refused=True, told="refuses this machine"),
    "403": Flap(_http(403), refused=True, told="refuses this machine"),
    "426": Flap(_http(426), refused=True, told="refuses this version"),
    "429": Flap(_http(429, Retry_After="47"), least_s=47, told="cannot take the connection"),
    "500": Flap(_http(500), told="cannot take the connection"),
    "redirects": Flap(_http(302), told="redirects elsewhere"),
    "refuses the connection": REFUSE_THE_CONNECTION,
}


def expected_delay(flap: Flap, attempts: int, chance: float) -> float:
    """The policy in its own words: full jitter up to 30 s, 15 min give or take a quarter."""
    if flap.refused:
        return 900 * (0.75 + chance / 2)
    return max(flap.least_s, chance * min(30.0, 2.0 ** min(attempts, 20)))


@dataclass
class Flapping:
    """A link, the server it dials, and what came of each connection."""

    link: CoordinatorLink
    time: ManualTime
    chances: deque[float]
    """The latest of the dice."""
    flap: Flap = field(default_factory=lambda: REFUSE_THE_CONNECTION)
    connections: list[RudeConnection] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, wanted: Callable[[LinkState], bool]) -> LinkState:
        async with asyncio.timeout(60):
            while not wanted(self.link.state):
                self.changed.clear()
                await self.changed.wait()
        return self.link.state

    async def treat(self, connection: RudeConnection) -> None:
        self.connections.append(connection)
        await self.flap.treat(connection)

    async def failed(self, attempts: int) -> LinkState:
        """The state after so many failures in a row, letting the seconds pass that it takes."""
        if self.flap.passes:
            await self.until(lambda s: s.phase is Phase.CONNECTING)
            while not (self.connections and len(self.connections[0].heard) >= 2):
                await settle()
            await self.time.advance(self.flap.passes)
        return await self.until(lambda s: s.retry_at is not None and s.attempts == attempts)


@asynccontextmanager
async def flapping(seed: int, port: int) -> AsyncIterator[Flapping]:
    """A link that dials `port` on this machine."""
    time, dice, changed = ManualTime(), random.Random(seed), asyncio.Event()
    chances: deque[float] = deque(maxlen=1)

    def chance() -> float:
        chances.append(dice.random())
        return chances[-1]

    link = CoordinatorLink(
        url=f"ws://127.0.0.1:{port}/ws/provider",
        facts=Facts(),
        jobs=Jobs(),
        clock=time.clock,
        random=chance,
        on_state=lambda _: changed.set(),
        sleep=time.sleep,
    )
    running = asyncio.create_task(link.run(), name="link under test")
    try:
        yield Flapping(link, time, chances, changed=changed)
    finally:
        running.cancel()
        await asyncio.wait([running])


@pytest.mark.timeout(300)
async def test_a_thousand_flaps_leave_nothing_behind_and_wait_as_the_policy_says() -> None:
    elsewhere: list[RudeConnection] = []

    async def note(connection: RudeConnection) -> None:
        elsewhere.append(connection)

    names = list(FLAPS_BY_NAME)
    order = [names[n % len(names)] for n in range(FLAPS)]
    random.Random(7).shuffle(order)
    sizes: list[Footprint] = []
    async with rude_server(note) as other_port:
        FLAPS_BY_NAME["redirects"].treat = _http(
            302, Location=f"ws://127.0.0.1:{other_port}/ws/provider"
        )
        async with rude_server(note) as probe:
            port = probe  # free again in a moment
        tracemalloc.start()
        async with flapping(seed=11, port=port) as f:
            for attempt, name in enumerate(order, start=1):
                f.flap = flap = FLAPS_BY_NAME[name]
                f.connections.clear()
                if flap is REFUSE_THE_CONNECTION:
                    await dial(f)
                    state = await f.failed(attempt)
                else:
                    async with rude_server(f.treat, port=port):
                        await dial(f)
                        state = await f.failed(attempt)
                waited = (state.retry_at or 0) - state.since
                due = expected_delay(flap, attempt - 1, f.chances[-1])
                assert waited == pytest.approx(due), (attempt, name)
                assert state.last_problem is not None
                assert flap.told in state.last_problem.what, (name, state.last_problem)
                assert state.phase is (Phase.REFUSED if flap.refused else Phase.WAITING)
                heard = Counter(type(m) for c in f.connections for m in c.heard)
                assert heard[Register] == flap.registers, name
                assert not any(TOKEN.encode() in c.request for c in f.connections)
                if attempt in {FLAPS // 5, FLAPS}:
                    sizes.append(footprint())
        tracemalloc.stop()
    assert elsewhere == []
    early, late = sizes
    # Python itself keeps some freed tuples for later, up to 2,000 of a size.
    assert late.bytes - early.bytes < 80 * (FLAPS - FLAPS // 5), "memory grew with every flap"
    assert (late.tasks, late.files) == (early.tasks, early.files)


async def dial(f: Flapping) -> None:
    """Let the wait pass that is under way, if any."""
    if (retry_at := f.link.state.retry_at) is not None:
        await f.time.advance(retry_at - f.time.now + 1e-6)


class Footprint(NamedTuple):
    """What this process holds."""

    bytes: int
    """Of Python's objects."""
    tasks: int
    files: int


def footprint() -> Footprint:
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    return Footprint(used, len(asyncio.all_tasks()), psutil.Process().num_fds())
