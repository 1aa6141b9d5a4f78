"""What a provider asks for a model, as far as it does not depend on the request. Pure.

Among a thousand providers few change between two decisions. What the gate (`gates`) and the cost
(`costs`) say of each is taken apart once, when it changes, into the little that a request still
has to be held against: how fresh, how much memory, how many milliseconds a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from darkbloom_provider.coordinator.routing.candidates import (
    Candidate,
    Demand,
    Rules,
    cache_gb,
    queue_depth,
)
from darkbloom_provider.coordinator.routing.costs import cost_ms, cost_terms
from darkbloom_provider.coordinator.routing.gates import may_serve

NEAR_TIE_MS: Final = 3_000
"""Candidates this close to the best one count as equally good."""
_VERY_MANY_TOKENS: Final = 2**40


@dataclass(frozen=True, slots=True)
class Quote:
    """One provider's terms for one model. Costs are in milliseconds."""

    candidate: Candidate
    fresh_until: float
    """Until when its last challenge counts, seconds of the coordinator's monotonic clock."""
    room_gb: float
    """Memory for what a request adds."""
    resident: bool
    """Whether the weights are in memory already."""
    base_ms: float
    prompt_token_ms: float
    answer_token_ms: float | None
    """None if the cost is no straight line: the engine has requests waiting, each of unknown
    length."""
    load: tuple[int, int]
    """Requests for this model ahead of a new one, and all that were given to this machine."""


def quote(candidate: Candidate, model: str, rules: Rules) -> Quote | None:
    """A provider's terms for a model; None while it serves no request for it, whatever it is."""
    if candidate.verified_at is None:
        return None
    nothing = Demand(model, prompt_tokens=0, max_output_tokens=0)
    if not may_serve(candidate, nothing, rules, candidate.verified_at):
        return None
    empty = cost_terms(candidate, nothing)
    one = cost_terms(candidate, replace(nothing, prompt_tokens=1, max_output_tokens=1))
    many = cost_terms(candidate, replace(nothing, max_output_tokens=_VERY_MANY_TOKENS))
    slot = candidate.slot(model)
    total = candidate.total_memory_gb
    return Quote(
        candidate=candidate,
        fresh_until=candidate.verified_at + rules.fresh_seconds,
        room_gb=total - candidate.active_memory_gb if total > 0 else math.inf,
        resident=slot is not None and slot.state == "running",
        base_ms=sum(empty),
        prompt_token_ms=one.prompt,
        answer_token_ms=one.answer if many.backlog == empty.backlog else None,
        load=(queue_depth(candidate, model), len(candidate.in_flight)),
    )


def shortlist(quotes: Iterable[Quote], demand: Demand, *, now: float) -> list[Candidate]:
    """Those among whom chance decides; empty if none may serve this request now.

    Among those within `NEAR_TIE_MS` of the cheapest: the shortest queue, then the fewest requests
    in all.
    """
    prompt, answer = demand.prompt_tokens, demand.max_output_tokens
    loaded = cache_gb(demand) if demand.size_gb > 0 else -math.inf
    cold = loaded + demand.size_gb
    able = [
        each
        for each in quotes
        if now <= each.fresh_until and (loaded if each.resident else cold) <= each.room_gb
    ]
    if demand.tried or demand.serials:
        able = [each for each in able if _wanted(each.candidate, demand)]
    if not able:
        return []
    costs = [
        cost_ms(each.candidate, demand)
        if each.answer_token_ms is None
        else each.base_ms + prompt * each.prompt_token_ms + answer * each.answer_token_ms
        for each in able
    ]
    limit = min(costs) + NEAR_TIE_MS
    near = [each for each, cost in zip(able, costs, strict=True) if cost <= limit]
    lightest = min([each.load for each in near])
    return [each.candidate for each in near if each.load == lightest]


def _wanted(candidate: Candidate, demand: Demand) -> bool:
    return candidate.session_id not in demand.tried and (
        not demand.serials or candidate.serial in demand.serials
    )
