"""The deposits of one coordinator over one rail: opened, heard of, and credited once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Connection

from darkbloom_provider import logs
from darkbloom_provider.coordinator.deposits import ledger
from darkbloom_provider.coordinator.deposits.ledger import Deposit
from darkbloom_provider.coordinator.deposits.rail import CheckoutEvent, CheckoutOrder, CheckoutRail
from darkbloom_provider.coordinator.rails.rail import (
    BadEventError,
    RailRefusedError,
    RailUnknownError,
    first_hearing,
)
from darkbloom_provider.coordinator.store.database import Database

_log = logs.get("coordinator")


class DepositDesk:
    """See the module."""

    def __init__(self, database: Database, rail: CheckoutRail, now: Callable[[], datetime]) -> None:
        self.rail = rail
        self._database = database
        self._now = now

    async def open(self, deposit: Deposit, order: CheckoutOrder) -> tuple[Deposit, str]:
        """A page where a deposit is paid, and its address. Again, it is the same page.

        Raises:
            RailRefusedError: There is none.
            RailUnknownError: There may be one; ask again.
            LedgerUnavailableError: It was not noted; ask again.
        """
        checkout = await self.rail.open(order)
        opened = await self._database.write(
            lambda c: ledger.opened(c, deposit.id, checkout.external_id)
        )
        return opened, checkout.url

    async def refresh(self, deposit: Deposit) -> Deposit:
        """Ask the rail about a deposit whose news may have been lost. It may not answer.

        Raises:
            LedgerUnavailableError: What it said was not noted.
        """
        if deposit.status == "completed" or deposit.external_id is None:
            return deposit
        try:
            report = await self.rail.report(deposit.external_id)
        except (RailRefusedError, RailUnknownError, BadEventError) as error:
            _log.warning("checkout_not_known", deposit=deposit.id, reason=error.what)
            return deposit
        if report is None:
            return deposit
        now, news = self._now(), report

        def operation(connection: Connection) -> Deposit:
            current = ledger.get(connection, deposit.id)
            return ledger.note(connection, current, news, external_id=None, now=now)

        noted = await self._database.write(operation)
        self._told(deposit, noted)
        return noted

    async def hear(self, event: CheckoutEvent) -> Deposit | None:
        """Take in what the rail tells; the deposit it is about, None if it is none of ours.

        Raises:
            LedgerUnavailableError: It was not noted, and must be sent again.
        """
        rail, now = self.rail.name, self._now()

        def operation(connection: Connection) -> tuple[Deposit | None, Deposit | None]:
            before = ledger.find(
                connection,
                rail,
                deposit_id=event.deposit_id,
                external_id=event.external_id,
                payment_id=event.payment_id,
            )
            if before is None or not first_hearing(connection, rail, event.id, event.type, now=now):
                return before, before
            after = before
            if event.report is not None:
                after = ledger.note(
                    connection, after, event.report, external_id=event.external_id, now=now
                )
            if event.reversal is not None:
                after = ledger.note_reversal(
                    connection, after, event.reversal, payment_id=event.payment_id
                )
            return before, after

        before, after = await self._database.write(operation)
        if before is not None and after is not None:
            self._told(before, after)
        elif event.report is not None or event.reversal is not None:
            # Perhaps of another coordinator on the same Stripe account; perhaps money of ours.
            _log.warning("checkout_event_of_nobody", type=event.type, event_id=event.id)
        return after

    def _told(self, before: Deposit, after: Deposit) -> None:
        """What the operator should know."""
        if after.credited > before.credited:
            _log.info("deposit_credited", deposit=after.id, amount_micro_usd=after.credited)
            if after.credited != after.amount:
                _log.warning("deposit_of_another_amount", deposit=after.id, asked=after.amount)
        if after.refunded > before.refunded:
            _log.error("deposit_refunded", deposit=after.id, amount_micro_usd=after.refunded)
        if after.disputed != before.disputed:
            _log.error("deposit_disputed", deposit=after.id, amount_micro_usd=after.disputed)
