"""What is wrong with a machine, how bad it is, and what its owner can do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from darkbloom_provider.coordinator.advice import TODO, told_reasons
from darkbloom_provider.coordinator.routing import Candidate, Rules
from darkbloom_provider.coordinator.settings import TRUST_RANK

Severity = Literal["blocking", "degrading", "info"]

SUCCESS_WANTED: Final = 0.8
JOBS_TO_JUDGE: Final = 10
HIGH_PRESSURE: Final = 0.9

_SAID_ALREADY: Final = frozenset({"untrusted", "runtime", "low_trust", "stale_challenge", "heat"})
"""Reasons of the gate that have their own words here."""


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

    @property
    def name(self) -> str:
        """What to call it."""
        return self.chip or self.model or "Machine"


def warnings(
    machine: Connected, *, rules: Rules, listed: frozenset[str], now: float
) -> tuple[Concern, ...]:
    """What costs a connected machine work, the worst first.

    Source: the conditions of the network's dashboard, as far as this coordinator knows them.
    """
    candidate = machine.candidate
    found = [
        *_trust(machine, rules, now),
        *_barred(candidate, rules, now),
        *_health(candidate),
        *_models(candidate, listed),
        *_record(machine),
    ]
    order: dict[Severity, int] = {"blocking": 0, "degrading": 1, "info": 2}
    return tuple(sorted(found, key=lambda warning: order[warning.severity]))


def _trust(machine: Connected, rules: Rules, now: float) -> list[Concern]:
    candidate, found = machine.candidate, []
    if candidate.status == "untrusted":
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
                "Install the version that the operator names, then type: `darkbloom restart`",
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
                "On it, type: `darkbloom doctor`. If that finds nothing, type: `darkbloom restart`",
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
                    f"The engine of {slot.model} has crashed",
                    "On it, type: `darkbloom logs`, then: `darkbloom restart`",
                )
            )
        elif slot.state == "idle_shutdown":
            found.append(
                Concern(
                    "degrading",
                    f"{slot.model} was unloaded because nobody asked for it",
                    "To keep it loaded, start with: `darkbloom serve --idle-timeout 0`",
                )
            )
    return found


def _models(candidate: Candidate, listed: frozenset[str]) -> list[Concern]:
    if not candidate.models:
        return [
            Concern(
                "blocking",
                "It serves no model",
                "On it, type: `darkbloom models recommend`",
            )
        ]
    if not candidate.models & listed:
        return [
            Concern(
                "degrading",
                "It serves no model of this network's catalogue",
                "On it, type: `darkbloom models catalog`",
            )
        ]
    return []


def _record(machine: Connected) -> list[Concern]:
    jobs = machine.jobs_completed + machine.jobs_failed
    if jobs >= JOBS_TO_JUDGE and machine.jobs_completed / jobs < SUCCESS_WANTED:
        return [
            Concern(
                "degrading",
                f"{machine.jobs_failed} of its last {jobs} jobs failed",
                "On it, type: `darkbloom logs --last 1h`",
            )
        ]
    return []
