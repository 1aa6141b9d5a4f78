"""Which provider gets a request. Pure: snapshots, a demand and `now` in, a choice and reasons out.

Source: the network's choice among those whom the gate (`gates`) lets through, by cost (`costs`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from darkbloom_provider.coordinator.routing import quotes
from darkbloom_provider.coordinator.routing.candidates import (
    Candidate,
    Demand,
    InFlight,
    Rules,
    Status,
    max_concurrency,
    memory_needed_gb,
    queue_depth,
)
from darkbloom_provider.coordinator.routing.costs import CostTerms, cost_ms, cost_terms
from darkbloom_provider.coordinator.routing.gates import Reason, explain, reasons, trustworthy

__all__ = [
    "Candidate",
    "Demand",
    "InFlight",
    "Reason",
    "Rules",
    "Status",
    "Weighed",
    "choose",
    "cost_ms",
    "explain",
    "explain_all",
    "max_concurrency",
    "memory_needed_gb",
    "queue_depth",
    "shortlist",
    "trustworthy",
    "weigh",
]


def shortlist(
    candidates: Sequence[Candidate], demand: Demand, rules: Rules, *, now: float
) -> list[Candidate]:
    """Those among whom chance decides, see `quotes.shortlist`."""
    asked = (quotes.quote(candidate, demand.model, rules) for candidate in candidates)
    return quotes.shortlist([each for each in asked if each is not None], demand, now=now)


def choose(
    candidates: Sequence[Candidate],
    demand: Demand,
    rules: Rules,
    *,
    now: float,
    chance: random.Random,
) -> Candidate | None:
    """The provider for this request, or None: one of the shortlist, so that equals earn alike."""
    equals = shortlist(candidates, demand, rules, now=now)
    return chance.choice(equals) if equals else None


@dataclass(frozen=True, slots=True)
class Weighed:
    """What routing makes of one provider for one request."""

    candidate: Candidate
    reasons: tuple[Reason, ...]
    """Why not; empty if it may serve it."""
    cost: CostTerms
    shortlisted: bool
    """Whether it would get the request, or be one of the equals that chance decides among."""


def weigh(
    candidates: Sequence[Candidate], demand: Demand, rules: Rules, *, now: float
) -> list[Weighed]:
    """What routing makes of every provider: the chosen, the others that may, and the barred."""
    chosen = {c.session_id for c in shortlist(candidates, demand, rules, now=now)}
    weighed = [
        Weighed(
            candidate,
            tuple(reasons(candidate, demand, rules, now)),
            cost_terms(candidate, demand),
            candidate.session_id in chosen,
        )
        for candidate in candidates
    ]
    return sorted(weighed, key=lambda w: (not w.shortlisted, bool(w.reasons), sum(w.cost)))


def explain_all(
    candidates: Sequence[Candidate], demand: Demand, rules: Rules, now: float
) -> Mapping[str, list[str]]:
    """`explain` for every provider, by session id: why a request found nobody."""
    return {c.session_id: explain(c, demand, rules, now) for c in candidates}
