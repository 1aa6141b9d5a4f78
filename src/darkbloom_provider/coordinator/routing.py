"""Which provider gets a request. Pure: snapshots, a demand and `now` in, a choice and reasons out.

Source: the network's choice among those whom the gate (`gates`) lets through, by cost (`costs`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from darkbloom_provider.coordinator.candidates import (
    Candidate,
    Demand,
    InFlight,
    Rules,
    Status,
    max_concurrency,
    memory_needed_gb,
    queue_depth,
)
from darkbloom_provider.coordinator.costs import CostTerms, cost_ms, cost_terms
from darkbloom_provider.coordinator.gates import Reason, explain, may_serve, reasons, trustworthy

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

NEAR_TIE_MS: Final = 3_000
"""Candidates this close to the best one count as equally good."""


def shortlist(
    candidates: Sequence[Candidate], demand: Demand, rules: Rules, *, now: float
) -> list[Candidate]:
    """Those among whom chance decides; empty if none may serve this request now.

    Among those within `NEAR_TIE_MS` of the cheapest: the shortest queue, then the fewest requests
    in all.
    """
    costs = [
        (cost_ms(candidate, demand), candidate)
        for candidate in candidates
        if may_serve(candidate, demand, rules, now)
    ]
    if not costs:
        return []
    limit = min(cost for cost, _ in costs) + NEAR_TIE_MS
    loads = [
        ((queue_depth(candidate, demand.model), len(candidate.in_flight)), candidate)
        for cost, candidate in costs
        if cost <= limit
    ]
    lightest = min(load for load, _ in loads)
    return [candidate for load, candidate in loads if load == lightest]


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
