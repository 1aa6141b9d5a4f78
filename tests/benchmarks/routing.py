"""How long a coordinator with a thousand providers takes to choose one of them.

The registry that the hub asks, full of sessions with heartbeats that come all the time and requests
that come and go. The machines are alike, which is the worst case: all are near the best.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from benchmarks.figure import Figure, median_of, percentile
from benchmarks.scale import Scale
from darkbloom_provider.coordinator.providers.attempts import Attempt
from darkbloom_provider.coordinator.providers.hub import Hub
from darkbloom_provider.coordinator.providers.registry import Session, Wire
from darkbloom_provider.coordinator.routing.choice import Demand, InFlight
from darkbloom_provider.coordinator.settings import Settings
from darkbloom_provider.coordinator.sources import Sources
from darkbloom_provider.protocol.boxes import KeyPair
from darkbloom_provider.protocol.messages import (
    BackendCapacity,
    BackendSlot,
    Heartbeat,
    SystemMetrics,
)
from support.scripted_provider import MODEL, registration

OPEN_REQUESTS = 500
"""At any time, on some half of the machines."""
HEARTBEATS = 3
"""Between two decisions."""


def measure(scale: Scale) -> list[Figure]:
    """Milliseconds that 99 of 100 decisions do not exceed."""
    work = _Network(scale)
    seconds = median_of(lambda: percentile(work.decide(scale.decisions), 0.99), scale)
    return [Figure("coord.routing_p99_ms", 1e3 * seconds, "ms")]


class _Network:
    def __init__(self, scale: Scale) -> None:
        self._chance = random.Random(1)
        self._hub = Hub(Settings(state_directory=Path()), Sources())
        self._sessions = [self._session(number) for number in range(scale.sessions)]
        for session in self._sessions:
            self._hub.registry.add(session)
            self._beat(session)
        self._open: deque[tuple[Session, str]] = deque()
        self._numbers = itertools.count()

    def decide(self, decisions: int) -> list[float]:
        """Seconds of each decision."""
        return [self._one() for _ in range(decisions)]

    def _one(self) -> float:
        for session in self._chance.choices(self._sessions, k=HEARTBEATS):
            self._beat(session)
            self._hub.serve_waiting()
        demand = Demand(
            model=MODEL,
            prompt_tokens=self._chance.randrange(4_000),
            max_output_tokens=self._chance.choice((256, 1_024, 8_192)),
            size_gb=0.3,
        )
        start = time.perf_counter()
        chosen = self._hub.choose(demand)
        elapsed = time.perf_counter() - start
        if chosen is None:
            raise RuntimeError("nobody was chosen")
        self._give(chosen, demand)
        return elapsed

    def _give(self, session: Session, demand: Demand) -> None:
        job = str(next(self._numbers))
        load = InFlight(demand.model, demand.max_output_tokens)
        session.attempts[job] = cast("Attempt", _Working(load))
        self._open.append((session, job))
        if len(self._open) > OPEN_REQUESTS:
            other, done = self._open.popleft()
            other.attempts.end(done)

    def _session(self, number: int) -> Session:
        sources, register = self._hub.sources, registration(KeyPair.generate())
        return Session(
            id=f"session-{number}",
            wire=cast("Wire", SimpleNamespace()),
            version="",
            backend=register.backend,
            hardware=register.hardware,
            models=register.models,
            public_key=register.public_key,
            encrypted_chunks=True,
            privacy=register.privacy_capabilities,
            decode_tps=0.0,
            prefill_tps=0.0,
            registered_at=sources.now(),
            heartbeat_at=sources.monotonic(),
            verified_at=sources.monotonic(),
            sip_verified=True,
        )

    def _beat(self, session: Session) -> None:
        slot = BackendSlot(model=MODEL, state="running", num_running=len(session.attempts))
        busy = self._chance.random() / 2
        beat = Heartbeat(
            status="serving" if session.attempts else "idle",
            system_metrics=SystemMetrics(memory_pressure=busy, cpu_usage=busy),
            backend_capacity=BackendCapacity(
                slots=(slot,), gpu_memory_active_gb=1.0, total_memory_gb=64.0
            ),
        )
        session.hear(beat, self._hub.sources.monotonic())


@dataclass(frozen=True)
class _Working:
    """What the registry looks at of an attempt."""

    load: InFlight
