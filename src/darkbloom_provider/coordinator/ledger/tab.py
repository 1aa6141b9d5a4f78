"""What one consumer request owes: reserved once, closed exactly once, whoever comes first.

The hub closes it when the provider's completion arrives, the consumer's handler when the request
ends in any other way. Both may try; the ledger keeps the first, and the second is told of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from darkbloom_provider import logs
from darkbloom_provider.coordinator.ledger.reservations import (
    Refund,
    Reserve,
    Serving,
    Settle,
    Settlement,
)
from darkbloom_provider.coordinator.metrics import Metrics
from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.coordinator.store.database import Database, LedgerUnavailableError
from darkbloom_provider.protocol.messages import Usage
from darkbloom_provider.protocol.money import Price, cost

CLOSING_INTERVAL_S: Final = 15.0
_NO_PRICE: Final = Price(0, 0)

_log = logs.get("coordinator")


@dataclass(frozen=True, slots=True)
class Books:
    """Where tabs are kept, under which policy and clock."""

    database: Database
    policy: Policy
    now: Callable[[], datetime]
    metrics: Metrics = field(default_factory=Metrics)
    unclosed: set[str] = field(default_factory=set)
    """Reservations that may be open in the ledger although their requests have ended."""

    async def reserve(
        self,
        *,
        reservation_id: str,
        account_id: str,
        model: str,
        price: Price,
        prompt_tokens: int,
        output_tokens: int,
    ) -> Tab:
        """Set aside the most that a request can cost.

        Raises:
            InsufficientFundsError: The account holds less. Nothing was debited.
            LedgerUnavailableError: The ledger cannot be written now.
        """
        amount = cost(
            prompt_tokens, output_tokens, price, minimum=self.policy.minimum_charge_micro_usd
        )
        tab = Tab(self, reservation_id, price)
        try:
            await self.database.write(
                Reserve(
                    reservation_id=reservation_id,
                    account_id=account_id,
                    model=model,
                    amount=amount,
                    now=self.now(),
                    run=self.database.run,
                )
            )
        except asyncio.CancelledError:
            # It may have been written all the same; a refund of nothing is harmless.
            await tab.refund()
            raise
        except LedgerUnavailableError:
            # So may this one, if the answer of a server was lost.
            self.unclosed.add(reservation_id)
            raise
        return tab

    async def close_forever(self) -> None:
        """Refund what the ledger did not take when its request ended, and what the dead left.

        Ends only by being cancelled.
        """
        while True:
            await asyncio.sleep(CLOSING_INTERVAL_S)
            try:
                await self.close_leftovers()
            except LedgerUnavailableError as error:
                _log.warning("leftovers_wait_for_ledger", reason=error.why)

    async def close_leftovers(self) -> int:
        """Refund them now; how many there were.

        Raises:
            LedgerUnavailableError: Not yet.
        """
        refunded = await self.database.recover(now=self.now())
        for reservation_id in list(self.unclosed):
            await Tab(self, reservation_id, _NO_PRICE).refund()
            refunded += 1
        if refunded:
            _log.warning("reservations_refunded", count=refunded)
        return refunded


class Tab:
    """One reservation. See the module."""

    def __init__(self, books: Books, reservation_id: str, price: Price) -> None:
        self._books = books
        self._reservation_id = reservation_id
        self._price = price
        self._lock = asyncio.Lock()
        self._settlement: Settlement | None = None

    @property
    def settlement(self) -> Settlement | None:
        """How it was closed; None while it is open."""
        return self._settlement

    async def settle(self, job_id: str, serving: Serving, usage: Usage) -> None:
        """The provider completed the job: charge it, refund the rest, credit the owner.

        Raises:
            LedgerUnavailableError: Nothing was written; the reservation is still open.
        """
        await self._close(self._order(job_id, serving, usage), usage)

    async def settle_partial(self, job_id: str, serving: Serving, usage: Usage) -> None:
        """The consumer left: charge and credit what was relayed. Raises as `settle`."""
        await self._close(self._order(job_id, serving, usage, partial=True), usage)

    async def refund(self) -> None:
        """Nothing is owed: give all of it back. Raises as `settle`."""
        await self._close(Refund(reservation_id=self._reservation_id, now=self._books.now()))

    def _order(
        self, job_id: str, serving: Serving, usage: Usage, *, partial: bool = False
    ) -> Settle:
        return Settle(
            reservation_id=self._reservation_id,
            job_id=job_id,
            serving=serving,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            price=self._price,
            policy=self._books.policy,
            now=self._books.now(),
            partial=partial,
        )

    async def _close(self, order: Settle | Refund, usage: Usage | None = None) -> None:
        async with self._lock:
            if self._settlement is not None:
                return
            try:
                self._settlement = await self._books.database.write(order)
            except BaseException as error:
                # However this ends, it may still be open.
                if isinstance(error, Exception):
                    self._books.metrics.not_closed()
                self._books.unclosed.add(self._reservation_id)
                raise
            self._books.unclosed.discard(self._reservation_id)
            closed = self._settlement
        if closed is not None:
            if closed.applied:
                self._books.metrics.closed(closed, usage)
            _log.info(
                "job_closed",
                outcome=closed.outcome,
                job=closed.job_id,
                cost_micro_usd=closed.cost,
                refund_micro_usd=closed.refund,
                payout_micro_usd=closed.payout,
            )
            if closed.clamped:
                # An honest count fits into the reservation (`estimate.most_prompt_tokens`).
                _log.warning("job_cost_clamped", job=closed.job_id, cost_micro_usd=closed.cost)
