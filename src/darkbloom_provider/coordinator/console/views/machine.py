"""The page of one machine: what it earned, its jobs, what it proved, and what its engine holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from darkbloom_provider.coordinator.console.views.chart import floor
from darkbloom_provider.coordinator.console.views.choice import Pager, pager
from darkbloom_provider.coordinator.console.views.concerns import Connected
from darkbloom_provider.coordinator.console.views.earn import DAYS_SHOWN, Graph, graph
from darkbloom_provider.coordinator.console.views.machines import MachineCard
from darkbloom_provider.coordinator.earnings.owner_views import HistoryRow
from darkbloom_provider.coordinator.earnings.views import SeriesPoint, Sum
from darkbloom_provider.coordinator.routing.choice import max_concurrency

TRUST: Final = {"none": "Unverified", "self_signed": "Self-signed", "hardware": "Hardware"}

_PROMISES: Final = {
    "text_backend_inprocess": "Text stays in the program's own process",
    "text_proxy_disabled": "No proxy sees text",
    "python_runtime_locked": "Only installed code runs",
    "dangerous_modules_blocked": "Modules that could leak are blocked",
    "sip_enabled": "System integrity protection is on",
    "anti_debug_enabled": "No debugger can attach",
    "core_dumps_disabled": "No core dumps",
    "env_scrubbed": "Environment is scrubbed",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that was checked or stated, and whether it holds."""

    what: str
    holds: bool


@dataclass(frozen=True, slots=True)
class MachineView:
    """The page."""

    card: MachineCard
    average: int
    """Micro-USD of one job."""
    last_day: Sum
    last_week: Sum
    graph: Graph
    jobs: tuple[HistoryRow, ...]
    pager: Pager
    trust: str
    checked_ago: float | None
    """Seconds since the last passed check; None if there was none."""
    attested: tuple[Fact, ...]
    """From its signed statement, if that is valid."""
    promises: tuple[Fact, ...]
    places: int
    """Requests it may have at once."""


def period(now: datetime) -> datetime:
    """The first day that the graph shows."""
    return floor(now - timedelta(days=DAYS_SHOWN - 1), "day")


def view(
    card: MachineCard,
    *,
    last_day: Sum,
    last_week: Sum,
    points: Sequence[SeriesPoint],
    jobs: Sequence[HistoryRow],
    page: int,
    now: datetime,
    monotonic: float,
) -> MachineView:
    """The page of a machine.

    Args:
        card: The machine.
        last_day: What it earned in the last 24 hours.
        last_week: The same of 7 days.
        points: What it earned by day, since `period`.
        jobs: One page of its jobs, newest first.
        page: Which one.
        now: The time.
        monotonic: Of the coordinator's monotonic clock.
    """
    machine = card.connected
    verified = machine.candidate.verified_at if machine else None
    return MachineView(
        card=card,
        average=card.earned.micro_usd // card.earned.count if card.earned.count else 0,
        last_day=last_day,
        last_week=last_week,
        graph=graph(points, start=period(now), end=now, bucket="day"),
        jobs=tuple(jobs),
        pager=pager(page, card.earned.count),
        trust=TRUST[machine.candidate.trust] if machine else "",
        checked_ago=None if verified is None else max(monotonic - verified, 0.0),
        attested=_attested(machine) if machine else (),
        promises=_promises(machine) if machine else (),
        places=max_concurrency(machine.candidate) if machine else 0,
    )


def _attested(machine: Connected) -> tuple[Fact, ...]:
    blob = machine.attestation
    if blob is None or not machine.attested:
        return ()
    return (
        Fact("Key in the Secure Enclave", blob.secure_enclave_available),
        Fact("System integrity protection", blob.sip_enabled),
        Fact("Secure boot", blob.secure_boot_enabled),
        Fact("Sealed system volume", blob.authenticated_root_enabled),
        Fact("No hypervisor", not blob.hypervisor_active),
    )


def _promises(machine: Connected) -> tuple[Fact, ...]:
    stated = machine.candidate.privacy
    if stated is None:
        return ()
    flags = stated.model_dump()
    return tuple(Fact(what, bool(flags[name])) for name, what in _PROMISES.items())
