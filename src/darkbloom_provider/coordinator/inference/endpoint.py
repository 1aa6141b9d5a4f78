"""The endpoints that ask a model: from the consumer's request to the last byte of the answer.

One reservation a request, up to three providers before the first chunk, one of them after it. The
books of a request are closed before its answer is: a balance read right after a reply is current.
All of it is the same for every dialect; how an answer reads is up to `dialects` and `delivery`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TypedDict

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from darkbloom_provider import logs
from darkbloom_provider.coordinator.accounts.people import Principal
from darkbloom_provider.coordinator.inference import dialects, sealing
from darkbloom_provider.coordinator.inference.consumer import Consumer
from darkbloom_provider.coordinator.inference.delivery import Delivery
from darkbloom_provider.coordinator.inference.dialects import Dialect
from darkbloom_provider.coordinator.inference.meter import Meter
from darkbloom_provider.coordinator.inference.orders import Order, read_order
from darkbloom_provider.coordinator.inference.sealing import Clear, EnvelopeError, Wrapping
from darkbloom_provider.coordinator.ledger.tab import Books, Tab
from darkbloom_provider.coordinator.providers.attempts import (
    AttemptFailedError,
    ConsumerLeftError,
    Piece,
    SilentProviderError,
    SlowConsumerError,
)
from darkbloom_provider.coordinator.providers.headers import provider_headers
from darkbloom_provider.coordinator.providers.hub import Hub
from darkbloom_provider.coordinator.providers.waiting import Placement, unavailable
from darkbloom_provider.coordinator.rest import replies
from darkbloom_provider.coordinator.rest.guards import admitted
from darkbloom_provider.coordinator.rest.replies import ApiError
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.coordinator.store.database import LedgerUnavailableError
from darkbloom_provider.protocol.messages import InferenceComplete, Usage
from darkbloom_provider.protocol.requests.request import MESSAGES_ENDPOINT

_log = logs.get("coordinator")


class _Names(TypedDict):
    job_id: str
    created: int


class Inference:
    """One of the endpoints, as an ASGI application: it must notice when its caller leaves."""

    def __init__(self, services: Services, hub: Hub, books: Books, endpoint: str) -> None:
        self._services = services
        self._hub = hub
        self._books = books
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. What fails before it is opened is left to the app's handlers."""
        request = Request(scope, receive)
        consumer = Consumer(receive, send, write_patience=self._hub.timing.idle)
        try:
            body, wrapping = await self._opened(request)
        except EnvelopeError as error:
            # What clients match on reads the same at every endpoint.
            await _tell(Delivery(consumer, "chat", Clear()), error)
            return
        with self._hub.requests:
            try:
                order = read_order(body, self._services.catalogue, self._endpoint)
                tab = await self._reserve(order, admitted(request))
            except replies.EXPECTED as error:
                delivery = Delivery(consumer, self._error_dialect, wrapping)
                await _tell(delivery, replies.api_error_of(error))
                return
            delivery = Delivery(consumer, order.asked.dialect, wrapping)
            async with asyncio.TaskGroup() as tasks:
                watcher = tasks.create_task(consumer.watch())
                try:
                    await self._serve(order, tab, delivery)
                finally:
                    watcher.cancel()

    @property
    def _error_dialect(self) -> Dialect:
        """Of errors before anybody has read what is asked: the others' bodies are alike."""
        return "messages" if self._endpoint == MESSAGES_ENDPOINT else "chat"

    async def _opened(self, request: Request) -> tuple[bytes, Wrapping]:
        limits = self._hub.limits
        body = await replies.read_body(
            request, limit=limits.request_body_bytes, seconds=limits.request_body_seconds
        )
        if sealing.is_sealed(request.headers.get("content-type")):
            return sealing.opened(body, self._services.sealing)
        return body, Clear()

    async def _reserve(self, order: Order, caller: Principal) -> Tab:
        return await self._books.reserve(
            reservation_id=self._hub.sources.new_id(),
            account_id=caller.account_id,
            model=order.model,
            price=order.price,
            prompt_tokens=order.most_prompt_tokens,
            output_tokens=order.demand.max_output_tokens,
        )

    async def _serve(self, order: Order, tab: Tab, delivery: Delivery) -> None:
        failure: AttemptFailedError | None = None
        try:
            await self._answer(order, tab, delivery)
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
            await _tell(delivery, ApiError(failure.status_code, failure.kind, failure.what))

    async def _answer(self, order: Order, tab: Tab, delivery: Delivery) -> None:
        consumer = delivery.consumer
        placement, first = await self._first_chunk(order, tab, consumer)
        meter = Meter(Usage(prompt_tokens=order.demand.prompt_tokens))
        relay_answer = self._stream if order.stream else self._whole
        try:
            with consumer.interrupts(placement.attempt.abandon):
                await relay_answer(order, placement, first, delivery, meter)
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
        delivery: Delivery,
        meter: Meter,
    ) -> None:
        told = dialects.stream(order.asked, **self._names(placement))
        await delivery.begin(provider_headers(placement))
        await delivery.send(told.begin())
        event = first
        while isinstance(event, Piece):
            # What has piled up goes out in one write.
            pieces = [event, *placement.attempt.more()]
            await delivery.send([one for piece in pieces for one in told.events(piece.text)])
            for piece in pieces:
                meter.relayed(piece)
            event = await placement.attempt.next(self._hub.timing.idle)
        await delivery.end(told.end(event))

    async def _whole(
        self,
        order: Order,
        placement: Placement,
        first: Piece | InferenceComplete,
        delivery: Delivery,
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
        reply = dialects.whole(order.asked, chunks, event, **self._names(placement))
        await delivery.whole(reply, provider_headers(placement))

    def _names(self, placement: Placement) -> _Names:
        created = int(self._hub.sources.now().timestamp())
        return {"job_id": placement.attempt.job_id, "created": created}


async def _close(tab: Tab) -> None:
    """Nothing is left open: what nobody has settled is given back."""
    if tab.settlement is not None:
        return
    try:
        await tab.refund()
    except LedgerUnavailableError as error:
        # It stays open in the ledger and is refunded as soon as that can be written again.
        _log.error("refund_postponed", reason=error.why)


async def _tell(delivery: Delivery, error: ApiError) -> None:
    try:
        await delivery.fail(error)
    except ConsumerLeftError:
        _log.info("consumer_left", reason="before the error was told")
