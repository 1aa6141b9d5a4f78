"""A challenge is answered whatever the engine, the jobs and the line are doing.

The clock stands still in here and nothing sleeps: an answer that is there was waited for by nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from darkbloom_provider.daemon.facts import Machine, ProviderFacts
from darkbloom_provider.engine.requests import EngineSnapshot
from darkbloom_provider.host.posture import Posture
from darkbloom_provider.link.connection import Connection
from darkbloom_provider.link.session import Timings
from darkbloom_provider.link.socket import SocketLimits
from darkbloom_provider.protocol.messages import (
    AttestationChallenge,
    AttestationResponse,
    Hardware,
    InferenceAccepted,
    InferenceError,
    InferenceRequest,
    InferenceResponseChunk,
    ModelInfo,
    PrivacyCapabilities,
)
from support.daemon_parts import MODEL, Desk, FakeEngine, chat, desk
from support.manual_time import ManualTime, settle
from support.piped_socket import PipedSocket

SLOTS = 8
MACHINE = Machine(
    hardware=Hardware(memory_gb=128), posture=Posture(), wallet_address="0x1", machine_id="0" * 32
)


class Busy:
    """A daemon whose engine may not be asked anything while `stuck`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.stuck = False
        self.counts = desk.runner.counts

    def models(self) -> tuple[ModelInfo, ...]:
        return (ModelInfo(id=MODEL),)

    def warm(self) -> tuple[str, ...]:
        return (MODEL,)

    def token(self) -> None:
        return None

    def engine(self) -> EngineSnapshot:
        assert not self.stuck, "the engine was asked"
        return EngineSnapshot()

    def capabilities(self) -> PrivacyCapabilities:
        return PrivacyCapabilities()


@dataclass
class Rig:
    """A connection between a real job runner and a line of the test's."""

    desk: Desk
    socket: PipedSocket
    busy: Busy

    def sent(self, kind: type) -> list[object]:
        return [message for message in self.socket.sent if isinstance(message, kind)]

    async def occupy_all_slots(self, **body: object) -> None:
        for number in range(SLOTS):
            box = self.desk.sealed(chat(stream=True, **body))
            self.socket.say(InferenceRequest(request_id=f"job-{number}", encrypted_body=box))
        await settle()
        assert self.desk.runner.counts().in_flight == SLOTS

    async def hold_up_the_line(self) -> None:
        """Whatever is sent from now on waits."""
        self.socket.open.clear()
        await settle()

    async def fill_every_lane(self) -> None:
        for _ in range(20):
            await settle()

    def chunks_before(self, kind: type, *, last: bool = False) -> int:
        """Chunks that left before the first message of a kind, or before the last of them."""
        places = [n for n, message in enumerate(self.socket.sent) if isinstance(message, kind)]
        before = self.socket.sent[: places[-1 if last else 0]]
        return sum(isinstance(message, InferenceResponseChunk) for message in before)

    async def challenge(self, nonce: str) -> None:
        self.socket.say(AttestationChallenge(nonce=nonce, timestamp="2026-01-02T03:04:05Z"))
        await settle()


@asynccontextmanager
async def rig(engine: FakeEngine) -> AsyncIterator[Rig]:
    async with desk(engine, max_jobs=SLOTS) as d:
        busy, socket, time = Busy(d), PipedSocket(), ManualTime()
        facts = ProviderFacts(MACHINE, busy, version="1", public_key=d.keys.public_text)
        connection = Connection(
            socket,  # type: ignore[arg-type]  # what a connection needs of a socket
            facts=facts,
            jobs=d.runner,
            clock=time.clock,
            sleep=time.sleep,
            timings=Timings(),
            limits=SocketLimits(close_timeout_s=5),
            changed=lambda: None,
        )
        holding = asyncio.create_task(connection.hold())
        await settle()
        try:
            yield Rig(d, socket, busy)
        finally:
            socket.open.set()
            socket.hang_up()
            await holding


async def test_a_challenge_never_waits_for_the_engine() -> None:
    async with rig(FakeEngine(gate=asyncio.Event())) as r:
        await r.occupy_all_slots()
        r.busy.stuck = True
        await r.challenge("all slots busy")
        (answer,) = r.sent(AttestationResponse)
        assert isinstance(answer, AttestationResponse)
        assert answer.nonce == "all slots busy"
        assert r.sent(InferenceResponseChunk) == []
        r.busy.stuck = False


async def test_a_challenge_is_the_next_frame_on_a_line_that_is_held_up_by_chunks() -> None:
    async with rig(FakeEngine(*["word " * 2000] * 50)) as r:
        await r.hold_up_the_line()
        await r.occupy_all_slots()
        await r.fill_every_lane()
        await r.challenge("behind nobody")
        r.socket.open.set()
        await r.fill_every_lane()
        assert r.chunks_before(AttestationResponse) == 0


async def test_requests_beyond_the_slots_are_refused_and_challenges_still_answered() -> None:
    async with rig(FakeEngine(gate=asyncio.Event())) as r:
        await r.occupy_all_slots()
        for number in range(20):
            r.socket.say(InferenceRequest(request_id=f"more-{number}"))
        await r.challenge("in a flood")
        assert len(r.sent(AttestationResponse)) == 1
        assert all(e.status_code == 503 for e in r.sent(InferenceError))  # type: ignore[attr-defined]


async def test_requests_are_accepted_at_once_however_long_their_model_takes() -> None:
    loading = asyncio.Event()

    async def prepare(_model: str) -> None:
        await loading.wait()

    async with desk(prepare=prepare) as d:
        reply = d.send(chat())
        await settle()
        assert (reply.accepts, reply.texts, d.engine.requests) == (1, [], [])
        loading.set()
        await reply.over.wait()


async def test_an_acceptance_overtakes_what_other_jobs_have_queued() -> None:
    async with rig(FakeEngine(*["word " * 2000] * 50)) as r:
        await r.hold_up_the_line()
        await r.occupy_all_slots()
        await r.fill_every_lane()
        r.socket.open.set()
        await r.fill_every_lane()
        assert len(r.sent(InferenceAccepted)) == SLOTS
        assert r.sent(InferenceResponseChunk)
        assert r.chunks_before(InferenceAccepted, last=True) == 0
