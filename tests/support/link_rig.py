"""A link under test, with its own time, facts and jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from darkbloom_provider.link.coordinator_link import CoordinatorLink
from darkbloom_provider.link.reply import Reply
from darkbloom_provider.link.socket import SocketLimits
from darkbloom_provider.link.state import LinkState, Phase
from darkbloom_provider.protocol.messages import (
    AttestationChallenge,
    AttestationResponse,
    Heartbeat,
    InferenceRequest,
    ModelInfo,
    Register,
)
from support.manual_time import ManualTime
from support.scripted_coordinator import Peer, ScriptedCoordinator

Start = Callable[..., "Rig"]
"""Starts a link to an address, with socket limits by name."""
ATTESTATION = '{"attestation":{"b":1, "a":2},"signature":"MEUC"}'
"""Raw text whose spelling must survive."""


@dataclass
class Facts:
    """What the machine says in these tests."""

    models: tuple[ModelInfo, ...] = (ModelInfo(id="model"),)
    attestation: str | None = None
    fault: Exception | None = None

    def registration(self) -> tuple[Register, str | None]:
        """A small registration."""
        if self.fault is not None:
            raise self.fault
        token = "eigeninference-pt-0123456789abcdef"
        return Register(models=self.models, public_key="key", auth_token=token), self.attestation

    def heartbeat(self) -> Heartbeat:
        """An idle heartbeat."""
        return Heartbeat(status="idle")

    def answer(self, challenge: AttestationChallenge) -> AttestationResponse:
        """An answer that echoes the nonce."""
        return AttestationResponse(nonce=challenge.nonce, signature="MEUC", public_key="key")


@dataclass
class Jobs:
    """Takes requests and lets the test play the job."""

    cancelled: list[str] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    fault: Exception | None = None
    started: asyncio.Queue[Reply] = field(default_factory=asyncio.Queue)

    def start(self, request: InferenceRequest, reply: Reply) -> None:
        """Keep the reply for the test."""
        if self.fault is not None:
            raise self.fault
        assert request.request_id == reply.request_id
        self.started.put_nowait(reply)

    def cancel(self, request_id: str) -> None:
        """Note it."""
        self.cancelled.append(request_id)

    def abort_all(self, cause: str) -> None:
        """Note it."""
        self.aborted.append(cause)


class Rig:
    """A running link."""

    def __init__(self, url: str, limits: SocketLimits) -> None:
        self.time = ManualTime()
        self.skew = 0.0
        """By how much the clock was set: what it shows, not how fast time passes."""
        self.facts = Facts()
        self.jobs = Jobs()
        self.chance = 0.5
        self.states: list[LinkState] = []
        self._changed = asyncio.Event()
        self.link = CoordinatorLink(
            url=url,
            facts=self.facts,
            jobs=self.jobs,
            clock=lambda: self.time.clock() + self.skew,
            random=lambda: self.chance,
            on_state=self._note,
            sleep=self.time.sleep,
            limits=limits,
        )
        self.run = asyncio.create_task(self.link.run(), name="link under test")

    def _note(self, state: LinkState) -> None:
        self.states.append(state)
        self._changed.set()

    async def until(self, wanted: Callable[[LinkState], bool]) -> LinkState:
        """Wait for a state of the link, from now on."""
        async with asyncio.timeout(10):
            while not wanted(self.link.state):
                self._changed.clear()
                await self._changed.wait()
        return self.link.state

    async def phase(self, phase: Phase) -> LinkState:
        """Wait for a phase, from now on."""
        return await self.until(lambda state: state.phase is phase)

    async def failed(self, attempts: int) -> LinkState:
        """Wait until so many attempts in a row have failed and it waits for the next."""
        return await self.until(lambda s: s.retry_at is not None and s.attempts == attempts)

    async def stop(self) -> None:
        """Cancel the link and wait for its end."""
        self.run.cancel()
        await asyncio.wait([self.run])


async def registered(start: Start, coordinator: ScriptedCoordinator) -> tuple[Rig, Peer]:
    """A link that the coordinator has accepted."""
    rig = start(coordinator.url)
    peer = await coordinator.next_peer()
    await peer.accept()
    await rig.phase(Phase.REGISTERED)
    return rig, peer


async def a_job(rig: Rig, peer: Peer, request_id: str = "job") -> Reply:
    """A request that the link has handed to its jobs."""
    await peer.say(InferenceRequest(request_id=request_id))
    return await rig.jobs.started.get()
