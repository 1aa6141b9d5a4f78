"""What the supervisor composes a daemon of. The real ones are made in `daemon.provider`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from darkbloom_provider.account.credentials import Credentials
from darkbloom_provider.control.models import JobCounts
from darkbloom_provider.daemon import books, slots
from darkbloom_provider.daemon.facts import Machine, ProviderFacts
from darkbloom_provider.daemon.jobs import JobRunner
from darkbloom_provider.daemon.presence import Fleet
from darkbloom_provider.daemon.terms import Inference
from darkbloom_provider.engine.requests import EngineSnapshot
from darkbloom_provider.host.posture import Posture
from darkbloom_provider.host.privacy import Check
from darkbloom_provider.host.runtime import Hashes
from darkbloom_provider.link.state import LinkState
from darkbloom_provider.models.store import InstalledModel
from darkbloom_provider.protocol.messages import SystemMetrics
from darkbloom_provider.protocol.money import Price


class Engine(Inference, slots.Loader, Protocol):
    """What the daemon needs of the engine."""

    def snapshot(self) -> EngineSnapshot:
        """The engine as of its last step; never waits."""
        ...


class Front(Protocol):
    """Where work comes in."""

    async def run(self) -> None:
        """Take work until cancelled or drained."""
        ...

    async def drain(self, deadline_s: float) -> None:
        """Take no new work, finish what runs within `deadline_s` seconds, hang up."""
        ...


class Link(Front, Protocol):
    """What the daemon needs of the session with the coordinator."""

    @property
    def state(self) -> LinkState:
        """Where the link is."""
        ...

    def request_reregister(self, reason: str) -> None:
        """Register again with the facts of now, as soon as no job runs."""
        ...


class Work(Protocol):
    """What is being served, wherever it came in. Methods return at once, but for `idle`."""

    def counts(self) -> JobCounts:
        """Requests and tokens since the start."""
        ...

    def in_flight(self) -> Mapping[str, int]:
        """Requests being served, by model."""
        ...

    def close(self, because: str) -> None:
        """Refuse new requests from now on; those that run go on."""
        ...

    def abort_all(self, cause: str) -> None:
        """Stop everything that runs."""
        ...

    async def idle(self) -> None:
        """Wait until no request is being served."""
        ...


class Rooms(Protocol):
    """The parts a daemon is made of.

    `machine`, `runtime`, `installed`, `credentials`, `sample`, `open_journal` and `relieve` may
    block: they are called on a thread. The others return at once, but for `fleet`, which waits for
    the network.
    """

    def machine(self) -> Machine:
        """Measure this machine."""
        ...

    def runtime(self) -> Hashes | None:
        """What this process is made of; None if that cannot be read."""
        ...

    def installed(self) -> Sequence[InstalledModel]:
        """The models on this machine."""
        ...

    def credentials(self) -> Credentials | None:
        """What links this machine to an account."""
        ...

    async def fleet(self) -> Fleet:
        """Who is on the coordinator's list. May fail with a `DarkbloomError`."""
        ...

    def sample(self) -> SystemMetrics:
        """How busy the machine is."""
        ...

    def open_journal(self) -> books.Journal:
        """The local record of completed jobs."""
        ...

    def engine(self) -> AbstractAsyncContextManager[Engine]:
        """The engine, closed with the context."""
        ...

    def link(
        self, facts: ProviderFacts, jobs: JobRunner, on_state: Callable[[LinkState], None]
    ) -> Link:
        """The session with the coordinator, not yet running."""
        ...

    def relieve(self) -> None:
        """Hand memory that was freed back to the system."""
        ...

    def price(self, model_id: str) -> Price:
        """What a model pays."""
        ...

    def seal(self) -> None:
        """Everything that loads native code is loaded: allow no more of it."""
        ...

    def privacy(self, posture: Posture) -> Mapping[str, Check]:
        """What is done for privacy, measured now: every flag of `PrivacyCapabilities`."""
        ...
