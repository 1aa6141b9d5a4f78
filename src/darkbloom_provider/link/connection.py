"""One open websocket, from the registration to the last frame: carries out what `session` decides.

Three tasks: the reader (decode and decide, never work), the writer (drains the outbox) and the
ticker. The first failure of any of them ends the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, assert_never

from darkbloom_provider import logs
from darkbloom_provider.link import actions as do
from darkbloom_provider.link import events
from darkbloom_provider.link.clock import to_the_beat
from darkbloom_provider.link.failure import Failure, InternalFault, LinkDownError, PeerStalled
from darkbloom_provider.link.jobs import Facts, JobSink
from darkbloom_provider.link.outbox import Depth, Outbox, ReplyClosedError
from darkbloom_provider.link.reply import Reply, inference_error
from darkbloom_provider.link.session import Session, Timings
from darkbloom_provider.link.socket import Socket, SocketLimits
from darkbloom_provider.link.state import Problem
from darkbloom_provider.protocol.codec import FrameError, decode_from_coordinator, encode

TICK_S: Final = 1.0

_log = logs.get("link")


class Connection:
    """Holds one websocket. Use once."""

    def __init__(
        self,
        socket: Socket,
        *,
        facts: Facts,
        jobs: JobSink,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        timings: Timings,
        limits: SocketLimits,
        changed: Callable[[], None],
    ) -> None:
        self._socket = socket
        self._facts = facts
        self._jobs = jobs
        self._clock = clock
        self._sleep = sleep
        self._limits = limits
        self._changed = changed
        self._session = Session(timings)
        self._outbox = Outbox()
        self._replies: dict[str, Reply] = {}
        self._ending = asyncio.Event()
        self._failure: Failure | None = None
        self.registered_at: float | None = None
        """When the coordinator first accepted this connection."""
        self.problem: Problem | None = None
        """What the coordinator holds against this machine, if anything."""

    @property
    def depth(self) -> Depth:
        """How much waits to be sent."""
        return self._outbox.depth

    async def hold(self) -> Failure | None:
        """Keep the session until it ends, and say why; None after a drain.

        When it returns, or is cancelled, the socket is closed and every job has been told.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                workers = [
                    tasks.create_task(self._guard(work))
                    for work in (self._keep_time(), self._read(), self._write())
                ]
                await self._ending.wait()
                if self._failure is None:
                    await self._flush()
                for worker in workers:
                    worker.cancel()
        finally:
            try:
                self._feed(events.Closed())
            finally:
                self._outbox.close("the connection to the coordinator was lost")
                await self._socket.close()
        return self._failure

    def reregister(self, reason: str) -> None:
        """What was registered has changed; see `events.Reregister`."""
        self._feed_from_outside(events.Reregister(reason))

    def drain(self, deadline: float) -> None:
        """Finish what runs until `deadline` of the clock, then hang up."""
        self._feed_from_outside(events.Drain(deadline))

    # -- the three tasks

    async def _keep_time(self) -> None:
        self._feed(events.Connected())
        while True:
            await self._sleep(to_the_beat(TICK_S, self._clock()))
            self._feed(events.Tick())

    async def _read(self) -> None:
        while True:
            frame = await self._socket.receive()
            try:
                message = decode_from_coordinator(frame)
            except FrameError as error:
                self._feed(events.FrameUndecodable(error))
            else:
                self._feed(events.FrameReceived(message))

    async def _write(self) -> None:
        while True:
            frame = await self._outbox.next()
            await self._socket.send(frame.text)
            self._outbox.sent(frame)

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 — whatever goes wrong here, the daemon reconnects
            self._fail(error)

    async def _flush(self) -> None:
        try:
            async with asyncio.timeout(self._limits.close_timeout_s):
                await self._outbox.flushed()
        except TimeoutError:
            _log.warning("the coordinator does not read; some last frames were not sent")

    def _fail(self, error: Exception) -> None:
        match error:
            case LinkDownError():
                self._end(error.failure)
            case ReplyClosedError():
                self._end(PeerStalled())
            case _:
                _log.error("fault on the connection", exc_info=error)
                self._end(InternalFault(type(error).__name__))

    def _end(self, failure: Failure | None) -> None:
        if not self._ending.is_set():
            self._failure = failure
            self._ending.set()

    # -- carrying out

    def _feed(self, event: events.Event) -> None:
        for action in self._session.receive(event, self._clock()):
            self._perform(action)

    def _feed_from_outside(self, event: events.Event) -> None:
        try:
            self._feed(event)
        except Exception as error:  # noqa: BLE001 — the connection's fault, not the caller's
            self._fail(error)

    def _perform(self, action: do.Action) -> None:
        match action:
            case do.StartJob() | do.CancelJob() | do.RefuseJob() | do.AbortJobs():
                self._perform_on_jobs(action)
            case do.SendRegister(reason):
                self._send_register(reason)
            case do.SendHeartbeat():
                self._outbox.control(encode(self._facts.heartbeat()), on_sent=self._beat_sent)
            case do.Answer(challenge):
                self._outbox.control(encode(self._facts.answer(challenge)))
            case do.Accepted():
                if self.registered_at is None:
                    self.registered_at = self._clock()
                self._changed()
            case do.ShowProblem(problem):
                _log.warning(problem.what, why=problem.why, next_step=problem.next_step)
                self.problem = problem
                self._changed()
            case do.ClearProblem():
                self.problem = None
                self._changed()
            case do.Report(what, detail):
                _log.warning(what, detail=detail)
            case do.Reconnect(failure):
                self._end(failure)
            case do.CloseConnection():
                self._end(None)
            case _:  # pragma: no cover — the type checker proves it
                assert_never(action)

    def _perform_on_jobs(
        self, action: do.StartJob | do.CancelJob | do.RefuseJob | do.AbortJobs
    ) -> None:
        match action:
            case do.StartJob(request):
                self._start(request.request_id, action)
            case do.CancelJob(request_id):
                self._replies.pop(request_id).close("the coordinator cancelled it")
                self._jobs.cancel(request_id)
            case do.RefuseJob(request_id, message, status_code):
                self._outbox.control(inference_error(request_id, message, status_code))
            case do.AbortJobs(cause):
                replies, self._replies = self._replies, {}
                for reply in replies.values():
                    reply.close(cause)
                self._jobs.abort_all(cause)
            case _:  # pragma: no cover — the type checker proves it
                assert_never(action)

    def _send_register(self, reason: str) -> None:
        register, attestation = self._facts.registration()
        if attestation is not None:
            register = register.model_copy(update={"attestation": attestation})
        _log.info("registering", reason=reason, models=len(register.models))
        self._outbox.control(encode(register))

    def _start(self, request_id: str, action: do.StartJob) -> None:
        reply = Reply(
            request_id, self._outbox, ended=lambda: self._ended(request_id), sleep=self._sleep
        )
        self._replies[request_id] = reply
        try:
            self._jobs.start(action.request, reply)
        except Exception:  # noqa: BLE001 — one bad request must not cost the others their connection
            _log.exception("a request could not be started")
            self._replies.pop(request_id).close("it could not be started")
            self._outbox.control(inference_error(request_id, "the provider failed", 500))
            self._feed(events.JobEnded(request_id))

    def _ended(self, request_id: str) -> None:
        self._replies.pop(request_id, None)
        self._outbox.release_lane(request_id)
        self._feed(events.JobEnded(request_id))

    def _beat_sent(self) -> None:
        self._feed(events.HeartbeatSent())
