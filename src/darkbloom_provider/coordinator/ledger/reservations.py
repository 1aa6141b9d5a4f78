"""What a request costs and who gets it: reservation, settlement, refund.

Every function works inside the caller's transaction, takes its time and ids as arguments, and
either does all of its movement or raises with nothing moved. One request makes one reservation,
and a reservation is closed exactly once: settled, settled in part, or refunded.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, bindparam, exists, insert, select, update

from darkbloom_provider.coordinator.accounts.referrals import REWARD_TYPE
from darkbloom_provider.coordinator.ledger import books, earning_totals
from darkbloom_provider.coordinator.ledger.books import (
    AccountKind,
    Balance,
    Held,
    InsufficientFundsError,
    LedgerError,
    Movement,
)
from darkbloom_provider.coordinator.offer import prices
from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.coordinator.store.schema import (
    coordinator_runs,
    jobs,
    referrals,
    wallet_payouts,
)
from darkbloom_provider.protocol import money
from darkbloom_provider.protocol.money import Price

MAX_COUNTED_TOKENS: Final = 2**31 - 1
"""Providers count their own tokens. A count above this is an error, and sums must not overflow."""

_WALLET_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}", re.ASCII)

# Built once, as in `books`.
_JOB = select(jobs).where(jobs.c.reservation_id == bindparam("reservation"))
_same_job = jobs.alias()
_TO_CLOSE = (
    select(
        jobs,
        referrals.c.referrer,
        exists().where(_same_job.c.job_id == bindparam("job")).label("job_id_used"),
    )
    .outerjoin(referrals, referrals.c.account_id == jobs.c.account_id)
    .where(jobs.c.reservation_id == bindparam("reservation"))
)
_RESERVE = insert(jobs)
_CLOSE = (
    update(jobs)
    .where(jobs.c.reservation_id == bindparam("reservation"))
    .values(
        {
            name: bindparam(f"new_{name}")
            for name in (
                *("state", "job_id", "cost", "payout", "fee", "beneficiary", "closed_at"),
                *("prompt_tokens", "completion_tokens", "input_price", "output_price", "minimum"),
            )
        }
    )
    .returning(*jobs.c)
)
_REFUND = (
    update(jobs)
    .where(jobs.c.reservation_id == bindparam("reservation"))
    .values(state="refunded", closed_at=bindparam("now"))
    .returning(*jobs.c)
)
_WALLET_PAYOUT = insert(wallet_payouts)

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


def reserve(
    connection: Connection,
    *,
    reservation_id: str,
    account_id: str,
    model: str,
    amount: int,
    now: datetime,
    run: int = 0,
) -> None:
    """Set aside the most a request can cost. Credit that cannot be withdrawn is used first.

    `run` is the coordinator that has the request, see `recover_open_reservations`.

    Raises:
        InsufficientFundsError: The balance is smaller; nothing was debited.
        LedgerError: The amount is negative, or the account is not a user's.
    """
    if amount < 0:
        raise LedgerError("A reservation cannot be negative")
    held = _opened(connection, (account_id, books.RESERVATIONS), account_id, "user", now)
    before = held[account_id].balance
    if amount > before.balance:
        raise InsufficientFundsError(needed=amount, available=before.balance)
    consumed = before.withdrawable - min(before.withdrawable, before.balance - amount)
    connection.execute(
        _RESERVE,
        {
            "reservation_id": reservation_id,
            "account_id": account_id,
            "model": model,
            "state": "reserved",
            "run": run,
            "reserved": amount,
            "withdrawable_reserved": consumed,
            "cost": 0,
            "payout": 0,
            "fee": 0,
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "input_price": 0,
            "output_price": 0,
            "minimum": 0,
            "created_at": now,
        },
    )
    movement = Movement(
        type="charge",
        reference=f"reserve:{account_id}",
        source=account_id,
        target=books.RESERVATIONS,
        amount=amount,
        source_withdrawable=consumed,
    )
    books.move_all(connection, [movement], now, held)


def refund(connection: Connection, reservation_id: str, *, now: datetime) -> Settlement | None:
    """Give a reservation back in full. Nobody is credited.

    None if there is no such reservation, so a caller that does not know whether its reservation
    was written may refund it. Closed before: nothing moves and `applied` is False.
    """
    row = _reservation(connection, reservation_id)
    if row is None:
        return None
    if row.state != "reserved":
        return _as_settlement(row, applied=False)
    books.move(connection, _back(row, row.reserved, "reservation_refund"), now)
    values = {"reservation": reservation_id, "now": now}
    return _as_settlement(connection.execute(_REFUND, values).one(), applied=True)


def settle(
    connection: Connection,
    *,
    reservation_id: str,
    job_id: str,
    serving: Serving,
    prompt_tokens: int,
    completion_tokens: int,
    price: Price,
    policy: Policy,
    now: datetime,
) -> Settlement:
    """Close a reservation for a completed job: charge its cost, refund the rest, credit the owner.

    The cost is clamped to what was reserved. A second call changes nothing and says so.

    Raises:
        UnknownReservationError: There is no such reservation.
        JobConflictError: The job id has settled another reservation.
    """
    return _close(
        connection,
        outcome="settled",
        reservation_id=reservation_id,
        job_id=job_id,
        serving=serving,
        tokens=(prompt_tokens, completion_tokens),
        price=price,
        policy=policy,
        now=now,
    )


def settle_partial(
    connection: Connection,
    *,
    reservation_id: str,
    job_id: str,
    serving: Serving,
    prompt_tokens: int,
    relayed_tokens: int,
    price: Price,
    policy: Policy,
    now: datetime,
) -> Settlement:
    """Close a reservation whose consumer left after the first chunk.

    Charged are the prompt and the tokens already relayed; the owner is credited with that, as for
    a completed job. For a consumer that left earlier, and for a provider that failed, use
    `refund`. Raises what `settle` raises.
    """
    return _close(
        connection,
        outcome="partial",
        reservation_id=reservation_id,
        job_id=job_id,
        serving=serving,
        tokens=(prompt_tokens, relayed_tokens),
        price=price,
        policy=policy,
        now=now,
    )


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
    open_jobs = connection.execute(
        select(jobs.c.reservation_id).where(
            jobs.c.state == "reserved", jobs.c.run.not_in(list(living))
        )
    ).scalars()
    return sum(refund(connection, reservation, now=now) is not None for reservation in [*open_jobs])


def _close(
    connection: Connection,
    *,
    outcome: Literal["settled", "partial"],
    reservation_id: str,
    job_id: str,
    serving: Serving,
    tokens: tuple[int, int],
    price: Price,
    policy: Policy,
    now: datetime,
) -> Settlement:
    wanted = {"reservation": reservation_id, "job": job_id}
    row = connection.execute(_TO_CLOSE, wanted).one_or_none()
    if row is None:
        raise UnknownReservationError("There is no such reservation")
    if row.state != "reserved":
        return _as_settlement(row, applied=False)
    if row.job_id_used:
        raise JobConflictError("This job id has already settled another reservation")

    prompt, completion = (min(max(count, 0), MAX_COUNTED_TOKENS) for count in tokens)
    if policy.personal_prices and serving.account_id is not None:
        # As it was when the request was accepted: nobody changes the price of a running job.
        own = prices.own_price(connection, serving.account_id, row.model, at=row.created_at)
        price = own or price
    asked = money.cost(prompt, completion, price, minimum=policy.minimum_charge_micro_usd)
    cost = min(asked, row.reserved)
    share = money.split(
        cost,
        fee_percent=policy.fee_percent,
        reward_percent=0 if row.referrer is None else policy.referral_percent,
    )
    beneficiary, kind = _beneficiary(serving)
    touched = {row.account_id, books.RESERVATIONS, books.PLATFORM, beneficiary or books.UNCLAIMED}
    touched |= set() if row.referrer is None else {row.referrer}
    held = _opened(connection, touched, beneficiary, kind, now)

    closing = {
        "state": outcome,
        "job_id": job_id,
        "cost": cost,
        "payout": share.payout,
        "fee": share.platform + share.reward,
        "beneficiary": beneficiary,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "input_price": price.input_price,
        "output_price": price.output_price,
        "minimum": policy.minimum_charge_micro_usd,
        "closed_at": now,
    }
    settled = connection.execute(
        _CLOSE,
        {"reservation": reservation_id, **{f"new_{name}": new for name, new in closing.items()}},
    ).one()
    moved = [_back(row, row.reserved - cost, job_id), *_paid(beneficiary, share, job_id)]
    if row.referrer is not None:
        moved.append(_reward(row.referrer, share.reward, job_id))
    books.move_all(connection, moved, now, held)
    _record(connection, settled, serving, now)
    return _as_settlement(settled, applied=True, clamped=asked > row.reserved)


def _back(job: Row[Any], amount: int, reference: str) -> Movement:
    # What was really spent comes from credit first, so the withdrawable part returns first.
    return Movement(
        type="refund",
        reference=reference,
        source=books.RESERVATIONS,
        target=job.account_id,
        amount=amount,
        target_withdrawable=min(job.withdrawable_reserved, amount),
    )


def _beneficiary(serving: Serving) -> tuple[str | None, AccountKind]:
    """The account that is credited, if any, and what kind it has to be of."""
    if serving.account_id is not None:
        return serving.account_id, "user"
    return wallet_account(serving.wallet_address), "wallet"


def _opened(
    connection: Connection,
    account_ids: Collection[str],
    account_id: str | None,
    kind: AccountKind,
    now: datetime,
) -> dict[str, Held]:
    """These accounts, in few statements. `account_id` is one of them, and is made if need be."""
    held = books.look_up(connection, account_ids, now)
    if account_id is None or (account_id in held and held[account_id].kind == kind):
        return held
    books.open_account(connection, account_id, kind, now)
    return books.look_up(connection, account_ids, now)


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


def _record(connection: Connection, job: Row[Any], serving: Serving, now: datetime) -> None:
    row = {
        "provider_id": serving.provider_id,
        "provider_key": serving.provider_key,
        "machine_id": serving.machine_id,
        "job_id": job.job_id,
        "model": job.model,
        "amount": job.payout,
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": job.completion_tokens,
        "created_at": now,
    }
    if job.beneficiary is None:
        return
    if serving.account_id is not None:
        earning_totals.record(connection, [{"account_id": job.beneficiary, **row}])
    else:
        payout = {"address": job.beneficiary, "settled": False, **row}
        connection.execute(_WALLET_PAYOUT, payout)


def _reservation(connection: Connection, reservation_id: str) -> Row[Any] | None:
    return connection.execute(_JOB, {"reservation": reservation_id}).one_or_none()


def _as_settlement(job: Row[Any], *, applied: bool, clamped: bool = False) -> Settlement:
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
