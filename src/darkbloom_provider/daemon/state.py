"""What others may see of the daemon: one frozen value, and the report made of it.

`status` must answer while the engine, the disk or the network is stuck. So everything in here is a
snapshot that its owner keeps in memory, and the report is a pure function of it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from darkbloom_provider.control.models import (
    AccountStatus,
    CoordinatorStatus,
    JobCounts,
    JournalStatus,
    LocalStatus,
    ModelStatus,
    Phase,
    PostureStatus,
    PrivacyStatus,
    Problem,
    StatusReport,
)
from darkbloom_provider.daemon.books import BooksSnapshot
from darkbloom_provider.daemon.slots import LoadFailure, Slot
from darkbloom_provider.host.posture import FACTS, Posture
from darkbloom_provider.host.privacy import Check
from darkbloom_provider.link.state import LinkState


@dataclass(frozen=True, slots=True)
class Moment:
    """One instant on both clocks: the calendar's, and the one the link counts its seconds on."""

    now: dt.datetime
    clock_s: float

    def at(self, clock_s: float) -> dt.datetime:
        """The calendar time of a reading of the link's clock."""
        return self.now + dt.timedelta(seconds=clock_s - self.clock_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonState:
    """The daemon at one moment. What is not known yet is None."""

    version: str
    pid: int
    phase: Phase
    started_at: dt.datetime
    coordinator_url: str
    link: LinkState | None = None
    linked: bool = False
    account_id: str | None = None
    wallet_address: str | None = None
    posture_setting: Literal["measured", "development"] = "measured"
    posture: Posture | None = None
    privacy: Mapping[str, Check] = field(default_factory=dict)
    """As it was measured for the last registration."""
    slots: tuple[Slot, ...] = ()
    jobs: JobCounts = field(default_factory=JobCounts)
    in_flight: Mapping[str, int] = field(default_factory=dict)
    """Requests being served, by model."""
    books: BooksSnapshot | None = None
    warnings: tuple[str, ...] = ()
    local: LocalStatus | None = None
    process_start_micros: int = 0
    """When the system started the process, in microseconds since 1970; 0 if unknown."""
    attested: bool = False
    """Whether the registration carries an attestation."""
    memory_gib: int | None = None
    warm: tuple[str, ...] = ()
    """Ids of the models in memory, the one used last first."""
    load_failure: LoadFailure | None = None


def report(state: DaemonState, moment: Moment) -> StatusReport:
    """What `darkbloom status` is told."""
    return StatusReport(
        version=state.version,
        pid=state.pid,
        phase=state.phase,
        now=moment.now,
        started_at=state.started_at,
        coordinator=_coordinator(state, moment),
        account=AccountStatus(
            linked=state.linked,
            account_id=state.account_id,
            wallet_address=state.wallet_address,
        ),
        models=tuple(
            ModelStatus(
                id=slot.model.id,
                state=slot.state,
                detail=slot.detail,
                in_flight=state.in_flight.get(slot.model.id, 0),
            )
            for slot in state.slots
        ),
        jobs=state.jobs,
        journal=_journal(state.books),
        posture=_posture(state),
        privacy={
            name: PrivacyStatus(holds=check.holds, evidence=check.evidence)
            for name, check in state.privacy.items()
        },
        warnings=state.warnings,
        local=state.local,
    )


def _coordinator(state: DaemonState, moment: Moment) -> CoordinatorStatus:
    link = state.link
    if link is None:
        return CoordinatorStatus(url=state.coordinator_url, phase="not started")

    def at(clock_s: float | None) -> dt.datetime | None:
        return None if clock_s is None else moment.at(clock_s)

    problem = link.last_problem
    return CoordinatorStatus(
        url=link.url,
        phase=link.phase.value,
        since=at(link.since),
        registered_at=at(link.registered_at),
        attempts=link.attempts,
        retry_at=at(link.retry_at),
        last_problem=None
        if problem is None
        else Problem(what=problem.what, why=problem.why, next_step=problem.next_step),
    )


def _journal(books: BooksSnapshot | None) -> JournalStatus:
    if books is None:
        return JournalStatus()
    problem = None
    if books.problem is not None:
        problem = Problem(what=books.problem, next_step="make room on the disk; it is tried again")
    return JournalStatus(
        jobs=books.jobs,
        estimate_micro_usd=books.estimate_micro_usd,
        unwritten=books.unwritten,
        problem=problem,
    )


def _posture(state: DaemonState) -> PostureStatus:
    posture = state.posture
    if posture is None:
        return PostureStatus(kind=state.posture_setting)
    return PostureStatus(
        kind="development" if posture.claimed else state.posture_setting,
        facts={name: getattr(posture, name) for name in FACTS},
        claimed=tuple(sorted(posture.claimed)),
    )
