"""The rows of many jobs in one transaction: read together, changed in memory, written together.

With `books.Sheet`, which does the same for accounts, this is what lets requests that end at the
same time share their statements: a statement costs more than the row it changes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import Connection, bindparam, insert, select, update

from darkbloom_provider.coordinator.accounts.referrals import referrer_of
from darkbloom_provider.coordinator.ledger import earning_totals
from darkbloom_provider.coordinator.offer import prices
from darkbloom_provider.coordinator.store.schema import jobs, referrals, wallet_payouts
from darkbloom_provider.protocol.money import Price

State = Literal["reserved", "settled", "partial", "refunded"]


@dataclass(frozen=True, slots=True)
class Job:
    """A row of `jobs`, field for field. Amounts in micro-USD."""

    reservation_id: str
    account_id: str
    """Who pays."""
    model: str
    state: State
    run: int
    reserved: int
    withdrawable_reserved: int
    created_at: datetime
    job_id: str | None = None
    cost: int = 0
    payout: int = 0
    fee: int = 0
    beneficiary: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_price: int = 0
    output_price: int = 0
    minimum: int = 0
    closed_at: datetime | None = None


_FIELDS: Final = tuple(field.name for field in fields(Job))
_CLOSING: Final = (
    *("job_id", "state", "cost", "payout", "fee", "beneficiary", "prompt_tokens"),
    *("completion_tokens", "input_price", "output_price", "minimum", "closed_at"),
)
"""What closing a job changes."""

# Built once, as in `books`.
_READ = (
    select(*(jobs.c[name] for name in _FIELDS), referrals.c.referrer)
    .outerjoin(referrals, referrals.c.account_id == jobs.c.account_id)
    .where(jobs.c.reservation_id.in_(bindparam("reservations", expanding=True)))
)
_USED = select(jobs.c.job_id).where(jobs.c.job_id.in_(bindparam("jobs", expanding=True)))
_RESERVE = insert(jobs)
_CLOSE = (
    update(jobs)
    .where(jobs.c.reservation_id == bindparam("reservation"))
    .values({name: bindparam(f"new_{name}") for name in _CLOSING})
)
_WALLET_PAYOUT = insert(wallet_payouts)


class JobSheet:
    """See the module. `write` after the accounts: rows refer to them."""

    def __init__(
        self, connection: Connection, reservations: Collection[str], job_ids: Collection[str]
    ) -> None:
        """Read the jobs of these reservations, and which of these job ids are taken."""
        self._connection = connection
        self._jobs: dict[str, Job] = {}
        self._referrers: dict[str, str | None] = {}
        self._used: set[str] = set()
        self._added: dict[str, None] = {}
        self._closed: dict[str, None] = {}
        self._earnings: list[dict[str, Any]] = []
        self._wallet_payouts: list[dict[str, Any]] = []
        if reservations:
            for *columns, referrer in connection.execute(
                _READ, {"reservations": list(reservations)}
            ):
                job = Job(*columns)
                self._jobs[job.reservation_id] = job
                self._referrers[job.account_id] = referrer
        if job_ids:
            self._used.update(connection.execute(_USED, {"jobs": list(job_ids)}).scalars())

    def get(self, reservation_id: str) -> Job | None:
        """The job as it is now; None if there is no such reservation."""
        return self._jobs.get(reservation_id)

    def is_used(self, job_id: str) -> bool:
        """Whether a job with this id has been settled."""
        return job_id in self._used

    def referrer_of(self, account_id: str) -> str | None:
        """Who brought this account, if anybody."""
        if account_id not in self._referrers:
            self._referrers[account_id] = referrer_of(self._connection, account_id)
        return self._referrers[account_id]

    def own_price(self, account_id: str, job: Job) -> Price | None:
        """What this owner asked when the job was accepted: nobody changes a running job's price."""
        return prices.own_price(self._connection, account_id, job.model, at=job.created_at)

    def reserve(self, job: Job) -> None:
        """A new job."""
        self._jobs[job.reservation_id] = job
        self._added[job.reservation_id] = None

    def close(self, job: Job, **changes: Any) -> Job:  # noqa: ANN401 - fields of `Job`
        """The job with what closing it has changed."""
        closed = replace(job, **changes)
        self._jobs[job.reservation_id] = closed
        if closed.job_id is not None:
            self._used.add(closed.job_id)
        if job.reservation_id not in self._added:
            self._closed[job.reservation_id] = None
        return closed

    def earned(self, row: Mapping[str, Any]) -> None:
        """An earning of an account: a row of `earnings` without its id."""
        self._earnings.append(dict(row))

    def owed(self, row: Mapping[str, Any]) -> None:
        """An earning of a wallet: a row of `wallet_payouts` without its id."""
        self._wallet_payouts.append(dict(row))

    def write(self) -> None:
        """Put everything into the database. Once."""
        execute = self._connection.execute
        if self._added:
            rows = [self._jobs[reservation] for reservation in self._added]
            execute(_RESERVE, [{name: getattr(job, name) for name in _FIELDS} for job in rows])
        if self._closed:
            execute(
                _CLOSE,
                [
                    {"reservation": reservation}
                    | {f"new_{name}": getattr(self._jobs[reservation], name) for name in _CLOSING}
                    for reservation in self._closed
                ],
            )
        earning_totals.record(self._connection, self._earnings)
        if self._wallet_payouts:
            execute(_WALLET_PAYOUT, self._wallet_payouts)
