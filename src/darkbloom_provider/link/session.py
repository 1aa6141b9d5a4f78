"""The session with a coordinator, as a machine without IO or clock: an event in, actions out.

One `Session` lives as long as one connection. The shell tells it what happened and when
(`receive(event, now)`) and carries out what it answers. What a coordinator never says (it does not
acknowledge a registration, does not report a dropped message, does not hang up on a provider it
has evicted) is inferred here from what it does:

* a registration counts as accepted when the first challenge follows within 15 s;
* six minutes without a challenge mean that no work will come: register again on the same socket,
  as soon as no job runs, because registering again orphans the jobs that run;
* after 80 s without a heartbeat sent (sleep, a stuck line) the coordinator gives a provider up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, assert_never

from darkbloom_provider.link.actions import (
    AbortJobs,
    Accepted,
    Action,
    Answer,
    CancelJob,
    CloseConnection,
    Reconnect,
    RefuseJob,
    Report,
    SendHeartbeat,
    SendRegister,
    StartJob,
)
from darkbloom_provider.link.complaints import Complaints
from darkbloom_provider.link.events import (
    Closed,
    Connected,
    Drain,
    Event,
    FrameReceived,
    FrameUndecodable,
    HeartbeatSent,
    JobEnded,
    Reregister,
    Tick,
)
from darkbloom_provider.link.failure import (
    ChallengesStopped,
    Failure,
    HeartbeatOverdue,
    NotAccepted,
    printable,
)
from darkbloom_provider.protocol.messages import (
    AttestationChallenge,
    Cancel,
    CoordinatorMessage,
    InferenceRequest,
    RoutingStatus,
    RuntimeStatus,
)

REMEMBERED_REQUESTS: Final = 4096
"""Ids kept to recognise a request that comes twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds. The defaults follow the network's own timers, each with room to spare."""

    heartbeat_s: float = 5.0
    heartbeat_overdue_s: float = 80.0
    """A coordinator evicts after 90 s without a heartbeat."""
    acceptance_s: float = 15.0
    challenge_silence_s: float = 360.0
    """Challenges come every 5 min and a passed one counts for 6."""
    give_up_silence_s: float = 720.0
    """When running jobs kept the suspicious session from registering again for so long."""
    reregister_patience_s: float = 60.0
    """How long a wish to register again lets new work in; afterwards jobs run dry."""


class Session:
    """One connection's worth of decisions. Never raises, whatever comes in whatever order."""

    def __init__(self, timings: Timings | None = None) -> None:
        self._timings = timings or Timings()
        self._now = -math.inf
        self._set_back = 0.0
        """Seconds by which the clock was set back, all in all."""
        self._open = False
        self._over = False
        self._jobs: dict[str, None] = {}
        self._seen: dict[str, None] = {}
        self._register_by: float | None = None
        """Until when the latest `register` must be followed by a challenge; None: it was."""
        self._challenged_at = 0.0
        self._heartbeat_due = 0.0
        self._heartbeat_sent_at = 0.0
        self._heartbeat_queued = False
        self._wish: tuple[str, float] | None = None
        """Why to register again, and since when."""
        self._drain_by: float | None = None
        self._complaints = Complaints()

    @property
    def draining(self) -> bool:
        """Whether new work is turned away because the provider stops."""
        return self._drain_by is not None

    @property
    def jobs(self) -> frozenset[str]:
        """Ids of the requests that run."""
        return frozenset(self._jobs)

    def receive(self, event: Event, now: float) -> list[Action]:
        """What to do about `event`, which happened at `now` (seconds, any origin).

        Time that goes back counts as no time: heartbeats go on as if nothing had happened. A jump
        ahead is time that passed, as sleep is: the coordinator may have given up meanwhile.
        """
        self._set_back = max(self._set_back, self._now - now)
        now = self._now = now + self._set_back
        if isinstance(event, Connected):
            return [] if self._open or self._over else self._connected(now)
        if self._over or not (self._open or isinstance(event, Drain)):
            return []
        actions: list[Action] = []
        match event:
            case FrameReceived(message):
                actions = self._message(message, now)
            case FrameUndecodable(error):
                actions = [Report(error.what, error.why or "")]
            case HeartbeatSent():
                self._heartbeat_queued = False
                self._heartbeat_sent_at = now
            case JobEnded(request_id):
                actions = self._job_gone(request_id, now)
            case Reregister(reason):
                self._wish = self._wish or (reason, now)
                actions = self._register_if_quiet(now)
            case Drain(deadline):
                actions = self._drain(deadline + self._set_back)
            case Closed():
                actions = self._leave("the connection to the coordinator was lost")
            case Tick():
                actions = self._tick(now)
            case _:  # pragma: no cover — the type checker proves it
                assert_never(event)
        return actions

    # -- the coordinator's messages

    def _message(self, message: CoordinatorMessage, now: float) -> list[Action]:
        match message:
            case AttestationChallenge():
                return self._challenged(message, now)
            case InferenceRequest():
                return self._requested(message, now)
            case Cancel(request_id=request_id):
                return self._cancelled(request_id, now)
            case RuntimeStatus():
                return [*self._complaints.runtime(message)]
            case RoutingStatus():
                return [*self._complaints.routing(message)]
            case _:  # pragma: no cover — the type checker proves it
                assert_never(message)

    def _challenged(self, challenge: AttestationChallenge, now: float) -> list[Action]:
        actions: list[Action] = [Answer(challenge)]
        self._challenged_at = now
        if self._register_by is not None:
            self._register_by = None
            actions.append(Accepted())
        return [*actions, *self._complaints.challenged(), *self._register_if_quiet(now)]

    def _requested(self, request: InferenceRequest, now: float) -> list[Action]:
        request_id = request.request_id
        if request_id in self._jobs or request_id in self._seen:
            return [Report("A request that came before was ignored", printable(request_id))]
        self._remember(request_id)
        if self.draining:
            return [RefuseJob(request_id, "this provider is shutting down", 503)]
        if self._wish and now - self._wish[1] > self._timings.reregister_patience_s:
            return [RefuseJob(request_id, "this provider is about to register again", 503)]
        self._jobs[request_id] = None
        return [StartJob(request)]

    def _cancelled(self, request_id: str, now: float) -> list[Action]:
        if request_id not in self._jobs:
            # The usual end of every finished request. Should the request come after its cancel,
            # nobody would listen to the answer: remembering the id keeps it from starting.
            self._remember(request_id)
            return []
        return [CancelJob(request_id), *self._job_gone(request_id, now)]

    # -- registering, beating, draining

    def _connected(self, now: float) -> list[Action]:
        self._open = True
        self._heartbeat_sent_at = now
        return self._register("connected", now)

    def _register(self, reason: str, now: float) -> list[Action]:
        self._wish = None
        self._register_by = now + self._timings.acceptance_s
        self._challenged_at = now
        return [SendRegister(reason), *self._complaints.registering(), *self._heartbeat(now)]

    def _register_if_quiet(self, now: float) -> list[Action]:
        if self._wish is None or self._jobs or self._register_by is not None or self.draining:
            return []
        return self._register(self._wish[0], now)

    def _heartbeat(self, now: float) -> list[Action]:
        self._heartbeat_due = now + self._timings.heartbeat_s
        if self._heartbeat_queued:  # one that waits to be written is enough
            return []
        self._heartbeat_queued = True
        return [SendHeartbeat()]

    def _drain(self, deadline: float) -> list[Action]:
        self._drain_by = deadline if self._drain_by is None else min(deadline, self._drain_by)
        return self._close_if_drained()

    def _close_if_drained(self) -> list[Action]:
        if not self.draining or self._jobs:
            return []
        self._over = True
        return [CloseConnection()]

    def _cut_at_deadline(self) -> list[Action]:
        refusals = [
            RefuseJob(request_id, "this provider was stopped before the answer was complete", 503)
            for request_id in self._jobs
        ]
        return [
            *self._leave("the drain deadline has passed"),
            *refusals,
            CloseConnection(),
        ]

    def _tick(self, now: float) -> list[Action]:
        timings = self._timings
        unsent_s = now - self._heartbeat_sent_at
        if unsent_s > timings.heartbeat_overdue_s:
            return self._reconnect(HeartbeatOverdue(unsent_s))
        if self._drain_by is not None and now >= self._drain_by:
            return self._cut_at_deadline()
        if self._register_by is not None and now >= self._register_by:
            return self._reconnect(NotAccepted(timings.acceptance_s))
        silent_s = now - self._challenged_at
        if silent_s > timings.give_up_silence_s:
            return self._reconnect(ChallengesStopped(silent_s))
        if silent_s > timings.challenge_silence_s and self._wish is None:
            self._wish = ("no challenge for too long", now)
        actions = self._register_if_quiet(now)
        if not actions and now >= self._heartbeat_due:
            actions = self._heartbeat(now)
        return actions

    # -- endings

    def _job_gone(self, request_id: str, now: float) -> list[Action]:
        if request_id not in self._jobs:
            return []
        del self._jobs[request_id]
        return self._close_if_drained() or self._register_if_quiet(now)

    def _reconnect(self, failure: Failure) -> list[Action]:
        return [*self._leave("the connection to the coordinator was given up"), Reconnect(failure)]

    def _leave(self, cause: str) -> list[Action]:
        self._over = True
        lost, self._jobs = self._jobs, {}
        return [AbortJobs(cause)] if lost else []

    def _remember(self, request_id: str) -> None:
        self._seen[request_id] = None
        if len(self._seen) > REMEMBERED_REQUESTS:
            del self._seen[next(iter(self._seen))]
