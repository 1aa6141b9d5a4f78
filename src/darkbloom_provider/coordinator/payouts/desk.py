"""Takes withdrawals step by step to the bank, over crashes, timeouts and lost webhooks.

What is to be done next follows from the row in the ledger alone, so any coordinator can go on at
any time. Each step is a call of the rail and then one transaction that notes its outcome. If we
die in between, the same call is made again with the same key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection

from darkbloom_provider import logs
from darkbloom_provider.coordinator.payouts import receivers, withdrawals
from darkbloom_provider.coordinator.payouts.rail import PayoutRail, RailEvent, Receipt
from darkbloom_provider.coordinator.payouts.withdrawals import Withdrawal
from darkbloom_provider.coordinator.rails.rail import (
    RailRefusedError,
    RailUnknownError,
    first_hearing,
)
from darkbloom_provider.coordinator.store.database import Database, LedgerUnavailableError

MAX_PAYOUT_ATTEMPTS: Final = 5
"""Refusals of the last leg after which the money is taken back and credited."""
FIRST_PAUSE: Final = timedelta(minutes=1)
LONGEST_PAUSE: Final = timedelta(hours=6)
_BATCH: Final = 20
_EVERY_SECONDS: Final = 5.0

_log = logs.get("coordinator")


class PayoutDesk:
    """The withdrawals of one coordinator over one rail."""

    def __init__(self, database: Database, rail: PayoutRail, now: Callable[[], datetime]) -> None:
        self.rail = rail
        self._database = database
        self._now = now

    async def run_forever(self) -> None:
        """Take every step when it is due. Ends only by being cancelled."""
        while True:
            try:
                await self.take_due_steps()
            except LedgerUnavailableError as error:
                _log.warning("payouts_wait_for_ledger", reason=error.why)
            await asyncio.sleep(_EVERY_SECONDS)

    async def take_due_steps(self) -> int:
        """Go on with every withdrawal whose time has come; how many there were.

        Raises:
            LedgerUnavailableError: The ledger cannot be written now.
        """
        now = self._now()
        due = await self._database.write(
            lambda c: withdrawals.lease_due(c, self.rail.name, now=now, limit=_BATCH)
        )
        for withdrawal in due:
            await self.advance(withdrawal)
        return len(due)

    async def advance(self, withdrawal: Withdrawal) -> Withdrawal:
        """Take a withdrawal as far as it goes now.

        Raises:
            LedgerUnavailableError: The outcome of a step could not be noted; it is taken again.
        """
        while True:
            step = self._next(withdrawal)
            if step is None:
                return withdrawal
            before = withdrawal
            try:
                withdrawal = await step(withdrawal)
            except RailUnknownError as error:
                _log.warning("rail_did_not_answer", withdrawal=withdrawal.id, reason=error.what)
                return await self._later(withdrawal, unanswered=True)
            if withdrawal.next_step_at is None or withdrawal.status == before.status:
                return withdrawal

    def _next(self, row: Withdrawal) -> Callable[[Withdrawal], Awaitable[Withdrawal]] | None:
        if row.status == "pending":
            return self._transfer
        if row.status == "transferred":
            return self._pay_out if row.receipt is None else self._ask
        if row.status == "failed" and row.reversal == "due":
            return self._reverse
        return None

    async def _transfer(self, row: Withdrawal) -> Withdrawal:
        order = row.order
        try:
            transfer_id = None
            if self._keys_expired(row):
                transfer_id = await self.rail.find_transfer(order)
            transfer_id = transfer_id or await self.rail.transfer(order)
        except RailRefusedError as error:
            # An earlier call, whose answer we never got, may have worked.
            transfer_id = await self.rail.find_transfer(order) if row.tries else None
            if transfer_id is None:
                return await self._fail(row, f"{error.code}: {error.what}", returned=True)
        now, moved = self._now(), transfer_id
        return await self._note(lambda c: withdrawals.transferred(c, row.id, moved, now=now))

    async def _pay_out(self, row: Withdrawal) -> Withdrawal:
        order = row.order
        try:
            receipt = None
            if self._keys_expired(row):
                receipt = await self.rail.find_payout(order)
            receipt = receipt or await self.rail.pay_out(order)
        except RailRefusedError as error:
            receipt = await self.rail.find_payout(order) if row.tries else None
            if receipt is None:
                _log.warning("payout_refused", withdrawal=row.id, reason=error.code)
                if row.payout_attempt + 1 >= MAX_PAYOUT_ATTEMPTS:
                    return await self._fail(row, f"{error.code}: {error.what}", returned=False)
                return await self._later(row, refused=True)
        now, taken = self._now(), receipt
        ask_at = taken.arrival_at + self.rail.patience
        return await self._note(
            lambda c: withdrawals.sent(c, row.id, taken, ask_at=ask_at, now=now)
        )

    async def _ask(self, row: Withdrawal) -> Withdrawal:
        receipt, now = row.receipt, self._now()
        if receipt is None:
            return row
        ask_at = receipt.arrival_at + self.rail.patience
        if now < ask_at:
            return await self._note(lambda c: withdrawals.postpone(c, row.id, ask_at, now=now))
        report = await self.rail.report(row.order, receipt)
        if report.state == "paid":
            return await self._note(lambda c: withdrawals.paid(c, row.id, now=now))
        if report.state == "failed":
            return await self._fail(row, report.reason, returned=False)
        return await self._later(row)

    async def _reverse(self, row: Withdrawal) -> Withdrawal:
        now = self._now()
        transfer_id = row.transfer_id or await self.rail.find_transfer(row.order)
        if transfer_id is not None:
            try:
                await self.rail.reverse(row.order, transfer_id)
            except RailRefusedError as error:
                # The operator must act: our money is on the receiver's account at the rail.
                _log.error("reversal_refused", withdrawal=row.id, reason=error.code)
                return await self._note(
                    lambda c: withdrawals.postpone(c, row.id, now + LONGEST_PAUSE, now=now)
                )
        return await self._note(lambda c: withdrawals.reversed_(c, row.id, now=now))

    def _keys_expired(self, row: Withdrawal) -> bool:
        return self._now() - row.created_at > self.rail.key_lifetime

    async def _fail(self, row: Withdrawal, reason: str, *, returned: bool) -> Withdrawal:
        now = self._now()
        _log.warning("withdrawal_failed", withdrawal=row.id, reason=reason)
        return await self._note(
            lambda c: withdrawals.failed(c, row.id, reason, now=now, returned=returned)
        )

    async def _later(
        self, row: Withdrawal, *, unanswered: bool = False, refused: bool = False
    ) -> Withdrawal:
        now = self._now()
        times = row.tries if unanswered else row.payout_attempt
        until = now + min(FIRST_PAUSE * 2 ** min(times, 10), LONGEST_PAUSE)
        if not (unanswered or refused):
            until = now + LONGEST_PAUSE
        return await self._note(
            lambda c: withdrawals.postpone(
                c, row.id, until, now=now, unanswered=unanswered, refused=refused
            )
        )

    async def hear(self, event: RailEvent) -> None:
        """Take in a webhook. One that was heard before, or is about nobody here, does nothing.

        Raises:
            LedgerUnavailableError: It was not noted, and must be sent again.
        """
        rail, now = self.rail.name, self._now()

        def operation(connection: Connection) -> bool:
            if not first_hearing(connection, rail, event.id, event.type, now=now):
                return False
            if event.onboarding is not None:
                receivers.note_onboarding(
                    connection, rail, event.external_id, event.onboarding, now=now
                )
            row = withdrawals.find(
                connection,
                rail,
                event.external_id,
                withdrawal_id=event.withdrawal_id,
                payout_id=event.payout_id,
                transfer_id=event.transfer_id,
            )
            if row is not None and event.report is not None:
                _note_report(connection, row, event, now)
            return True

        heard = await self._database.write(operation)
        _log.info("rail_event", type=event.type, fresh=heard)

    async def _note(self, operation: Callable[[Connection], Withdrawal]) -> Withdrawal:
        return await self._database.write(operation)


def _note_report(connection: Connection, row: Withdrawal, event: RailEvent, now: datetime) -> None:
    report = event.report
    assert report is not None  # noqa: S101 - the caller looked
    reversed_by_rail = event.transfer_id is not None and event.payout_id is None
    if event.payout_id not in {None, row.payout_id}:
        if row.payout_id is not None:
            return  # A payout that was given up on.
        # The news overtook the answer to our own call. It says when it arrived: now.
        receipt = Receipt(event.payout_id or "", now)
        withdrawals.sent(connection, row.id, receipt, ask_at=now, now=now)
    if report.state == "paid":
        withdrawals.paid(connection, row.id, now=now)
    elif report.state == "failed":
        withdrawals.failed(connection, row.id, report.reason, now=now, returned=reversed_by_rail)
