"""Requests that wait for a provider to come free: a short queue a model, in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

from darkbloom_provider.coordinator.ledger.tab import Tab
from darkbloom_provider.coordinator.providers.attempts import Attempt, AttemptFailedError
from darkbloom_provider.coordinator.providers.registry import Session
from darkbloom_provider.coordinator.routing.choice import Demand


@dataclass(frozen=True, slots=True)
class Placement:
    """A request given to a provider; the provider's place is taken until it is released."""

    session: Session
    attempt: Attempt


@dataclass(slots=True, eq=False)
class Waiter:
    """One request in a queue."""

    demand: Demand
    tab: Tab
    placed: asyncio.Future[Placement] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def refuse(self, error: Exception) -> None:
        """End the waiting with an error, unless it has ended already."""
        if not self.placed.done():
            self.placed.set_exception(error)


class WaitingRoom:
    """The queues."""

    def __init__(self, per_model: int) -> None:
        self._per_model = per_model
        self._queues: dict[str, deque[Waiter]] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def count(self, model: str) -> int:
        """How many wait for a model."""
        return len(self._queues.get(model, ()))

    def enter(self, demand: Demand, tab: Tab) -> Waiter:
        """Queue a request.

        Raises:
            AttemptFailedError: The queue of this model is full (503).
        """
        queue = self._queues.setdefault(demand.model, deque())
        if len(queue) >= self._per_model:
            raise unavailable(f"{self._per_model} requests are already waiting for this model")
        waiter = Waiter(demand, tab)
        queue.append(waiter)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Take a request out of its queue, served or not."""
        queue = self._queues.get(waiter.demand.model)
        if queue is not None and waiter in queue:
            queue.remove(waiter)
            if not queue:
                del self._queues[waiter.demand.model]

    def serve(self, place: Callable[[Demand, Tab], Placement | None]) -> None:
        """Place whoever can be placed now, in order."""
        for queue in list(self._queues.values()):
            for waiter in list(queue):
                placement = None if waiter.placed.done() else place(waiter.demand, waiter.tab)
                if placement is not None:
                    waiter.placed.set_result(placement)
                    self.leave(waiter)

    def refuse_all(self, error: AttemptFailedError) -> None:
        """End all waiting with an error."""
        for queue in list(self._queues.values()):
            for waiter in queue:
                waiter.refuse(error)


def unavailable(message: str) -> AttemptFailedError:
    """No provider can serve this model now."""
    return AttemptFailedError(
        message, status_code=HTTPStatus.SERVICE_UNAVAILABLE, kind="model_not_available"
    )
