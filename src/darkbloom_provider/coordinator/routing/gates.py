"""Why a provider may not serve a request: the network's gate, one reason for each bar of it. Pure.

A bar is of the machine, of one model on it, or of one request.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from darkbloom_provider.coordinator.routing.candidates import (
    Candidate,
    Demand,
    Rules,
    max_concurrency,
    memory_needed_gb,
)
from darkbloom_provider.coordinator.settings import TRUST_RANK
from darkbloom_provider.protocol.messages import BACKEND

Code = Literal[
    "untrusted",
    "low_trust",
    "runtime",
    "version",
    "challenge",
    "stale_challenge",
    "key",
    "backend",
    "plain_chunks",
    "sip",
    "privacy",
    "heat",
    "model",
    "engine",
    "memory",
    "tried",
    "pinned",
    "busy",
]

CLOSED_SLOTS: Final = frozenset({"reloading", "crashed"})

PROMISES: Final = (
    "text_backend_inprocess",
    "text_proxy_disabled",
    "python_runtime_locked",
    "dangerous_modules_blocked",
    "anti_debug_enabled",
    "core_dumps_disabled",
    "env_scrubbed",
)
"""The privacy capabilities without which no consumer's text is sent."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One bar that is down."""

    code: Code
    """Which one; stays the same while figures in the text change."""
    text: str


def reasons(candidate: Candidate, demand: Demand, rules: Rules, now: float) -> Iterator[Reason]:
    """Every reason why this provider may not serve this request now, lazily; none means it may."""
    yield from machine_reasons(candidate, rules, now)
    yield from _request_reasons(candidate, demand, rules)
    yield from model_reasons(candidate, demand)


def explain(candidate: Candidate, demand: Demand, rules: Rules, now: float) -> list[str]:
    """The reasons in words."""
    return [reason.text for reason in reasons(candidate, demand, rules, now)]


def may_serve(candidate: Candidate, demand: Demand, rules: Rules, now: float) -> bool:
    """Whether no bar is down."""
    return next(reasons(candidate, demand, rules, now), None) is None


def trustworthy(candidate: Candidate, rules: Rules) -> bool:
    """Whether a provider counts as serving at all, however busy or stale it is just now."""
    return (
        candidate.status != "untrusted"
        and TRUST_RANK[candidate.trust] >= TRUST_RANK[rules.min_trust]
        and next(_privacy(candidate), None) is None
    )


def machine_reasons(candidate: Candidate, rules: Rules, now: float) -> Iterator[Reason]:
    """What keeps the machine from every request."""
    yield from _standing(candidate, rules, now)
    yield from _privacy(candidate)
    if candidate.metrics.thermal_state == "critical":
        yield Reason("heat", "is too hot")


def model_reasons(candidate: Candidate, demand: Demand) -> Iterator[Reason]:
    """What keeps it from a model, whoever asks."""
    if demand.model not in candidate.models:
        yield Reason("model", "does not serve this model")
    slot = candidate.slot(demand.model)
    if slot is not None and slot.state in CLOSED_SLOTS:
        yield Reason("engine", f"its engine is {slot.state}")
    total = candidate.total_memory_gb
    if demand.size_gb > 0 and total > 0:
        needed, free = memory_needed_gb(candidate, demand), total - candidate.active_memory_gb
        if free < needed:
            yield Reason("memory", f"needs {needed:.1f} GB and has {free:.1f} GB free")


def _request_reasons(candidate: Candidate, demand: Demand, rules: Rules) -> Iterator[Reason]:
    if candidate.session_id in demand.tried:
        yield Reason("tried", "has already failed this request")
    if demand.serials and candidate.serial not in demand.serials:
        yield Reason("pinned", "is not one of the machines asked for")
    if len(candidate.in_flight) >= max_concurrency(candidate, rules):
        yield Reason("busy", f"is busy with {len(candidate.in_flight)} requests")


def _standing(candidate: Candidate, rules: Rules, now: float) -> Iterator[Reason]:
    if candidate.status == "untrusted":
        yield Reason("untrusted", "untrusted since a failed check")
    if TRUST_RANK[candidate.trust] < TRUST_RANK[rules.min_trust]:
        yield Reason("low_trust", f"trust level {candidate.trust} is below {rules.min_trust}")
    if not candidate.runtime_verified:
        yield Reason("runtime", "its runtime is not on the operator's list")
    if candidate.outdated:
        yield Reason("version", "its version is older than the operator takes")
    if candidate.verified_at is not None:
        age = now - candidate.verified_at
        if age > rules.fresh_seconds:
            yield Reason("stale_challenge", f"last passed a challenge {round(age)} s ago")
    elif candidate.challenge_problem is not None:
        yield Reason("challenge", f"failed its last challenge: {candidate.challenge_problem}")
    else:
        yield Reason("challenge", "has not passed a challenge")


def _privacy(candidate: Candidate) -> Iterator[Reason]:
    if not candidate.public_key:
        yield Reason("key", "registered no usable encryption key")
    if candidate.backend != BACKEND:
        yield Reason("backend", f"back end {candidate.backend[:40]!r} is not {BACKEND}")
    if not candidate.encrypted_chunks:
        yield Reason("plain_chunks", "does not encrypt its answers")
    if not candidate.sip_verified:
        yield Reason("sip", "system integrity protection is not confirmed")
    if candidate.privacy is None:
        yield Reason("privacy", "states no privacy capabilities")
        return
    for name in PROMISES:
        if not getattr(candidate.privacy, name):
            yield Reason("privacy", f"privacy capability {name} is off")
