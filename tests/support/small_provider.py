"""A provider from its websocket to its jobs, in this process, around an engine of the test's."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from darkbloom_provider.daemon.answers import Answers
from darkbloom_provider.daemon.jobs import JobRunner
from darkbloom_provider.daemon.tally import Tally
from darkbloom_provider.daemon.terms import Inference, Offer, Terms
from darkbloom_provider.link.clock import waking_clock
from darkbloom_provider.link.coordinator_link import CoordinatorLink
from darkbloom_provider.link.session import Timings
from darkbloom_provider.link.socket import SocketLimits
from darkbloom_provider.link.state import LinkState
from darkbloom_provider.protocol.boxes import KeyPair
from darkbloom_provider.protocol.messages import (
    AttestationChallenge,
    AttestationResponse,
    Heartbeat,
    HeartbeatStats,
    Register,
)
from darkbloom_provider.protocol.money import DEFAULT_PRICE
from support.daemon_parts import NOW, FakeBooks, nothing_to_prepare
from support.scripted_provider import MODEL, honest, registration

State = Callable[[LinkState], bool]


@dataclass
class SmallFacts:
    """Says of itself what any coordinator without a trust floor routes to."""

    keys: KeyPair
    jobs: Callable[[], int]
    changes: Mapping[str, Any] = field(default_factory=dict)

    def registration(self) -> tuple[Register, str | None]:
        """A registration without an attestation."""
        return registration(self.keys, **self.changes), None

    def heartbeat(self) -> Heartbeat:
        """How many requests were served."""
        return Heartbeat(status="idle", stats=HeartbeatStats(requests_served=self.jobs()))

    def answer(self, challenge: AttestationChallenge) -> AttestationResponse:
        """As a machine without a Secure Enclave answers."""
        answer = honest(self.keys)(challenge)
        assert answer is not None
        return answer


@dataclass
class SmallProvider:
    """A link with jobs behind it."""

    link: CoordinatorLink
    runner: JobRunner
    books: FakeBooks
    keys: KeyPair
    states: list[LinkState] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, wanted: State) -> LinkState:
        """Wait for a state of the link, from now on."""
        async with asyncio.timeout(20):
            while not wanted(self.link.state):
                self.changed.clear()
                await self.changed.wait()
        return self.link.state


@asynccontextmanager
async def small_provider(
    url: str,
    engine: Inference,
    *,
    clock: Callable[[], float] = waking_clock,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    chance: Callable[[], float] = lambda: 0.5,
    timings: Timings | None = None,
    limits: SocketLimits | None = None,
    flush_seconds: float = 0.0,
    **register: Any,
) -> AsyncIterator[SmallProvider]:
    """Runs until the block ends; whatever runs then is cut. `register` changes what it says."""
    keys, books, tally = KeyPair.generate(), FakeBooks(), Tally()
    terms = Terms(
        key_pair=keys,
        price=lambda _model: DEFAULT_PRICE,
        linked=lambda: False,
        now=lambda: NOW,
        flush_seconds=flush_seconds,
        chunks_per_second=math.inf,
    )
    offer = Offer(models=lambda: (MODEL,), prepare=nothing_to_prepare)
    states: list[LinkState] = []
    changed = asyncio.Event()

    def note(state: LinkState) -> None:
        states.append(state)
        changed.set()

    async with asyncio.TaskGroup() as tasks:
        runner = JobRunner(
            Answers(engine, offer, tally, tasks, terms.now), books, terms, tally, tasks
        )
        link = CoordinatorLink(
            url=url,
            facts=SmallFacts(keys, lambda: runner.counts().served, register),
            jobs=runner,
            clock=clock,
            random=chance,
            on_state=note,
            sleep=sleep,
            timings=timings,
            limits=limits,
        )
        running = tasks.create_task(link.run(), name="link under test")
        try:
            yield SmallProvider(link, runner, books, keys, states, changed)
        finally:
            running.cancel()
            runner.abort_all("the test is over")
