"""What one consumer request owes: reserved once, closed exactly once, whoever comes first.

The hub closes it when the provider's completion arrives, the consumer's handler when the request
ends in any other way. Both may try; the ledger keeps the first, and the second is told of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from darkbloom_provider import logs
from darkbloom_provider.coordinator import ledger
from darkbloom_provider.coordinator.database import Database
from darkbloom_provider.coordinator.ledger import Serving, Settlement
from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.protocol.messages import Usage
from darkbloom_provider.protocol.money import Price, cost

_log = logs.get("coordinator")


@dataclass(frozen=True, slots=True)
class Books:
    """Where tabs are kept, under which policy and clock."""

    database: Database
    policy: Policy
    now: Callable[[], datetime]

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
                lambda connection: ledger.reserve(
                    connection,
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
        return tab


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
        await self._close(
            lambda connection: ledger.settle(
                connection,
                reservation_id=self._reservation_id,
                job_id=job_id,
                serving=serving,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                price=self._price,
                policy=self._books.policy,
                now=self._books.now(),
            )
        )

    async def settle_partial(self, job_id: str, serving: Serving, usage: Usage) -> None:
        """The consumer left: charge and credit what was relayed. Raises as `settle`."""
        await self._close(
            lambda connection: ledger.settle_partial(
                connection,
                reservation_id=self._reservation_id,
                job_id=job_id,
                serving=serving,
                prompt_tokens=usage.prompt_tokens,
                relayed_tokens=usage.completion_tokens,
                price=self._price,
                policy=self._books.policy,
                now=self._books.now(),
            )
        )

    async def refund(self) -> None:
        """Nothing is owed: give all of it back. Raises as `settle`."""
        await self._close(
            lambda connection: ledger.refund(
                connection, self._reservation_id, now=self._books.now()
            )
        )

    async def _close(self, operation: Callable[[Connection], Settlement | None]) -> None:
        async with self._lock:
            if self._settlement is not None:
                return
            self._settlement = await self._books.database.write(operation)
            closed = self._settlement
        if closed is not None:
            _log.info(
                "job_closed",
                outcome=closed.outcome,
                job=closed.job_id,
                cost_micro_usd=closed.cost,
                refund_micro_usd=closed.refund,
                payout_micro_usd=closed.payout,
            )
            if closed.clamped:
                _log.error("job_cost_clamped", job=closed.job_id, cost_micro_usd=closed.cost)
