"""What is wrong with a machine, how bad it is, and what its owner can do about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from darkbloom_provider.coordinator.console.writing import model_name
from darkbloom_provider.coordinator.routing.advice import TODO, told_reasons
from darkbloom_provider.coordinator.routing.choice import Candidate, Rules
from darkbloom_provider.coordinator.settings import TRUST_RANK
from darkbloom_provider.protocol.attestation import AttestationBlob

Severity = Literal["blocking", "degrading", "info"]

SUCCESS_WANTED: Final = 0.8
JOBS_TO_JUDGE: Final = 10
HIGH_PRESSURE: Final = 0.9

_SAID_ALREADY: Final = frozenset({"untrusted", "runtime", "low_trust", "stale_challenge", "heat"})
"""Reasons of the gate that have their own words here."""
_VERSION: Final = re.compile(r"v?([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Concern:
    """Something that costs this machine work, and what to do about it."""

    severity: Severity
    what: str
    todo: str
    """What is to be typed stands between backquotes."""


@dataclass(frozen=True, slots=True)
class Connected:
    """A machine that is connected now, as it was at one instant."""

    candidate: Candidate
    machine_id: str | None
    token_id: str | None
    """Which linked device it showed the token of."""
    chip: str
    model: str
    gpu_cores: int
    version: str
    attested: bool
    challenge_failures: int
    heartbeat_age: float
    """Seconds."""
    active_model: str | None
    requests: int
    """Since its process started, by its own count."""
    tokens: int
    jobs_completed: int
    """Of this connection, by ours."""
    jobs_failed: int
    registered_at: datetime
    """When it connected."""
    attestation: AttestationBlob | None
    """What it signed about itself; it proves nothing unless `attested`."""

    @property
    def name(self) -> str:
        """What to call it."""
        return self.chip or self.model or "Machine"


@dataclass(frozen=True, slots=True)
class Standards:
    """What machines are measured by."""

    rules: Rules
    sizes: Mapping[str, float]
    """GB of each model of the catalogue."""
    failures: int
    """Failed checks in a row after which a machine is not trusted."""
    newest: str
    """The version of the program that this coordinator knows of."""


def warnings(machine: Connected, standards: Standards, now: float) -> tuple[Concern, ...]:
    """What costs a connected machine work, the worst first.

    Source: the conditions of the network's dashboard, as far as this coordinator knows them.

    Args:
        machine: As it is now.
        standards: What it is measured by.
        now: Of the coordinator's monotonic clock.
    """
    candidate = machine.candidate
    found = [
        *_trust(machine, standards, now),
        *_barred(candidate, standards.rules, now),
        *_version(machine, standards.newest),
        *_health(candidate),
        *_models(candidate),
        *_record(machine),
    ]
    order: dict[Severity, int] = {"blocking": 0, "degrading": 1, "info": 2}
    return tuple(sorted(found, key=lambda warning: order[warning.severity]))


def _trust(machine: Connected, standards: Standards, now: float) -> list[Concern]:
    candidate, rules, found = machine.candidate, standards.rules, []
    if candidate.status == "untrusted" or machine.challenge_failures >= standards.failures:
        found.append(
            Concern(
                "blocking",
                f"It is not trusted: {machine.challenge_failures} checks failed in a row",
                "On it, type: `darkbloom doctor`",
            )
        )
    if not candidate.runtime_verified:
        found.append(
            Concern(
                "blocking",
                "Its program is not on the operator's list",
                "Install the version that the operator names, then type: `darkbloom stop`, and: "
                "`darkbloom start`",
            )
        )
    if TRUST_RANK[candidate.trust] < TRUST_RANK[rules.min_trust]:
        found.append(
            Concern(
                "blocking",
                f"Its trust level is {candidate.trust}, and {rules.min_trust} is asked for here",
                "On it, type: `darkbloom doctor`",
            )
        )
    if candidate.verified_at is None and candidate.challenge_problem is None:
        found.append(
            Concern(
                "info",
                "It has not passed a check yet",
                "Wait: the first one comes right after it connects",
            )
        )
    elif candidate.verified_at is not None and now - candidate.verified_at > rules.fresh_seconds:
        minutes = round((now - candidate.verified_at) / 60)
        found.append(
            Concern(
                "blocking",
                f"Its last passed check was {minutes} minutes ago",
                "On it, type: `darkbloom doctor`. If that finds nothing: `darkbloom stop`, and: "
                "`darkbloom start`",
            )
        )
    return found


def _barred(candidate: Candidate, rules: Rules, now: float) -> list[Concern]:
    """What else the routing gate holds against the machine."""
    found = told_reasons(candidate, rules, now)
    if candidate.challenge_problem is None:
        found = [reason for reason in found if reason.code != "challenge"]
    return [
        Concern(
            "blocking",
            f"No request may be sent to it: {reason.text}",
            f"On it: {TODO[reason.code]}",
        )
        for reason in found
        if reason.code not in _SAID_ALREADY
    ]


def _version(machine: Connected, newest: str) -> list[Concern]:
    here, there = _release(machine.version), _release(newest)
    if here is None or there is None or here >= there:
        return []
    return [
        Concern(
            "info",
            f"Its version is {machine.version}, and {newest} exists",
            "Install that one as you installed this one, then type: `darkbloom stop`, and: "
            "`darkbloom start`",
        )
    ]


def _release(version: str) -> tuple[int, ...] | None:
    """The numbers of a version to compare by; None if it does not begin with three."""
    found = _VERSION.match(version)
    return None if found is None else tuple(int(number) for number in found.groups())


def _health(candidate: Candidate) -> list[Concern]:
    found = []
    thermal = candidate.metrics.thermal_state
    if thermal == "critical":
        found.append(Concern("blocking", "It is too hot to work", "Let it cool, and give it air"))
    elif thermal in {"serious", "fair"}:
        found.append(
            Concern("degrading", f"It is warm ({thermal}), so others are preferred", "Give it air")
        )
    if candidate.metrics.memory_pressure > HIGH_PRESSURE:
        found.append(
            Concern(
                "degrading",
                "Its memory is nearly full",
                "Close other programs, or set `memory_reserve_gb` higher in its configuration",
            )
        )
    slots = candidate.capacity.slots if candidate.capacity else ()
    for slot in slots:
        if slot.state == "crashed":
            found.append(
                Concern(
                    "degrading",
                    f"The engine of {model_name(slot.model)} has crashed",
                    "On it, type: `darkbloom doctor`, then: `darkbloom stop`, and: "
                    "`darkbloom start`",
                )
            )
        elif slot.state == "idle_shutdown":
            found.append(
                Concern(
                    "degrading",
                    f"{model_name(slot.model)} was unloaded because nobody asked for it",
                    "To keep it loaded, start with: `darkbloom serve --idle-timeout 0`",
                )
            )
    return found


def _models(candidate: Candidate) -> list[Concern]:
    # What the catalogue does not list was left out when the machine registered.
    if candidate.models:
        return []
    return [
        Concern(
            "blocking",
            "It serves no model of this network's catalogue",
            "On it, type: `darkbloom models`",
        )
    ]


def _record(machine: Connected) -> list[Concern]:
    jobs = machine.jobs_completed + machine.jobs_failed
    if jobs >= JOBS_TO_JUDGE and machine.jobs_completed / jobs < SUCCESS_WANTED:
        return [
            Concern(
                "degrading",
                f"{machine.jobs_failed} of its last {jobs} jobs failed",
                "On it, type: `darkbloom doctor`",
            )
        ]
    return []
