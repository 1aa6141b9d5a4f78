"""Parts of a daemon that do what a test tells them: engine, reply, books, rooms."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import math
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darkbloom_provider.daemon.answers import Answers
from darkbloom_provider.daemon.jobs import JobRunner
from darkbloom_provider.daemon.tally import Tally
from darkbloom_provider.daemon.terms import SERVED, Offer, Terms
from darkbloom_provider.earnings.journal import JobRecord, JournalTotals
from darkbloom_provider.earnings.journal_file import JournalFullError
from darkbloom_provider.engine.errors import ModelNotLoadedError, NoRoomError
from darkbloom_provider.engine.requests import Delta, GenerationRequest, LoadedModel
from darkbloom_provider.engine.requests import Usage as Counted
from darkbloom_provider.link.outbox import ReplyClosedError
from darkbloom_provider.protocol.boxes import Channel, KeyPair
from darkbloom_provider.protocol.messages import EncryptedPayload, InferenceRequest, Usage
from darkbloom_provider.protocol.money import Price
from darkbloom_provider.protocol.openai import FinishReason
from darkbloom_provider.protocol.signed import SigningKey

MODEL = "tiny-random"
NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
PROMPT_TOKENS = 17


class FakeGeneration:
    """Says its pieces, one token each, then ends; a gate holds it before any of them."""

    def __init__(
        self, pieces: Sequence[str | Delta | Exception], gate: asyncio.Event | None
    ) -> None:
        self._pieces = pieces
        self._gate = gate
        self.cancelled = False
        self.finish_reason: FinishReason | None = None
        self.stop_sequence: str | None = None
        self.prompt_end = ""
        self.usage = Counted(PROMPT_TOKENS, 0)
        self._over = asyncio.Event()

    def cancel(self) -> None:
        self.cancelled = self.finish_reason is None
        self._over.set()

    async def released(self) -> None:
        await self._over.wait()

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._deltas()

    async def _deltas(self) -> AsyncIterator[Delta]:
        for count, piece in enumerate(self._pieces, start=1):
            if self._gate is not None:
                await self._until_let()
            if self.cancelled:
                return
            if isinstance(piece, Exception):
                raise piece
            self.usage = Counted(PROMPT_TOKENS, count)
            yield Delta(piece, count) if isinstance(piece, str) else piece
        self.finish_reason = "stop"
        self._over.set()

    async def _until_let(self) -> None:
        assert self._gate is not None
        waits = [asyncio.ensure_future(event.wait()) for event in (self._gate, self._over)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


class FakeEngine:
    """Generates its pieces, or for its n-th request the n-th of its scripts."""

    def __init__(self, *pieces: str | Delta | Exception, gate: asyncio.Event | None = None) -> None:
        self.pieces: Sequence[str | Delta | Exception] = pieces or ("Hel", "lo")
        self.scripts: Sequence[Sequence[str | Delta | Exception]] = ()
        self.stop_sequence: str | None = None
        self.prompt_end = ""
        self.gate = gate
        self.requests: list[GenerationRequest] = []
        self.generations: list[FakeGeneration] = []
        self.refuse: Exception | None = None
        self.model = LoadedModel(MODEL, 1024, 10, 0.0)

    def loaded(self, model_id: str) -> LoadedModel | None:
        return self.model

    def submit(self, request: GenerationRequest) -> FakeGeneration:
        if self.refuse is not None:
            raise self.refuse
        pieces = self.scripts[len(self.requests)] if self.scripts else self.pieces
        self.requests.append(request)
        generation = FakeGeneration(pieces, self.gate)
        generation.stop_sequence = self.stop_sequence
        generation.prompt_end = self.prompt_end
        self.generations.append(generation)
        return generation


class FakeReply:
    """Records what is sent. `slow` holds each chunk until it is set; `close()` ends it."""

    def __init__(self, session: KeyPair, provider: str) -> None:
        self._channel = Channel(session, provider)
        self._provider = provider
        self.accepts = 0
        self.texts: list[str] = []
        self.usages: list[Usage] = []
        self.completions: list[tuple[Usage, str | None]] = []
        self.signatures: list[str | None] = []
        self.errors: list[tuple[str, int]] = []
        self.slow: asyncio.Event | None = None
        self.completing: asyncio.Event | None = None
        self.closed = False
        self.over = asyncio.Event()
        self.begun = asyncio.Event()
        self.at_completion = asyncio.Event()

    @property
    def sent(self) -> int:
        """Everything that went out."""
        return self.accepts + len(self.texts) + len(self.completions) + len(self.errors)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The chunks, parsed."""
        return [json.loads(text.removeprefix("data: ")) for text in self.texts]

    @property
    def content(self) -> str:
        """The text of a streamed answer."""
        deltas = [e["choices"][0]["delta"] for e in self.events if e["choices"]]
        return "".join(delta.get("content", "") for delta in deltas)

    def close(self) -> None:
        """Nobody listens any more."""
        self.closed = True
        for event in (self.slow, self.completing):
            if event is not None:
                event.set()

    async def accepted(self) -> None:
        self._check()
        self.accepts += 1

    async def chunk(self, payload: EncryptedPayload, usage: Usage) -> None:
        self._check()
        assert payload.ephemeral_public_key == self._provider
        self.begun.set()
        if self.slow is not None:
            await self.slow.wait()
            self._check()
        self.texts.append(self._channel.open(payload.ciphertext).decode())
        self.usages.append(usage)

    async def complete(
        self, usage: Usage, response_hash: str | None = None, se_signature: str | None = None
    ) -> None:
        self._check()
        self.at_completion.set()
        if self.completing is not None:
            await self.completing.wait()
            self._check()
        self.completions.append((usage, response_hash))
        self.signatures.append(se_signature)
        self.over.set()

    async def error(self, message: str, status_code: int) -> None:
        self._check()
        self.errors.append((message, status_code))
        self.over.set()

    def _check(self) -> None:
        if self.closed:
            raise ReplyClosedError("cancelled")


class FakeBooks:
    """Keeps the records."""

    def __init__(self) -> None:
        self.records: list[JobRecord] = []

    def record(self, record: JobRecord) -> None:
        self.records.append(record)


class FakeJournal:
    """Fails while `broken`; waits while `stuck` is not set."""

    def __init__(self) -> None:
        self.rows: dict[str, JobRecord] = {}
        self.keys: list[str] = []
        self.broken = False
        self.stuck: threading.Event | None = None
        self.closed = False
        self.threads: set[str] = set()

    def record(self, record: JobRecord) -> None:
        self.threads.add(threading.current_thread().name)
        if self.stuck is not None:
            self.stuck.wait(10)
        if self.broken:
            raise JournalFullError("The disk is full")
        self.rows.setdefault(record.job_id, record)

    def totals(self) -> JournalTotals:
        return JournalTotals(len(self.rows), 3 * len(self.rows))

    def remember_key(self, public_text: str, at: dt.datetime) -> None:
        self.keys.append(public_text)

    def close(self) -> None:
        self.closed = True


async def nothing_to_prepare(_model: str) -> None:
    """The model is in memory."""


@dataclass
class Desk:
    """A job runner among fakes, and requests made for it."""

    engine: FakeEngine
    books: FakeBooks
    keys: KeyPair
    runner: JobRunner
    session: KeyPair = field(default_factory=KeyPair.generate)

    def sealed(self, body: bytes | dict[str, Any]) -> EncryptedPayload:
        """A body as the coordinator seals it."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return Channel(self.session, self.keys.public_text).payload(raw)

    def reply(self) -> FakeReply:
        """A reply that can open what is sent."""
        return FakeReply(self.session, self.keys.public_text)

    def send(
        self, body: bytes | dict[str, Any] | EncryptedPayload | None, request_id: str = "job-1"
    ) -> FakeReply:
        """Start a request."""
        box = body if body is None or isinstance(body, EncryptedPayload) else self.sealed(body)
        reply = self.reply()
        self.runner.start(InferenceRequest(request_id=request_id, encrypted_body=box), reply)
        return reply


def chat(**changes: Any) -> dict[str, Any]:
    """A chat request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **changes}


@asynccontextmanager
async def desk(
    engine: FakeEngine | None = None,
    *,
    max_jobs: int = 8,
    prepare: Callable[[str], Any] = nothing_to_prepare,
    served: frozenset[str] = SERVED,
    enclave_key: SigningKey | None = None,
    promises_kept: Callable[[], bool] = lambda: True,
) -> AsyncIterator[Desk]:
    """A job runner; when the block ends, its jobs must have ended or are cut."""
    engine = engine or FakeEngine()
    books, keys = FakeBooks(), KeyPair.generate()
    terms = Terms(
        key_pair=keys,
        price=lambda _model: Price(1_000_000, 2_000_000),
        linked=lambda: True,
        now=lambda: NOW,
        flush_seconds=0,
        chunks_per_second=math.inf,
        max_jobs=max_jobs,
        enclave_key=enclave_key,
        promises_kept=promises_kept,
    )
    offer = Offer(models=lambda: (MODEL,), prepare=prepare, served=served)
    tally = Tally()
    async with asyncio.TaskGroup() as tasks:
        answers = Answers(engine, offer, tally, tasks, terms.now)
        runner = JobRunner(answers, books, terms, tally, tasks)
        try:
            yield Desk(engine, books, keys, runner)
        finally:
            runner.abort_all("the test is over")


class FakeLoader:
    """An engine's loading half."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail: dict[str, Exception] = {}
        self.stuck: Exception | None = None
        """What an unload ends with, if not with the model gone."""
        self.room: int | None = None
        """How many models fit at once; None for any number."""
        self.held: list[str] = []

    async def load(self, model_id: str, path: Path, *, make_room: bool = True) -> None:
        self.calls.append(f"load {model_id}")
        await asyncio.sleep(0)
        if model_id in self.fail:
            raise self.fail[model_id]
        if self.room is not None and len(self.held) >= self.room:
            if not make_room:
                raise NoRoomError(model_id, needed_gb=2, held_gb=3, ceiling_gb=4, ever=True)
            del self.held[0]
        self.held.append(model_id)

    def loaded(self, model_id: str) -> object | None:
        return model_id if model_id in self.held else None

    async def unload(self, model_id: str) -> None:
        self.calls.append(f"unload {model_id}")
        await asyncio.sleep(0)
        if self.stuck is not None:
            raise self.stuck
        self.held.remove(model_id)


def not_loaded() -> ModelNotLoadedError:
    """An engine's refusal, with a reason that is not for consumers."""
    return ModelNotLoadedError(503, "not in memory", why="the owner's business")
