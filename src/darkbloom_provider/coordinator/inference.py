"""`POST /v1/chat/completions`: from the consumer's request to the last byte of the answer.

One reservation a request, up to three providers before the first chunk, one of them after it. The
books of a request are closed before its answer is: a balance read right after a reply is current.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from darkbloom_provider import logs
from darkbloom_provider.coordinator import relay, replies
from darkbloom_provider.coordinator.attempts import (
    AttemptFailedError,
    ConsumerLeftError,
    Piece,
    SilentProviderError,
    SlowConsumerError,
)
from darkbloom_provider.coordinator.consumer import Consumer
from darkbloom_provider.coordinator.database import LedgerUnavailableError
from darkbloom_provider.coordinator.endpoints import Endpoint
from darkbloom_provider.coordinator.guards import ANY, admitted
from darkbloom_provider.coordinator.hub import Hub
from darkbloom_provider.coordinator.orders import Order, read_order
from darkbloom_provider.coordinator.registry import Session
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.coordinator.shapes import (
    ANYTHING,
    BOOLEAN,
    NON_EMPTY,
    Operation,
    optional,
    record,
)
from darkbloom_provider.coordinator.tab import Books, Tab
from darkbloom_provider.coordinator.waiting import Placement, unavailable
from darkbloom_provider.protocol.messages import InferenceComplete, Usage
from darkbloom_provider.protocol.openai import CHAT_ENDPOINT, error_body

_UNSAFE_IN_HEADER: Final = re.compile(r"[^\x20-\x7e]")
_HEADER_LENGTH: Final = 200

_log = logs.get("coordinator")


@dataclass(slots=True)
class Meter:
    """Tokens that have been relayed to a consumer, for the case that it leaves."""

    usage: Usage
    """At first the estimate of the prompt; from the first count of the provider on, its figure."""
    pieces: int = 0

    def relayed(self, piece: Piece) -> None:
        """One more piece has been written: the provider's running count, else one token."""
        self.pieces += 1
        ours, said = self.usage.completion_tokens, piece.usage
        if said is None:
            self.usage = self.usage.model_copy(update={"completion_tokens": ours + 1})
        elif said.completion_tokens >= ours:
            self.usage = said
        else:
            self.usage = said.model_copy(update={"completion_tokens": ours})


def endpoint(services: Services, hub: Hub, books: Books) -> Endpoint:
    """The endpoint's declaration, bound to the coordinator's parts."""
    operation = Operation(
        "Ask a model; the answer is one object, or with `stream` an event stream",
        ANYTHING,
        record(
            model=NON_EMPTY,
            messages={"type": "array", "minItems": 1, "items": {"type": "object"}},
            stream=optional(BOOLEAN),
        ),
        errors=(402, 404, 502, 504),
    )
    answer = ChatCompletions(services, hub, books)
    return Endpoint("POST", CHAT_ENDPOINT, answer, ANY.limited("consumer"), operation)


class ChatCompletions:
    """The endpoint, as an ASGI application: it must notice when its caller leaves."""

    def __init__(self, services: Services, hub: Hub, books: Books) -> None:
        self._services = services
        self._hub = hub
        self._books = books

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Errors before any work are left to the application's handlers."""
        request = Request(scope, receive)
        limits = self._hub.limits
        caller = admitted(request)
        body = await replies.read_body(
            request, limit=limits.request_body_bytes, seconds=limits.request_body_seconds
        )
        order = read_order(body, self._services.catalogue)
        with self._hub.requests:
            tab = await self._books.reserve(
                reservation_id=self._hub.sources.new_id(),
                account_id=caller.account_id,
                model=order.model,
                price=order.price,
                prompt_tokens=order.most_prompt_tokens,
                output_tokens=order.demand.max_output_tokens,
            )
            consumer = Consumer(receive, send, write_patience=self._hub.timing.idle)
            async with asyncio.TaskGroup() as tasks:
                watcher = tasks.create_task(consumer.watch())
                try:
                    await self._serve(order, tab, consumer)
                finally:
                    watcher.cancel()

    async def _serve(self, order: Order, tab: Tab, consumer: Consumer) -> None:
        failure: AttemptFailedError | None = None
        try:
            await self._answer(order, tab, consumer)
        except AttemptFailedError as error:
            failure = error
        except ConsumerLeftError:
            _log.info("consumer_left", model=order.model)
        except LedgerUnavailableError as error:
            _log.error("settlement_failed", reason=error.why)
            failure = unavailable("the ledger is not available now; nothing was charged")
        finally:
            await _close(tab)
        if failure is not None:
            await _tell(consumer, failure)

    async def _answer(self, order: Order, tab: Tab, consumer: Consumer) -> None:
        placement, first = await self._first_chunk(order, tab, consumer)
        meter = Meter(Usage(prompt_tokens=order.demand.prompt_tokens))
        relay_answer = self._stream if order.stream else self._whole
        try:
            with consumer.interrupts(placement.attempt.abandon):
                await relay_answer(order, placement, first, consumer, meter)
        except (ConsumerLeftError, SlowConsumerError):
            if meter.pieces:
                session, job_id = placement.session, placement.attempt.job_id
                await tab.settle_partial(job_id, session.serving, meter.usage)
            raise
        except SilentProviderError:
            self._hub.count_failure(placement)
            raise
        finally:
            await self._hub.release(placement)

    # ------------------------------------------------------------ before the first chunk

    async def _first_chunk(
        self, order: Order, tab: Tab, consumer: Consumer
    ) -> tuple[Placement, Piece | InferenceComplete]:
        """The provider that has begun to answer, and what it said first.

        Raises:
            AttemptFailedError: The last failure, when no provider is left to try.
            ConsumerLeftError: Nobody waits for the answer any more.
        """
        demand = order.demand
        placement: Placement | None = await self._hub.place_or_wait(demand, tab, consumer)
        for remaining in reversed(range(self._hub.limits.attempts)):
            if placement is None:
                break
            try:
                return placement, await self._ask(order, placement, consumer)
            except AttemptFailedError as error:
                failure = error
                if isinstance(error, SilentProviderError):
                    self._hub.count_failure(placement)
                await self._hub.release(placement)
            except BaseException:
                await self._hub.release(placement)
                raise
            demand = replace(demand, tried=demand.tried | {placement.session.id})
            placement = self._hub.place(demand, tab) if remaining else None
        raise failure

    async def _ask(
        self, order: Order, placement: Placement, consumer: Consumer
    ) -> Piece | InferenceComplete:
        attempt, timing = placement.attempt, self._hub.timing
        if not await placement.session.wire.send(attempt.request(order.body), timing.accept):
            raise AttemptFailedError("the provider could not be reached")
        with consumer.interrupts(attempt.abandon):
            return await attempt.first(timing)

    # ------------------------------------------------------------ from the first chunk on

    async def _stream(
        self,
        order: Order,
        placement: Placement,
        first: Piece | InferenceComplete,
        consumer: Consumer,
        meter: Meter,
    ) -> None:
        del order
        stream = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        await consumer.start(200, stream | provider_headers(placement))
        event = first
        while isinstance(event, Piece):
            # What has piled up goes out in one write.
            pieces = [event, *placement.attempt.more()]
            data = b"".join(filter(None, (relay.stream_event(piece.text) for piece in pieces)))
            if data:
                await consumer.write(data)
            for piece in pieces:
                meter.relayed(piece)
            event = await placement.attempt.next(self._hub.timing.idle)
        await consumer.finish((relay.receipt_event(event) or b"") + relay.DONE)

    async def _whole(
        self,
        order: Order,
        placement: Placement,
        first: Piece | InferenceComplete,
        consumer: Consumer,
        meter: Meter,
    ) -> None:
        del meter  # Nothing is relayed before everything is there.
        sources, chunks, size, event = self._hub.sources, [], 0, first
        deadline = sources.monotonic() + self._hub.timing.idle
        while isinstance(event, Piece):
            chunks.append(event.text)
            size += len(event.text)
            if size > self._hub.limits.job_buffer_bytes:
                raise AttemptFailedError("the answer is larger than the coordinator takes")
            event = await placement.attempt.next(max(0.0, deadline - sources.monotonic()))
        reply = relay.reply(
            chunks,
            model=order.model,
            job_id=placement.attempt.job_id,
            created=int(sources.now().timestamp()),
            completion=event,
        )
        await _reply(consumer, 200, reply, provider_headers(placement))


def provider_headers(placement: Placement) -> dict[str, str]:
    """Who serves this request, as far as it is known; foreign text is made safe for a header."""
    session: Session = placement.session
    headers = {
        "X-Inference-Job-ID": placement.attempt.job_id,
        "X-Provider-Encrypted": "true",
        "X-Provider-Attested": "true" if session.attested else "false",
        "X-Provider-Trust-Level": session.trust,
        "X-Provider-Id": session.id,
        "X-Provider-Chip": session.hardware.chip_name,
        "X-Provider-Model": session.hardware.machine_model,
    }
    if session.attested and session.attestation is not None:
        headers["X-Provider-Serial"] = session.attestation.serial_number
        headers["X-Provider-Secure-Enclave"] = "true"
        headers["X-Attestation-Se-Public-Key"] = session.attestation.public_key
    return {
        name: _UNSAFE_IN_HEADER.sub("?", value)[:_HEADER_LENGTH].strip()
        for name, value in headers.items()
    }


async def _close(tab: Tab) -> None:
    """Nothing is left open: what nobody has settled is given back."""
    if tab.settlement is not None:
        return
    try:
        await tab.refund()
    except LedgerUnavailableError as error:
        # It stays open in the ledger and is refunded as soon as that can be written again.
        _log.error("refund_postponed", reason=error.why)


async def _tell(consumer: Consumer, failure: AttemptFailedError) -> None:
    try:
        if consumer.started:
            await consumer.finish(relay.error_event(failure.kind, failure.what))
        else:
            body = error_body(failure.kind, failure.what)
            await _reply(consumer, failure.status_code, body, {})
    except ConsumerLeftError:
        _log.info("consumer_left", reason="before the error was told")


async def _reply(
    consumer: Consumer, status: int, body: Mapping[str, Any], headers: Mapping[str, str]
) -> None:
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    data = text.encode("utf-8", "replace")
    content = {"Content-Type": "application/json", "Content-Length": str(len(data))}
    await consumer.start(status, content | dict(headers))
    await consumer.finish(data)
