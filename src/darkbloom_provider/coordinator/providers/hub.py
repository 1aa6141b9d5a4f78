"""The middle of the network: which providers are here, who serves which request, and who is paid.

The hub owns the registry and the waiting room. Conversations tell it what providers say; the
inference endpoint asks it for a place. Everything here runs on one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from darkbloom_provider import logs
from darkbloom_provider.coordinator.inference.consumer import Consumer
from darkbloom_provider.coordinator.ledger.tab import Tab
from darkbloom_provider.coordinator.metrics import Metrics
from darkbloom_provider.coordinator.providers.attempts import (
    Attempt,
    AttemptFailedError,
    ConsumerLeftError,
    InvalidChunkError,
    SlowConsumerError,
    provider_failure,
    stopping,
    unsettled,
)
from darkbloom_provider.coordinator.providers.open_requests import OpenRequests
from darkbloom_provider.coordinator.providers.registry import Registry, Session
from darkbloom_provider.coordinator.providers.waiting import Placement, WaitingRoom, unavailable
from darkbloom_provider.coordinator.routing.choice import Demand, InFlight, Rules, explain_all
from darkbloom_provider.coordinator.routing.quotes import shortlist
from darkbloom_provider.coordinator.settings import Settings
from darkbloom_provider.coordinator.sources import Sources
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.protocol.messages import (
    Cancel,
    InferenceAccepted,
    InferenceComplete,
    InferenceError,
    InferenceResponseChunk,
)

JobMessage = InferenceAccepted | InferenceResponseChunk | InferenceComplete | InferenceError

_STALE_QUOTES: Final = 4
"""How many providers a request may have to ask again before it is placed."""
REPLACED: Final = "replaced by new connection from same device"

_log = logs.get("coordinator")


class Hub:
    """See the module."""

    def __init__(
        self, settings: Settings, sources: Sources, metrics: Metrics | None = None
    ) -> None:
        self._metrics = metrics or Metrics()
        self.timing = settings.timing
        self.limits = settings.limits
        self.policy = settings.policy
        self.sources = sources
        self.rules = Rules(
            min_trust=settings.policy.min_trust,
            fresh_seconds=settings.timing.challenge_fresh,
            max_requests=settings.policy.max_requests,
        )
        self.registry = Registry(self.rules)
        self.requests = OpenRequests()
        self.requests.none.set()
        self._waiting = WaitingRoom(settings.limits.queue_per_model)
        self._stopping = False

    # ------------------------------------------------------------ life

    async def evict_forever(self) -> None:
        """Drop providers that have fallen silent. Their sockets stay open, as in the network."""
        while True:
            await asyncio.sleep(self.timing.eviction_scan)
            self.evict()

    def evict(self) -> None:
        """Drop every provider whose last heartbeat is too old."""
        now = self.sources.monotonic()
        for session in self.registry:
            if now - session.heartbeat_at > self.timing.eviction_age:
                self.drop(session, "it sent no heartbeat")

    async def stop(self) -> None:
        """End every request with a typed error, and wait until its books are closed."""
        self._stopping = True
        self._waiting.refuse_all(stopping())
        for session in self.registry:
            for attempt in session.attempts.values():
                attempt.end(stopping())
            # Whatever providers still say about these jobs finds nothing.
            session.attempts.clear()
        await self.settled()

    async def settled(self) -> None:
        """Wait until no request is open, for as long as the settings allow."""
        try:
            async with asyncio.timeout(self.timing.stop_grace):
                await self.requests.none.wait()
        except TimeoutError:
            _log.warning("requests_cut_off", count=self.requests.count)

    @property
    def queue_length(self) -> int:
        """Requests that wait for a provider, of whichever model."""
        return len(self._waiting)

    # ------------------------------------------------------------ providers

    async def join(self, session: Session) -> None:
        """Take in a provider. An older connection of the same attested machine is closed."""
        if session.attested and session.serial is not None:
            for other in self.registry:
                if other is not session and other.attested and other.serial == session.serial:
                    self.drop(other, "it was replaced by a new connection")
                    if other.wire is not session.wire:
                        await other.wire.close(1000, REPLACED)
        self.registry.add(session)
        _log.info(
            "provider_registered",
            session=session.id,
            trust=session.trust,
            linked=session.account_id is not None,
            models=len(session.models),
        )

    def renewed(self, before: Session | None, fresh: Session) -> Session:
        """The session of a connection that registers, perhaps again.

        With the same key its jobs go on: what they answer can be read as before. With another one
        they fail, and are tried elsewhere.
        """
        if before is None:
            return fresh
        if before in self.registry and before.public_key and before.public_key == fresh.public_key:
            before.renew(fresh)
            return before
        self.drop(before, "it registered again")
        return fresh

    def drop(self, session: Session, why: str) -> None:
        """Forget a provider; what it was working on fails. Again is harmless."""
        if session in self.registry:
            self.registry.remove(session)
            _log.info("provider_gone", session=session.id, reason=why)
        for attempt in list(session.attempts.values()):
            self._fail(session, attempt, AttemptFailedError("the provider disconnected"))

    def serve_waiting(self) -> None:
        """Something has changed for the better: place whoever waits."""
        self.registry.refresh(beyond=_STALE_QUOTES)
        self._waiting.serve(self.place)

    async def hear(self, session: Session, message: JobMessage) -> None:
        """What a provider says about a job. Late words and unknown jobs are ignored."""
        attempt = session.attempts.get(message.request_id)
        if attempt is None:
            return
        match message:
            case InferenceAccepted():
                attempt.accept()
            case InferenceResponseChunk():
                await self._take_chunk(session, attempt, message)
            case InferenceError():
                self._fail(session, attempt, provider_failure(message.error, message.status_code))
            case InferenceComplete():
                settling = self.completed(session, message)
                if settling is not None:
                    await settling

    def completed(
        self, session: Session, message: InferenceComplete
    ) -> Coroutine[Any, Any, None] | None:
        """The settlement of a job that is done, to be awaited; None if there is no such job.

        From now on a second completion finds nothing, and what else the provider says need not
        wait for the ledger.
        """
        attempt = session.attempts.end(message.request_id)
        return None if attempt is None else self._settle(session, attempt, message)

    async def _take_chunk(
        self, session: Session, attempt: Attempt, chunk: InferenceResponseChunk
    ) -> None:
        try:
            if attempt.offer(chunk):
                return
        except InvalidChunkError as error:
            _log.error("provider_untrusted", session=session.id, reason=str(error))
            session.distrust()
            self._fail(session, attempt, AttemptFailedError("the provider sent an invalid answer"))
            return
        # The consumer's fault, not the provider's: stop it now, the consumer may take minutes.
        session.attempts.end(attempt.job_id)
        attempt.end(SlowConsumerError())
        await session.wire.send(Cancel(request_id=attempt.job_id), self.timing.write_cancel)

    async def _settle(self, session: Session, attempt: Attempt, message: InferenceComplete) -> None:
        try:
            await attempt.tab.settle(attempt.job_id, session.serving, message.usage)
        except DarkbloomError as error:
            _log.error("settlement_failed", job=attempt.job_id, reason=error.why or error.what)
            attempt.end(unsettled(error))
        else:
            session.jobs_completed += 1
            attempt.end(message)
        self.serve_waiting()

    def _fail(self, session: Session, attempt: Attempt, error: AttemptFailedError) -> None:
        session.attempts.end(attempt.job_id)
        session.jobs_failed += 1
        attempt.end(error)
        _log.warning("job_failed", session=session.id, job=attempt.job_id, status=error.status_code)
        self.serve_waiting()

    # ------------------------------------------------------------ requests

    def choose(self, demand: Demand) -> Session | None:
        """The provider for a request: one of the shortlist, so that equals earn alike."""
        asked = self.registry.quotes(demand.model)
        equals = shortlist(asked, demand, now=self.sources.monotonic())
        return self.registry.get(self.sources.chance.choice(equals).session_id) if equals else None

    def place(self, demand: Demand, tab: Tab) -> Placement | None:
        """Take a place for a request at the best provider, or None if there is none now."""
        if self._stopping:
            return None
        began = self.sources.monotonic()
        session = self.choose(demand)
        self._metrics.routed(self.sources.monotonic() - began)
        if session is None:
            return None
        attempt = Attempt(
            job_id=self.sources.new_id(),
            provider_key=session.public_key,
            load=InFlight(demand.model, demand.max_output_tokens),
            tab=tab,
            buffer_bytes=self.limits.job_buffer_bytes,
        )
        session.attempts[attempt.job_id] = attempt
        return Placement(session, attempt)

    async def place_or_wait(self, demand: Demand, tab: Tab, consumer: Consumer) -> Placement:
        """As `place`, waiting for a provider to come free.

        Raises:
            AttemptFailedError: The queue is full, or nobody came free in time (503).
            ConsumerLeftError: The caller did not wait.
        """
        if self._stopping:
            raise stopping()
        self.serve_waiting()  # Nobody who comes later goes first.
        placement = self.place(demand, tab)
        if placement is not None:
            return placement
        waiter = self._waiting.enter(demand, tab)
        try:
            with consumer.interrupts(lambda: waiter.refuse(ConsumerLeftError())):
                await asyncio.wait({waiter.placed}, timeout=self.timing.queue_wait)
        except asyncio.CancelledError:
            if waiter.placed.done() and waiter.placed.exception() is None:
                self._vacate(waiter.placed.result())
            raise
        finally:
            self._waiting.leave(waiter)
        if not waiter.placed.done():
            raise unavailable(f"queue timeout: {self._why_nobody(demand)}")
        return waiter.placed.result()

    def waiting(self, model: str) -> int:
        """How many requests wait for a provider of `model`."""
        return self._waiting.count(model)

    async def release(self, placement: Placement) -> None:
        """A request is over at this provider: give the place back and say so on the wire.

        The network sends `cancel` after every request, so that a provider never works for nobody.
        """
        self._vacate(placement)
        if placement.session in self.registry:
            cancel = Cancel(request_id=placement.attempt.job_id)
            await placement.session.wire.send(cancel, self.timing.write_cancel)

    def _vacate(self, placement: Placement) -> None:
        placement.session.attempts.end(placement.attempt.job_id)
        placement.attempt.close()
        self.serve_waiting()

    def count_failure(self, placement: Placement) -> None:
        """The provider was silent for too long."""
        placement.session.jobs_failed += 1

    def _why_nobody(self, demand: Demand) -> str:
        now = self.sources.monotonic()
        reasons = explain_all(self.registry.candidates(), demand, self.rules, now)
        _log.warning("no_provider", model=demand.model, reasons=dict(reasons))
        if not reasons:
            return "no provider is connected"
        serving = [why for why in reasons.values() if "does not serve this model" not in why]
        return "every provider is busy or not ready" if serving else "no provider serves this model"
