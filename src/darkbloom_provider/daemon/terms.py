"""What requests are served with: an engine, a way back, books, and the terms."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol

from darkbloom_provider.earnings.journal import JobRecord
from darkbloom_provider.engine import requests as engine
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.protocol import money
from darkbloom_provider.protocol.boxes import KeyPair
from darkbloom_provider.protocol.messages import EncryptedPayload, Usage
from darkbloom_provider.protocol.openai import FinishReason
from darkbloom_provider.protocol.requests.request import ALL_FEATURES
from darkbloom_provider.protocol.signed import SigningKey

MAX_JOBS: Final = 64
"""Requests held at once. The network sends 12 at most to one machine; more is a fault."""
MAX_CHOICES: Final = 32
"""Answers that one request may ask for: all of them must find room in the engine's line."""
FLUSH_SECONDS: Final = 0.04
"""Least time between two chunks of an answer: the network's coordinator drops what piles up."""
CHUNKS_PER_SECOND: Final = 160.0
"""Of all answers together, beyond which each gathers for longer: however little text is in a chunk,
provider, coordinator and consumer handle it."""
MOST_FLUSH_SECONDS: Final = 0.1
"""Most time between two chunks of an answer, however many there are: readers should not notice."""
SERVED: Final = ALL_FEATURES
"""What is served, in the words of `protocol.requests`."""


class Generation(Protocol):
    """One completion being generated."""

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None unless it is whole."""
        ...

    @property
    def stop_sequence(self) -> str | None:
        """The stop string that ended it, if one did."""
        ...

    @property
    def prompt_end(self) -> str:
        """How the rendered prompt ends; known before the first delta."""
        ...

    @property
    def usage(self) -> engine.Usage:
        """What the engine counted so far; final at the end."""
        ...

    def __aiter__(self) -> AsyncIterator[engine.Delta]:
        """Text as it comes, coalesced while nobody reads."""
        ...

    def cancel(self) -> None:
        """Stop generating. Idempotent."""
        ...

    async def released(self) -> None:
        """Wait until the engine is done with it."""
        ...


class Inference(Protocol):
    """What answers need of the engine."""

    def submit(self, request: engine.GenerationRequest) -> Generation:
        """Take a request, or raise `EngineError`."""
        ...

    def loaded(self, model_id: str) -> engine.LoadedModel | None:
        """What was learnt of a model in memory; None if it is not there."""
        ...


class Reply(Protocol):
    """The way back to the coordinator. Every method waits while the connection is busy.

    Each must be ended with `complete` or `error`, unless the job is cancelled or aborted. All raise
    `ReplyClosedError` once nobody listens any more.
    """

    async def accepted(self) -> None:
        """The request is being worked on."""
        ...

    async def chunk(self, payload: EncryptedPayload, usage: Usage) -> None:
        """One sealed piece, with the token counts so far."""
        ...

    async def complete(
        self, usage: Usage, response_hash: str | None = None, se_signature: str | None = None
    ) -> None:
        """The request ended well."""
        ...

    async def error(self, message: str, status_code: int) -> None:
        """The request failed."""
        ...


class Books(Protocol):
    """Where completed jobs are written down."""

    def record(self, record: JobRecord) -> None:
        """Take a completed job; must not block."""
        ...


class RefusedError(DarkbloomError):
    """A request this provider does not serve. The message reaches the consumer."""

    def __init__(self, message: str, status_code: HTTPStatus) -> None:
        super().__init__(message)
        self.status_code = int(status_code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What may be asked for here."""

    models: Callable[[], Collection[str]]
    """Ids of the models that can answer."""
    prepare: Callable[[str], Awaitable[None]]
    """Has one of them in memory on return, or raises a `DarkbloomError`."""
    served: frozenset[str] = SERVED
    max_choices: int = MAX_CHOICES


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the network's jobs are served under."""

    key_pair: KeyPair
    price: Callable[[str], money.Price]
    linked: Callable[[], bool]
    """Whether the latest registration named an account, for the journal."""
    now: Callable[[], dt.datetime]
    flush_seconds: float = FLUSH_SECONDS
    chunks_per_second: float = CHUNKS_PER_SECOND
    max_jobs: int = MAX_JOBS
    enclave_key: SigningKey | None = None
    """Signs what was answered; None where there is no Secure Enclave."""
    promises_kept: Callable[[], bool] = lambda: True
    """Whether all that was registered of privacy still holds, measured now."""

    def gather_seconds(self, jobs: int) -> float:
        """How long text of an answer gathers for its next chunk while so many jobs are served."""
        return max(self.flush_seconds, min(jobs / self.chunks_per_second, MOST_FLUSH_SECONDS))
