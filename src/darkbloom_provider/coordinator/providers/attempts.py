"""One try of one request at one provider: what came in for it, and how it ended.

The hub puts in what the provider sends, the consumer's handler takes it out. Nothing is dropped:
what piles up for a slow reader is bounded in bytes, and at the bound the try ends with an error
after everything that had arrived.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from darkbloom_provider.coordinator.ledger.tab import Tab
from darkbloom_provider.coordinator.providers.patience import Patience
from darkbloom_provider.coordinator.routing.choice import InFlight
from darkbloom_provider.coordinator.settings import Timing
from darkbloom_provider.coordinator.store.database import LedgerUnavailableError
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.protocol.boxes import BoxError, Channel, KeyPair
from darkbloom_provider.protocol.messages import (
    InferenceComplete,
    InferenceRequest,
    InferenceResponseChunk,
    Usage,
)

_ERROR_STATUSES: Final = range(400, 600)


class AttemptFailedError(DarkbloomError):
    """A provider did not finish a request. `status_code` and `kind` are what the consumer sees."""

    def __init__(
        self,
        message: str,
        *,
        status_code: int = HTTPStatus.BAD_GATEWAY,
        kind: str = "provider_error",
    ) -> None:
        super().__init__(message)
        self.status_code = int(status_code)
        self.kind = kind


class SlowConsumerError(AttemptFailedError):
    """More output was waiting for the consumer than the coordinator holds."""

    def __init__(self) -> None:
        super().__init__(
            "the answer was read too slowly and was cut off",
            status_code=HTTPStatus.GATEWAY_TIMEOUT,
            kind="timeout",
        )


class SilentProviderError(AttemptFailedError):
    """The provider did not answer in time."""

    def __init__(self, kind: str) -> None:
        super().__init__(
            "the provider did not answer in time",
            status_code=HTTPStatus.GATEWAY_TIMEOUT,
            kind=kind,
        )


class ConsumerLeftError(Exception):
    """The consumer closed the connection: nobody is listening any more."""


class InvalidChunkError(Exception):
    """A chunk that is not sealed, or not for this request: its sender cannot be trusted."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One decrypted chunk."""

    text: str
    usage: Usage | None
    """The provider's running count at this chunk, if it keeps one."""


class Attempt:
    """See the module. Used from one event loop only."""

    def __init__(
        self, *, job_id: str, provider_key: str, load: InFlight, tab: Tab, buffer_bytes: int
    ) -> None:
        """Open a sealed channel of its own to the provider.

        Raises:
            BoxError: `provider_key` is not usable.
        """
        self.job_id = job_id
        """Also the `request_id` on the wire and the job of the ledger."""
        self.load = load
        self.tab = tab
        """Who pays."""
        self.accepted = False
        self._provider_key = provider_key
        self._channel = Channel(KeyPair.generate(), provider_key)
        self._buffer_bytes = buffer_bytes
        self._buffered = 0
        self._pieces: deque[Piece] = deque()
        self._end: InferenceComplete | AttemptFailedError | None = None
        self._consumer_left = False
        self._wake = asyncio.Event()
        self._patience = Patience(self._wake.set)

    # ------------------------------------------------------------ the provider's side

    def request(self, body: bytes) -> InferenceRequest:
        """The message that asks the provider, with `body` sealed for it."""
        return InferenceRequest(request_id=self.job_id, encrypted_body=self._channel.payload(body))

    def accept(self) -> None:
        """The provider has taken the request."""
        self.accepted = True
        self._wake.set()

    def offer(self, chunk: InferenceResponseChunk) -> bool:
        """Take in one chunk. False if it would exceed the buffer: the try must then be ended.

        Raises:
            InvalidChunkError: It is not sealed, or not with the registered key for this request.
        """
        sealed = chunk.encrypted_data
        if chunk.data or sealed is None:
            raise InvalidChunkError("a chunk was not encrypted")
        if sealed.ephemeral_public_key != self._provider_key:
            raise InvalidChunkError("a chunk was sealed with another key than the registered one")
        try:
            text = self._channel.open(sealed.ciphertext).decode()
        except (BoxError, UnicodeDecodeError):
            raise InvalidChunkError("a chunk could not be opened") from None
        if self._buffered + len(text) > self._buffer_bytes and self._pieces:
            return False
        self._buffered += len(text)
        self._pieces.append(Piece(text, chunk.usage))
        self._wake.set()
        return True

    def end(self, how: InferenceComplete | AttemptFailedError) -> None:
        """The provider's last word; later ones are ignored."""
        if self._end is None:
            self._end = how
            self._wake.set()

    def close(self) -> None:
        """It is over on both sides."""
        self._patience.stop()

    # ------------------------------------------------------------ the consumer's side

    def abandon(self) -> None:
        """The consumer has gone; whoever waits in `next` is told."""
        self._consumer_left = True
        self._wake.set()

    async def first(self, timing: Timing) -> Piece | InferenceComplete:
        """The first piece, or the completion of an empty answer.

        Raises:
            AttemptFailedError: Also when the provider stays silent for too long.
            ConsumerLeftError: Nobody waits for it any more.
        """
        try:
            async with asyncio.timeout(timing.accept) as patience:
                extended = False
                while not self._ready():
                    await self._wake.wait()
                    if self.accepted and not extended:
                        extended = True
                        patience.reschedule(asyncio.get_running_loop().time() + timing.idle)
        except TimeoutError:
            raise SilentProviderError("provider_error") from None
        return self._take()

    async def next(self, patience: float) -> Piece | InferenceComplete:
        """What comes next, waiting for it for `patience` seconds at most. Raises as `first`."""
        if not self._ready():
            with self._patience.of(patience) as waiting:
                while not self._ready():
                    if waiting.over:
                        raise SilentProviderError("timeout")
                    await self._wake.wait()
        return self._take()

    def more(self) -> list[Piece]:
        """The pieces that are here already, without waiting. None once the consumer has left."""
        pieces: list[Piece] = []
        while self._pieces and not self._consumer_left:
            piece = self._pieces.popleft()
            self._buffered -= len(piece.text)
            pieces.append(piece)
        return pieces

    def _ready(self) -> bool:
        ready = bool(self._pieces) or self._end is not None or self._consumer_left
        if not ready:
            self._wake.clear()
        return ready

    def _take(self) -> Piece | InferenceComplete:
        if self._consumer_left:
            raise ConsumerLeftError
        if self._pieces:
            piece = self._pieces.popleft()
            self._buffered -= len(piece.text)
            return piece
        if isinstance(self._end, AttemptFailedError):
            raise self._end
        if self._end is None:  # pragma: no cover - callers take only what is ready
            raise RuntimeError("nothing has arrived")
        return self._end


def provider_failure(error: str, status_code: int) -> AttemptFailedError:
    """The consumer's view of `inference_error`: statuses that are none become 502 or 503."""
    if status_code == 0:
        status_code = HTTPStatus.SERVICE_UNAVAILABLE
    elif status_code not in _ERROR_STATUSES:
        status_code = HTTPStatus.BAD_GATEWAY
    return AttemptFailedError(error or "the provider failed", status_code=status_code)


def unsettled(error: DarkbloomError) -> AttemptFailedError:
    """What the consumer is told of a job that was done and could not be booked."""
    if isinstance(error, LedgerUnavailableError):
        return AttemptFailedError(
            "the ledger is not available now; nothing was charged",
            status_code=HTTPStatus.SERVICE_UNAVAILABLE,
            kind="server_error",
        )
    return AttemptFailedError(
        "the coordinator could not settle this request",
        status_code=HTTPStatus.INTERNAL_SERVER_ERROR,
        kind="internal_error",
    )


def stopping() -> AttemptFailedError:
    """The consumer's view of a coordinator that stops."""
    return AttemptFailedError(
        "the coordinator is stopping",
        status_code=HTTPStatus.SERVICE_UNAVAILABLE,
        kind="server_error",
    )
