"""How long a provider is expected to take for a request, term by term. Pure.

Source: the network's cost function (milliseconds, lower is better). Trust, reputation, warm lists
and price do not enter it, as in the network.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from darkbloom_provider.coordinator.routing.candidates import Candidate, Demand, queue_depth
from darkbloom_provider.protocol.messages import BackendSlot

SLOT_PENALTY_MS: Final = {"running": 0.0, "": 0.0, "idle_shutdown": 20_000.0}
UNKNOWN_SLOT_PENALTY_MS: Final = 2_500.0
THERMAL_PENALTY_MS: Final = {"fair": 2_000.0, "serious": 8_000.0}


class CostTerms(NamedTuple):
    """The cost of one provider for one request, in milliseconds; their sum is the cost."""

    slot: float
    """The model has to be loaded first, or may have to."""
    queue: float
    """Requests for this model ahead of this one."""
    load: float
    """All requests the coordinator has given to this machine."""
    backlog: float
    """Writing what those ahead may still ask for."""
    prompt: float
    """Reading this request's prompt."""
    answer: float
    """Writing its longest answer, at the speed that is left."""
    memory_pressure: float
    cpu: float
    heat: float
    memory_use: float


def cost_terms(candidate: Candidate, demand: Demand) -> CostTerms:
    """What each circumstance adds."""
    slot = candidate.slot(demand.model) or BackendSlot(model=demand.model, state="unknown")
    running, waiting = max(slot.num_running, 0), max(slot.num_waiting, 0)
    decode = candidate.decode_tps or math.sqrt(candidate.bandwidth_gbs) or 1.0
    prefill = candidate.prefill_tps or 4 * decode
    effective = max(1.0, decode / (1 + 0.27 * running)) if running else decode
    queued_tokens = waiting * demand.max_output_tokens
    mine = sum(job.max_output_tokens for job in candidate.in_flight if job.model == demand.model)
    unseen_tokens = max(0, mine - slot.max_tokens_potential - queued_tokens)
    backlog = slot.max_tokens_potential + queued_tokens + unseen_tokens
    total = candidate.total_memory_gb
    crowding = min(max(candidate.active_memory_gb / total, 0.0), 1.0) if total > 0 else 0.0
    return CostTerms(
        slot=SLOT_PENALTY_MS.get(slot.state, UNKNOWN_SLOT_PENALTY_MS),
        queue=3_000.0 * queue_depth(candidate, demand.model),
        load=750.0 * len(candidate.in_flight),
        backlog=1_000 * backlog / effective,
        prompt=1_000 * demand.prompt_tokens / prefill,
        answer=1_000 * demand.max_output_tokens / effective,
        memory_pressure=4_000 * candidate.metrics.memory_pressure,
        cpu=1_500 * candidate.metrics.cpu_usage,
        heat=THERMAL_PENALTY_MS.get(candidate.metrics.thermal_state, 0.0),
        memory_use=5_000 * crowding,
    )


def cost_ms(candidate: Candidate, demand: Demand) -> float:
    """How long this provider is expected to take, with penalties, in milliseconds."""
    return sum(cost_terms(candidate, demand))
