"""What a request costs and who gets it: reservation, settlement, refund.

One request makes one reservation, and a reservation is closed exactly once: settled, settled in
part, or refunded. Each is an order, which is carried out in the caller's transaction, alone or
together with others; it takes its time and ids as arguments, and either does all of its movement or
raises with nothing moved.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Generic, Literal, TypeVar

from sqlalchemy import Connection, insert, select

from darkbloom_provider.coordinator.accounts.referrals import REWARD_TYPE
from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.ledger.books import (
    AccountKind,
    Balance,
    InsufficientFundsError,
    LedgerError,
    Movement,
    Sheet,
)
from darkbloom_provider.coordinator.ledger.job_sheet import Job, JobSheet
from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.coordinator.store.schema import coordinator_runs, jobs
from darkbloom_provider.protocol import money
from darkbloom_provider.protocol.money import Price

MAX_COUNTED_TOKENS: Final = 2**31 - 1
"""Providers count their own tokens. A count above this is an error, and sums must not overflow."""

_AT_ONCE: Final = 200
"""Orders in one go: statements have a limited number of parameters."""
_WALLET_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}", re.ASCII)

Outcome = Literal["settled", "partial", "refunded"]


class UnknownReservationError(LedgerError):
    """There is no such reservation."""


class JobConflictError(LedgerError):
    """The job id was already used to settle another reservation."""


@dataclass(frozen=True, slots=True)
class Serving:
    """Who served a job, fixed when its session registered.

    The account wins if both it and a wallet are present. With neither, nobody is credited.
    """

    provider_id: str
    provider_key: str
    account_id: str | None = None
    wallet_address: str | None = None
    machine_id: str | None = None


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a reservation was closed. All amounts in micro-USD.

    `applied` is False if it had been closed before: then nothing moved now, and the figures are
    those of the first time.
    """

    applied: bool
    outcome: Outcome
    job_id: str | None
    cost: int
    refund: int
    payout: int
    fee: int
    """What the owner did not get: the platform's part, and the referrer's if there is one."""
    beneficiary: str | None
    """The account or wallet that was credited; None if nobody was."""
    clamped: bool
    """The reported tokens cost more than was reserved: suspected misreporting, worth a log line."""


def wallet_account(address: str | None) -> str | None:
    """The account id of a self-reported wallet address; None if it is not shaped like one.

    Nothing else may become an account id by being claimed in a registration.
    """
    if address is None or _WALLET_ADDRESS.fullmatch(address) is None:
        return None
    return address.lower()


def deposit(
    connection: Connection,
    account_id: str,
    amount: int,
    *,
    now: datetime,
    entry_type: Literal["deposit", "admin_credit", "admin_reward", "invite_credit"] = "deposit",
    reference: str = "",
) -> Balance:
    """Credit a user account. Withdrawable only as an `admin_reward`. Returns the new balance.

    Raises:
        LedgerError: The amount is negative or out of range, or the account is not a user's.
    """
    if not 0 <= amount <= money.MAX_MICRO_USD:
        raise LedgerError("The amount is out of range")
    books.open_account(connection, account_id, "user", now)
    movement = Movement(
        type=entry_type,
        reference=reference or ("" if entry_type == "deposit" else entry_type),
        source=books.DEPOSITS if entry_type == "deposit" else books.GRANTS,
        target=account_id,
        amount=amount,
        target_withdrawable=amount if entry_type == "admin_reward" else 0,
    )
    books.move(connection, movement, now)
    return books.balance_of(connection, account_id)


Result_co = TypeVar("Result_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order(ABC, Generic[Result_co]):
    """What is to be done with one reservation: an operation of `store.database`.

    Orders that wait for the same transaction are carried out together, see `carry_out`.
    """

    reservation_id: str
    now: datetime

    def __call__(self, connection: Connection) -> Result_co:
        """Carry it out alone. Raises what `on` raises."""
        (outcome,) = carry_out(connection, [self])
        if isinstance(outcome, LedgerError):
            raise outcome
        result: Result_co = outcome
        return result

    @property
    def together(self) -> Callable[[Connection, Sequence[Order[Any]]], list[Any]]:
        """How it is carried out with its neighbours in a batch (`store.database.Joining`)."""
        return carry_out

    @abstractmethod
    def touched(self, job: Job | None) -> tuple[str | None, ...]:
        """The accounts that it will move money between, to be read beforehand."""

    @abstractmethod
    def on(self, jobs: JobSheet, accounts: Sheet) -> Result_co:
        """Enter it.

        Raises:
            LedgerError: It may not be done. Then it has left no trace.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve(Order[None]):
    """Set aside the most a request can cost. Credit that cannot be withdrawn is used first.

    Raises:
        InsufficientFundsError: The balance is smaller; nothing was debited.
        LedgerError: The amount is negative, the account is not a user's, or there is such a
            reservation.
    """

    account_id: str
    model: str
    amount: int
    run: int = 0
    """The coordinator that has the request, see `recover_open_reservations`."""

    def touched(self, job: Job | None) -> tuple[str | None, ...]:
        """The consumer's, and what is reserved."""
        del job
        return self.account_id, books.RESERVATIONS

    def on(self, jobs: JobSheet, accounts: Sheet) -> None:
        """Enter it."""
        if self.amount < 0:
            raise LedgerError("A reservation cannot be negative")
        if jobs.get(self.reservation_id) is not None:
            raise LedgerError("This reservation exists already")
        before = accounts.balance_of(self.account_id)
        if self.amount > before.balance:
            raise InsufficientFundsError(needed=self.amount, available=before.balance)
        consumed = before.withdrawable - min(before.withdrawable, before.balance - self.amount)
        charge = Movement(
            type="charge",
            reference=f"reserve:{self.account_id}",
            source=self.account_id,
            target=books.RESERVATIONS,
            amount=self.amount,
            source_withdrawable=consumed,
        )
        accounts.move([charge], self.now, opening={self.account_id: "user"})
        jobs.reserve(
            Job(
                reservation_id=self.reservation_id,
                account_id=self.account_id,
                model=self.model,
                state="reserved",
                run=self.run,
                reserved=self.amount,
                withdrawable_reserved=consumed,
                created_at=self.now,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refund(Order[Settlement | None]):
    """Give a reservation back in full. Nobody is credited.

    None comes of it if there is no such reservation, so a caller that does not know whether its
    reservation was written may refund it. Closed before: nothing moves and `applied` is False.
    """

    def touched(self, job: Job | None) -> tuple[str | None, ...]:
        """The consumer's, and what is reserved."""
        return (books.RESERVATIONS, None if job is None else job.account_id)

    def on(self, jobs: JobSheet, accounts: Sheet) -> Settlement | None:
        """Enter it."""
        job = jobs.get(self.reservation_id)
        if job is None:
            return None
        if job.state != "reserved":
            return _as_settlement(job, applied=False)
        accounts.move([_back(job, job.reserved, "reservation_refund")], self.now)
        return _as_settlement(jobs.close(job, state="refunded", closed_at=self.now), applied=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle(Order[Settlement]):
    """Close a reservation: charge the job's cost, refund the rest, credit the owner.

    For a completed job, or for a `partial` one, whose consumer left after the first chunk: charged
    are then the prompt and the tokens already relayed, and the owner is credited with that. For a
    consumer that left earlier, and for a provider that failed, use `Refund`.

    The cost is clamped to what was reserved. A second one changes nothing and says so.

    Raises:
        UnknownReservationError: There is no such reservation.
        JobConflictError: The job id has settled another reservation.
    """

    job_id: str
    serving: Serving
    prompt_tokens: int
    completion_tokens: int
    price: Price
    policy: Policy
    partial: bool = False

    @property
    def beneficiary(self) -> str | None:
        """The account or wallet that is credited."""
        serving = self.serving
        return serving.account_id or wallet_account(serving.wallet_address)

    def touched(self, job: Job | None) -> tuple[str | None, ...]:
        """Those of everybody who gets something, the referrer's aside."""
        consumer = None if job is None else job.account_id
        owner = self.beneficiary or books.UNCLAIMED
        return books.RESERVATIONS, books.PLATFORM, owner, consumer

    def on(self, jobs: JobSheet, accounts: Sheet) -> Settlement:
        """Enter it."""
        job = jobs.get(self.reservation_id)
        if job is None:
            raise UnknownReservationError("There is no such reservation")
        if job.state != "reserved":
            return _as_settlement(job, applied=False)
        if jobs.is_used(self.job_id):
            raise JobConflictError("This job id has already settled another reservation")

        policy = self.policy
        counted = self.prompt_tokens, self.completion_tokens
        prompt, completion = (min(max(count, 0), MAX_COUNTED_TOKENS) for count in counted)
        price = self.price
        if policy.personal_prices and self.serving.account_id is not None:
            price = jobs.own_price(self.serving.account_id, job) or price
        asked = money.cost(prompt, completion, price, minimum=policy.minimum_charge_micro_usd)
        cost = min(asked, job.reserved)
        referrer = jobs.referrer_of(job.account_id)
        share = money.split(
            cost,
            fee_percent=policy.fee_percent,
            reward_percent=0 if referrer is None else policy.referral_percent,
        )
        beneficiary = self.beneficiary
        moved = [
            _back(job, job.reserved - cost, self.job_id),
            *_paid(beneficiary, share, self.job_id),
        ]
        if referrer is not None:
            moved.append(_reward(referrer, share.reward, self.job_id))
        kind: AccountKind = "user" if self.serving.account_id is not None else "wallet"
        accounts.move(moved, self.now, opening={beneficiary: kind} if beneficiary else None)
        settled = jobs.close(
            job,
            state="partial" if self.partial else "settled",
            job_id=self.job_id,
            cost=cost,
            payout=share.payout,
            fee=share.platform + share.reward,
            beneficiary=beneficiary,
            prompt_tokens=prompt,
            completion_tokens=completion,
            input_price=price.input_price,
            output_price=price.output_price,
            minimum=policy.minimum_charge_micro_usd,
            closed_at=self.now,
        )
        self._credit(jobs, settled)
        return _as_settlement(settled, applied=True, clamped=asked > job.reserved)

    def _credit(self, jobs: JobSheet, job: Job) -> None:
        row = {
            "provider_id": self.serving.provider_id,
            "provider_key": self.serving.provider_key,
            "machine_id": self.serving.machine_id,
            "job_id": job.job_id,
            "model": job.model,
            "amount": job.payout,
            "prompt_tokens": job.prompt_tokens,
            "completion_tokens": job.completion_tokens,
            "created_at": self.now,
        }
        if self.serving.account_id is not None:
            jobs.earned({"account_id": job.beneficiary, **row})
        elif job.beneficiary is not None:
            jobs.owed({"address": job.beneficiary, "settled": False, **row})


def carry_out(connection: Connection, orders: Sequence[Order[Any]]) -> list[Any]:
    """Carry out orders one after the other, in a few statements for all of them.

    Gives what came of each: its result, or the `LedgerError` of one that may not be done.
    """
    jobs = JobSheet(
        connection,
        reservations={order.reservation_id for order in orders},
        job_ids={order.job_id for order in orders if isinstance(order, Settle)},
    )
    touched = (a for o in orders for a in o.touched(jobs.get(o.reservation_id)) if a is not None)
    accounts = Sheet(connection, touched)
    results: list[Any] = []
    for order in orders:
        try:
            results.append(order.on(jobs, accounts))
        except LedgerError as error:
            results.append(error)
    accounts.write()
    jobs.write()
    return results


def begin_run(connection: Connection, *, now: datetime) -> int:
    """Record that a coordinator starts; its number, which no other run ever has."""
    run: int = connection.execute(
        insert(coordinator_runs).values(started_at=now).returning(coordinator_runs.c.id)
    ).scalar_one()
    return run


def recover_open_reservations(
    connection: Connection, *, now: datetime, living: Collection[int] = ()
) -> int:
    """Refund the open reservations of coordinators that died: their requests died with them.

    `living` are the runs that still have theirs. Returns how many were refunded.
    """
    left = connection.execute(
        select(jobs.c.reservation_id).where(
            jobs.c.state == "reserved", jobs.c.run.not_in(list(living))
        )
    ).scalars()
    orders = [Refund(reservation_id=reservation, now=now) for reservation in left]
    for start in range(0, len(orders), _AT_ONCE):
        for result in carry_out(connection, orders[start : start + _AT_ONCE]):
            if isinstance(result, LedgerError):
                raise result
    return len(orders)


def _back(job: Job, amount: int, reference: str) -> Movement:
    # What was really spent comes from credit first, so the withdrawable part returns first.
    return Movement(
        type="refund",
        reference=reference,
        source=books.RESERVATIONS,
        target=job.account_id,
        amount=amount,
        target_withdrawable=min(job.withdrawable_reserved, amount),
    )


def _paid(beneficiary: str | None, share: money.Split, job_id: str) -> tuple[Movement, Movement]:
    payout = Movement(
        type="payout",
        reference=job_id,
        source=books.RESERVATIONS,
        target=beneficiary or books.UNCLAIMED,
        amount=share.payout,
        target_withdrawable=share.payout if beneficiary else 0,
    )
    fee = Movement(
        type="platform_fee",
        reference=job_id,
        source=books.RESERVATIONS,
        target=books.PLATFORM,
        amount=share.platform,
    )
    return payout, fee


def _reward(referrer: str, amount: int, job_id: str) -> Movement:
    """To whoever brought the consumer, their part of the fee."""
    return Movement(
        type=REWARD_TYPE,
        reference=job_id,
        source=books.RESERVATIONS,
        target=referrer,
        amount=amount,
        target_withdrawable=amount,
    )


def _as_settlement(job: Job, *, applied: bool, clamped: bool = False) -> Settlement:
    assert job.state != "reserved"  # noqa: S101 - only closed jobs come here
    return Settlement(
        applied=applied,
        outcome=job.state,
        job_id=job.job_id,
        cost=job.cost,
        refund=job.reserved - job.cost,
        payout=job.payout,
        fee=job.fee,
        beneficiary=job.beneficiary,
        clamped=clamped,
    )
