"""Lines that are slow, stuck or dead without saying so, from the engine to the wire."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from darkbloom_provider.engine.requests import Delta
from darkbloom_provider.link.socket import SocketLimits
from darkbloom_provider.link.state import Phase
from darkbloom_provider.protocol.boxes import Channel, KeyPair
from darkbloom_provider.protocol.messages import (
    AttestationChallenge,
    AttestationResponse,
    Heartbeat,
    InferenceAccepted,
    InferenceComplete,
    InferenceResponseChunk,
    ProviderMessage,
    Register,
)
from support.daemon_parts import FakeEngine
from support.manual_time import ManualTime, settle
from support.rude_server import RudeConnection, rude_server
from support.scripted_coordinator import scripted_coordinator
from support.sealed_requests import request_for
from support.silent_proxy import silent_proxy
from support.small_provider import SmallProvider, small_provider

PIECE = "x" * 1000
PIECES = 4000
"""Four megabytes of text: more than any buffer on the way may take."""
BUFFERS = 500_000
"""Bytes that the line, both systems and this program may hold together; see the test."""


class CountingEngine(FakeEngine):
    """Counts the pieces that were taken from it."""

    def __init__(self, pieces: int) -> None:
        super().__init__(*(Delta(PIECE, n) for n in range(1, pieces + 1)))

    @property
    def taken(self) -> int:
        return self.generations[0].usage.completion_tokens if self.generations else 0


def text_of(heard: list[ProviderMessage], session: KeyPair, provider_key: str) -> str:
    """The answer that the chunks carry."""
    channel, text = Channel(session, provider_key), ""
    for message in heard:
        if isinstance(message, InferenceResponseChunk):
            assert message.encrypted_data is not None
            event = channel.open(message.encrypted_data.ciphertext).decode()
            choices: list[dict[str, Any]] = json.loads(event.removeprefix("data: "))["choices"]
            text += "".join(choice["delta"].get("content", "") for choice in choices)
    return text


async def test_a_reader_of_one_byte_a_second_slows_the_job_and_nothing_else() -> None:
    """Sixty seconds at a byte a second, then the line is mended.

    The generation stands still, memory is bounded, no heartbeat piles up; and afterwards the
    heartbeat and the answer to a challenge leave ahead of megabytes of the answer.
    """
    line: asyncio.Queue[RudeConnection] = asyncio.Queue()

    async def take(connection: RudeConnection) -> None:
        line.put_nowait(connection)
        await over.wait()
        await connection.hang_up()

    over, time, engine, session = (
        asyncio.Event(),
        ManualTime(),
        CountingEngine(PIECES),
        KeyPair.generate(),
    )
    async with (
        rude_server(take, receive_buffer=4096) as port,
        small_provider(
            f"ws://127.0.0.1:{port}/ws/provider", engine, clock=time.clock, sleep=time.sleep
        ) as provider,
    ):
        coordinator = await line.get()
        coordinator.upgrade()
        await coordinator.hear(2)
        coordinator.say(AttestationChallenge(nonce="first", timestamp="t"))
        await coordinator.hear(1)
        coordinator.say(request_for(provider.keys.public_text, session, "job"))
        await stands_still(engine)

        taken, drops = engine.taken, []
        for _ in range(60):
            drops.append(await coordinator.read(1))
            await time.advance(1)
            assert provider.link.depth.control_frames <= 1
        assert provider.link.state.phase is Phase.REGISTERED
        assert engine.taken - taken <= 1, "the generation went on"
        assert engine.taken * len(PIECE) < BUFFERS, "too much was generated for a line like this"
        assert provider.link.depth.job_characters < 3 * 32 * 1024

        coordinator.say(AttestationChallenge(nonce="while stuck", timestamp="t"))
        await until_queued(provider, 2)
        coordinator.feed(b"".join(drops))
        heard = await coordinator.hear(taken + 3)  # the backlog of buffers, and what overtakes it
        answered = next(n for n, m in enumerate(heard) if isinstance(m, AttestationResponse))
        chunks_before = sum(isinstance(m, InferenceResponseChunk) for m in heard[:answered])
        assert chunks_before * len(PIECE) < BUFFERS
        assert any(isinstance(m, Heartbeat) for m in heard[: answered + 1])
        while not isinstance(coordinator.heard[-1], InferenceComplete):
            await coordinator.hear(1)
        text = text_of(coordinator.heard, session, provider.keys.public_text)
        assert text == PIECE * PIECES
        over.set()


async def test_a_line_that_swallows_everything_is_left_and_the_work_on_it_let_go() -> None:
    """Half-open TCP: the other side is gone, and this side's system does not know.

    Only pings can tell, and those take real time.
    """
    engine, session, loud = CountingEngine(PIECES), KeyPair.generate(), ManualTime()
    quick = SocketLimits(ping_interval_s=0.05, ping_timeout_s=1.0, close_timeout_s=0.2)
    async with (
        scripted_coordinator() as coordinator,
        silent_proxy(coordinator.port) as proxy,
        small_provider(
            proxy.url, engine, clock=loud.clock, sleep=loud.sleep, limits=quick
        ) as provider,
    ):
        peer = await coordinator.next_peer()
        await peer.accept()
        engine.gate = asyncio.Event()
        await peer.say(request_for(provider.keys.public_text, session, "job"))
        await peer.expect(InferenceAccepted)
        proxy.mute()
        state = await provider.until(lambda s: s.phase is Phase.WAITING)
        assert state.last_problem is not None
        assert "went dead" in state.last_problem.what
        assert proxy.swallowed
        await provider.runner.idle()
        assert engine.generations[0].cancelled
        assert provider.runner.counts().cancelled == 1

        proxy.mend()
        await loud.advance(1)
        again = await coordinator.next_peer()
        await again.accept()
        await provider.until(lambda s: s.phase is Phase.REGISTERED)
        assert sum(isinstance(m, Register) for m in again.heard) == 1
        assert len(coordinator.requests) == 2


async def stands_still(engine: CountingEngine) -> None:
    """Wait until the engine's generation is not asked for more any longer."""
    seen, quiet = -1, 0
    async with asyncio.timeout(30):
        while quiet < 50 or not engine.taken:
            await settle()
            quiet = quiet + 1 if engine.taken == seen else 0
            seen = engine.taken


async def until_queued(provider: SmallProvider, frames: int) -> None:
    async with asyncio.timeout(10):
        while provider.link.depth.control_frames < frames:
            await settle()
