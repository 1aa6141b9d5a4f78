"""Which provider gets a request. Pure: snapshots, a demand and `now` in, a choice and reasons out.

Source: the network's routing gate and cost function (milliseconds, lower is better). Trust,
reputation, warm lists and price do not enter the cost, as in the network.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from darkbloom_provider.coordinator.settings import TRUST_RANK, TrustLevel
from darkbloom_provider.protocol.messages import (
    BACKEND,
    BackendCapacity,
    BackendSlot,
    PrivacyCapabilities,
    SystemMetrics,
)

Status = Literal["online", "serving", "untrusted"]

NEAR_TIE_MS = 3_000
"""Candidates this close to the best one count as equally good."""
UNKNOWN_CAPACITY_CONCURRENCY = 4
CONCURRENCY_TIERS = ((24, 2), (48, 4), (96, 6), (128, 8))
"""Total GB up to which a provider gets so many requests at once; above the last one: 12."""
TOP_CONCURRENCY = 12
KV_BYTES_PER_TOKEN = 400_000
KV_TOKENS_MAX = 16 * 2**20
SLOT_PENALTY_MS = {"running": 0.0, "": 0.0, "idle_shutdown": 20_000.0}
UNKNOWN_SLOT_PENALTY_MS = 2_500.0
CLOSED_SLOTS = frozenset({"reloading", "crashed"})
THERMAL_PENALTY_MS = {"fair": 2_000.0, "serious": 8_000.0}

_PROMISES = (
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
class InFlight:
    """One request that the coordinator has given to a provider."""

    model: str
    max_output_tokens: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A connected provider as routing sees it, at one instant. Figures are already clamped."""

    session_id: str
    models: frozenset[str]
    status: Status
    trust: TrustLevel
    runtime_verified: bool
    public_key: str
    backend: str
    encrypted_chunks: bool
    sip_verified: bool
    privacy: PrivacyCapabilities | None
    verified_at: float | None
    """When the last challenge was passed, seconds of the coordinator's monotonic clock."""
    in_flight: tuple[InFlight, ...]
    capacity: BackendCapacity | None
    metrics: SystemMetrics
    memory_gb: float
    bandwidth_gbs: float
    decode_tps: float
    prefill_tps: float
    serial: str | None = None

    @property
    def total_memory_gb(self) -> float:
        """What the engine reports, else what the machine has."""
        if self.capacity is not None and self.capacity.total_memory_gb > 0:
            return self.capacity.total_memory_gb
        return self.memory_gb

    @property
    def active_memory_gb(self) -> float:
        """GB the engine occupies; 0 if it never said."""
        return 0.0 if self.capacity is None else self.capacity.gpu_memory_active_gb

    def slot(self, model: str) -> BackendSlot | None:
        """The engine's first slot for `model`, if it listed one."""
        slots = () if self.capacity is None else self.capacity.slots
        return next((slot for slot in slots if slot.model == model), None)


@dataclass(frozen=True, slots=True)
class Demand:
    """What one request needs."""

    model: str
    prompt_tokens: int
    """Estimated."""
    max_output_tokens: int
    size_gb: float = 0.0
    """Size of the model in the catalogue; 0 skips the memory gate."""
    serials: frozenset[str] = frozenset()
    """If not empty, only these machines will do."""
    tried: frozenset[str] = frozenset()
    """Sessions that have already failed this request."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The operator's part of the gate."""

    min_trust: TrustLevel = "none"
    fresh_seconds: float = 360
    max_requests: int | None = None
    """How many requests any provider may have at once; None follows its memory."""


def max_concurrency(candidate: Candidate) -> int:
    """How many requests a provider may have at once."""
    if candidate.capacity is None:
        return UNKNOWN_CAPACITY_CONCURRENCY
    total = candidate.total_memory_gb
    return next((n for bound, n in CONCURRENCY_TIERS if total <= bound), TOP_CONCURRENCY)


def memory_needed_gb(candidate: Candidate, demand: Demand) -> float:
    """GB this request adds: its key-value cache, and the weights unless they are resident."""
    slot = candidate.slot(demand.model)
    weights = 0.0 if slot is not None and slot.state == "running" else demand.size_gb
    tokens = min(demand.prompt_tokens + demand.max_output_tokens, KV_TOKENS_MAX)
    return weights + tokens * KV_BYTES_PER_TOKEN / 2**30


def explain(candidate: Candidate, demand: Demand, rules: Rules, now: float) -> list[str]:
    """Every reason why this provider may not serve this request now; empty means it may."""
    return [
        *_standing(candidate, rules, now),
        *_privacy(candidate),
        *_fitness(candidate, demand, rules),
    ]


def trustworthy(candidate: Candidate, rules: Rules) -> bool:
    """Whether a provider counts as serving at all, however busy or stale it is just now."""
    return (
        candidate.status != "untrusted"
        and TRUST_RANK[candidate.trust] >= TRUST_RANK[rules.min_trust]
        and not _privacy(candidate)
    )


def _standing(candidate: Candidate, rules: Rules, now: float) -> list[str]:
    reasons = []
    if candidate.status == "untrusted":
        reasons.append("untrusted since a failed check")
    if TRUST_RANK[candidate.trust] < TRUST_RANK[rules.min_trust]:
        reasons.append(f"trust level {candidate.trust} is below {rules.min_trust}")
    if not candidate.runtime_verified:
        reasons.append("its runtime is not on the operator's list")
    if candidate.verified_at is None:
        reasons.append("has not passed a challenge")
    elif now - candidate.verified_at > rules.fresh_seconds:
        age = round(now - candidate.verified_at)
        reasons.append(f"last passed a challenge {age} s ago")
    return reasons


def _privacy(candidate: Candidate) -> list[str]:
    reasons = []
    if not candidate.public_key:
        reasons.append("registered no usable encryption key")
    if candidate.backend != BACKEND:
        reasons.append(f"back end {candidate.backend[:40]!r} is not {BACKEND}")
    if not candidate.encrypted_chunks:
        reasons.append("does not encrypt its answers")
    if not candidate.sip_verified:
        reasons.append("system integrity protection is not confirmed")
    if candidate.privacy is None:
        reasons.append("states no privacy capabilities")
    else:
        flags = candidate.privacy.model_dump()
        reasons += [f"privacy capability {name} is off" for name in _PROMISES if not flags[name]]
    return reasons


def _fitness(candidate: Candidate, demand: Demand, rules: Rules) -> list[str]:
    reasons = []
    if candidate.session_id in demand.tried:
        reasons.append("has already failed this request")
    if demand.serials and candidate.serial not in demand.serials:
        reasons.append("is not one of the machines asked for")
    if demand.model not in candidate.models:
        reasons.append("does not serve this model")
    if len(candidate.in_flight) >= (rules.max_requests or max_concurrency(candidate)):
        reasons.append(f"is busy with {len(candidate.in_flight)} requests")
    slot = candidate.slot(demand.model)
    if slot is not None and slot.state in CLOSED_SLOTS:
        reasons.append(f"its engine is {slot.state}")
    if candidate.metrics.thermal_state == "critical":
        reasons.append("is too hot")
    total = candidate.total_memory_gb
    if demand.size_gb > 0 and total > 0:
        needed, free = memory_needed_gb(candidate, demand), total - candidate.active_memory_gb
        if free < needed:
            reasons.append(f"needs {needed:.1f} GB and has {free:.1f} GB free")
    return reasons


def cost_ms(candidate: Candidate, demand: Demand) -> float:
    """How long this provider is expected to take, with penalties, in milliseconds."""
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
    return (
        SLOT_PENALTY_MS.get(slot.state, UNKNOWN_SLOT_PENALTY_MS)
        + 3_000 * queue_depth(candidate, demand.model)
        + 750 * len(candidate.in_flight)
        + 1_000 * backlog / effective
        + 1_000 * demand.prompt_tokens / prefill
        + 1_000 * demand.max_output_tokens / effective
        + 4_000 * candidate.metrics.memory_pressure
        + 1_500 * candidate.metrics.cpu_usage
        + THERMAL_PENALTY_MS.get(candidate.metrics.thermal_state, 0.0)
        + 5_000 * crowding
    )


def queue_depth(candidate: Candidate, model: str) -> int:
    """Requests for `model` ahead of a new one: ours or the engine's own figure, the larger."""
    ours = sum(1 for job in candidate.in_flight if job.model == model)
    slot = candidate.slot(model)
    theirs = 0 if slot is None else max(slot.num_running, 0) + max(slot.num_waiting, 0)
    return max(ours, theirs)


def choose(
    candidates: Sequence[Candidate],
    demand: Demand,
    rules: Rules,
    *,
    now: float,
    chance: random.Random,
) -> Candidate | None:
    """The provider for this request, or None if none may serve it now.

    Among those within `NEAR_TIE_MS` of the cheapest: the shortest queue, then the fewest requests
    in all, then by chance, so that equal machines earn alike.
    """
    costs = {
        candidate.session_id: cost_ms(candidate, demand)
        for candidate in candidates
        if not explain(candidate, demand, rules, now)
    }
    if not costs:
        return None
    limit = min(costs.values()) + NEAR_TIE_MS
    near = [c for c in candidates if costs.get(c.session_id, math.inf) <= limit]
    loads = [(queue_depth(c, demand.model), len(c.in_flight)) for c in near]
    lightest = min(loads)
    return chance.choice([c for c, load in zip(near, loads, strict=True) if load == lightest])


def explain_all(
    candidates: Sequence[Candidate], demand: Demand, rules: Rules, now: float
) -> Mapping[str, list[str]]:
    """`explain` for every provider, by session id: why a request found nobody."""
    return {c.session_id: explain(c, demand, rules, now) for c in candidates}
