"""Serves requests: opens the box, asks the engine, seals every piece, reports the end once.

A prompt and its completion live in the job that serves them and nowhere else. Jobs are
independent: a slow consumer, a failure or a cancellation touches one job only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from darkbloom_provider import logs
from darkbloom_provider.control.models import JobCounts
from darkbloom_provider.daemon.answers import Answering, Answers
from darkbloom_provider.daemon.tally import Tally
from darkbloom_provider.daemon.terms import Books, RefusedError, Reply, Terms
from darkbloom_provider.earnings.journal import JobRecord
from darkbloom_provider.engine.errors import EngineClosedError, EngineError
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.link.outbox import ReplyClosedError
from darkbloom_provider.link.reply import FrameOverLimitError
from darkbloom_provider.protocol import money, signed
from darkbloom_provider.protocol.boxes import BoxError, Channel, nonce_of
from darkbloom_provider.protocol.messages import InferenceRequest, Usage
from darkbloom_provider.protocol.requests.document import InvalidRequestError

REMEMBERED_IDS = 4096
"""Ids kept, so that a request that comes twice is served once."""
LARGE_BOX = 256 * 1024
"""Boxes of more characters are opened on a thread, so that the event loop stays free."""

_log = logs.get("daemon.jobs")


@dataclass(slots=True, eq=False)
class _Job:
    request: InferenceRequest
    reply: Reply
    task: asyncio.Task[None] | None = None
    model: str | None = None
    ending: bool = False
    """The completion is on its way: from here on the job can only be completed."""
    served: list[str] = field(default_factory=list, repr=False)
    """Every chunk's text, for the response hash."""


class JobRunner:
    """The link's job sink: one task per request."""

    def __init__(
        self, answers: Answers, books: Books, terms: Terms, tally: Tally, tasks: asyncio.TaskGroup
    ) -> None:
        self._answers = answers
        self._books = books
        self._terms = terms
        self._tally = tally
        self._tasks = tasks
        self._jobs: dict[str, _Job] = {}
        self._refusals: set[str] = set()
        self._seen: deque[str] = deque(maxlen=REMEMBERED_IDS)
        self._opened: deque[bytes] = deque(maxlen=REMEMBERED_IDS)
        """Nonces of the boxes that were opened: each is opened once."""
        self._closed_because: str | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    # ------------------------------------------------------------ what the link calls

    def start(self, request: InferenceRequest, reply: Reply) -> None:
        """Begin to serve a request. One that runs already is ignored: any answer would end it."""
        request_id = request.request_id
        if request_id in self._jobs:
            _log.warning("request repeated, ignored", request_id=request_id)
        elif request_id in self._seen:
            self._turn_away(request_id, reply, "this request was served before")
        elif self._closed_because is not None:
            self._turn_away(request_id, reply, self._closed_because)
        elif len(self._jobs) >= self._terms.max_jobs:
            self._turn_away(request_id, reply, "this provider is busy")
        else:
            self._seen.append(request_id)
            job = self._jobs[request_id] = _Job(request, reply)
            self._idle.clear()
            job.task = self._tasks.create_task(self._run(job), name=f"job {request_id}")
            # Not in the task: one cancelled before its first step never runs a line.
            job.task.add_done_callback(lambda task: self._forget(job, task))

    def cancel(self, request_id: str) -> None:
        """Stop a request; nothing more is sent. Ids that are unknown or at their end: ignored."""
        job = self._jobs.get(request_id)
        if job is not None:
            self._stop(job)

    def abort_all(self, cause: str) -> None:
        """Stop everything: the connection that the answers belong to is gone."""
        if self._jobs:
            _log.warning("requests aborted", cause=cause, requests=len(self._jobs))
        for job in list(self._jobs.values()):
            self._stop(job)

    # ------------------------------------------------------------ what the supervisor calls

    def close(self, because: str) -> None:
        """Refuse new requests from now on; those that run go on. `because` reaches consumers."""
        self._closed_because = because

    async def idle(self) -> None:
        """Wait until no request is being served."""
        await self._idle.wait()

    def counts(self) -> JobCounts:
        """Requests and tokens since the start."""
        return self._tally.counts(len(self._jobs))

    def in_flight(self) -> Mapping[str, int]:
        """Requests being served, by model."""
        return Counter(job.model for job in self._jobs.values() if job.model is not None)

    # ------------------------------------------------------------ one job

    async def _run(self, job: _Job) -> None:
        request_id = job.request.request_id
        try:
            await self._serve(job)
        except FrameOverLimitError:
            self._tally.failed()  # The reply has told the coordinator.
        except ReplyClosedError:
            self._tally.cancelled()
        except (RefusedError, InvalidRequestError, EngineError) as error:
            # Only `what` is meant for consumers; `why` is the owner's.
            await self._fail(job, error.what, error.status_code)
            if isinstance(error, EngineClosedError) and self._closed_because is None:
                raise  # The engine has died: only a new start helps, so the daemon ends.
        except Exception as error:  # noqa: BLE001 — a fault in one job must not end the others
            # The text of a foreign exception may quote the request: its type is all that is told.
            _log.error("request failed", request_id=request_id, error=type(error).__name__)
            if not job.ending:
                await self._fail(job, "the request could not be served", 500)

    async def _serve(self, job: _Job) -> None:
        channel, body = await self._open(job.request)
        await job.reply.accepted()
        request = self._answers.read(body)
        job.model = request.model
        if not self._terms.promises_kept():
            why = "the provider's security posture has changed"
            raise RefusedError(why, HTTPStatus.SERVICE_UNAVAILABLE)
        answering = await self._answers.begin(job.request.request_id, request)
        try:
            await self._stream(job, answering, channel)
        finally:
            answering.close()
        await self._complete(job, request.model, answering.usage)

    async def _open(self, request: InferenceRequest) -> tuple[Channel, bytes]:
        box = request.encrypted_body
        if box is None:
            raise RefusedError("the request is not encrypted", HTTPStatus.BAD_REQUEST)
        try:
            channel = Channel(self._terms.key_pair, box.ephemeral_public_key)
            nonce = nonce_of(box.ciphertext)
            if len(box.ciphertext) > LARGE_BOX:
                body = await asyncio.to_thread(channel.open, box.ciphertext)
            else:
                body = channel.open(box.ciphertext)
        except BoxError as error:
            _log.warning("box not opened", request_id=request.request_id, why=error.why)
            raise RefusedError("the request cannot be opened", HTTPStatus.BAD_REQUEST) from None
        if nonce in self._opened:
            _log.warning("box replayed", request_id=request.request_id)
            raise RefusedError("the request was sent before", HTTPStatus.BAD_REQUEST)
        self._opened.append(nonce)
        return channel, body

    async def _stream(self, job: _Job, answering: Answering, channel: Channel) -> None:
        """Send the answer, one chunk per event."""
        while events := await answering.next():
            usage = answering.usage
            for text in events:
                job.served.append(text)
                await job.reply.chunk(channel.payload(text.encode()), usage)
            # What is generated meanwhile comes as one event.
            await answering.pause(self._terms.gather_seconds(len(self._jobs)))

    async def _complete(self, job: _Job, model: str, usage: Usage) -> None:
        request_id = job.request.request_id
        digest = signed.response_hash(request_id, usage.completion_tokens, "".join(job.served))
        # A cancel that arrives now is the coordinator's usual one after the end, or too late.
        job.ending = True
        # Before the wait: at a job's end the provider may register again, with another account.
        linked = self._terms.linked()
        await job.reply.complete(
            usage, response_hash=digest, se_signature=await self._signature(digest)
        )
        # No await from here on: what was reported is counted and on its way to the journal.
        self._tally.served(usage)
        self._books.record(
            JobRecord(
                job_id=request_id,
                finished_at=self._terms.now(),
                model=model,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                provider_key=self._terms.key_pair.public_text,
                linked=linked,
                estimate_micro_usd=money.cost(
                    usage.prompt_tokens, usage.completion_tokens, self._terms.price(model)
                ),
            )
        )

    async def _signature(self, digest: str) -> str | None:
        """The enclave's signature over what was answered. An answer without one is paid as well."""
        key = self._terms.enclave_key
        if key is None:
            return None
        try:
            return await asyncio.to_thread(key.sign, digest.encode())
        except DarkbloomError as error:
            _log.warning("answer not signed", why=str(error))
            return None

    async def _fail(self, job: _Job, message: str, status_code: int) -> None:
        self._tally.failed()
        _log.info("request refused or failed", request_id=job.request.request_id, code=status_code)
        with contextlib.suppress(ReplyClosedError):
            await job.reply.error(message, status_code)

    # ------------------------------------------------------------ bookkeeping

    def _stop(self, job: _Job) -> None:
        if job.task is not None and not job.ending:
            job.task.cancel()

    def _forget(self, job: _Job, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._tally.cancelled()
        del self._jobs[job.request.request_id]
        if not self._jobs:
            self._idle.set()

    def _turn_away(self, request_id: str, reply: Reply, why: str) -> None:
        if len(self._refusals) >= self._terms.max_jobs:
            # Not even refusals get through: the coordinator's own time-out must do.
            _log.error("too many requests, dropped", request_id=request_id)
            return
        self._tally.failed()
        self._refusals.add(request_id)
        task = self._tasks.create_task(_refuse(reply, why), name=f"refusal {request_id}")
        task.add_done_callback(lambda _task: self._refusals.discard(request_id))


async def _refuse(reply: Reply, why: str) -> None:
    with contextlib.suppress(ReplyClosedError):
        await reply.error(why, HTTPStatus.SERVICE_UNAVAILABLE)
