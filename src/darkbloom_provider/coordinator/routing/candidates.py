"""What routing decides on: a provider and a request at one instant, and the operator's rules. Pure.

Source of the figures: the network's routing gate and cost function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from darkbloom_provider.coordinator.settings import TrustLevel
from darkbloom_provider.protocol.messages import (
    BackendCapacity,
    BackendSlot,
    PrivacyCapabilities,
    SystemMetrics,
)

Status = Literal["online", "serving", "untrusted"]

UNKNOWN_CAPACITY_CONCURRENCY: Final = 4
CONCURRENCY_TIERS: Final = ((24, 2), (48, 4), (96, 6), (128, 8))
"""Total GB up to which a provider gets so many requests at once; above the last one: 12."""
TOP_CONCURRENCY: Final = 12
KV_BYTES_PER_TOKEN: Final = 400_000
KV_TOKENS_MAX: Final = 16 * 2**20


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
    challenge_problem: str | None = None
    """What was wrong with the answer to the last challenge; None if it passed or none came yet."""
    outdated: bool = False
    """Whether its version is below the operator's minimum."""

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


def max_concurrency(candidate: Candidate, rules: Rules | None = None) -> int:
    """How many requests a provider may have at once."""
    if rules is not None and rules.max_requests is not None:
        return rules.max_requests
    if candidate.capacity is None:
        return UNKNOWN_CAPACITY_CONCURRENCY
    total = candidate.total_memory_gb
    return next((n for bound, n in CONCURRENCY_TIERS if total <= bound), TOP_CONCURRENCY)


def memory_needed_gb(candidate: Candidate, demand: Demand) -> float:
    """GB this request adds: its key-value cache, and the weights unless they are resident."""
    slot = candidate.slot(demand.model)
    weights = 0.0 if slot is not None and slot.state == "running" else demand.size_gb
    return weights + cache_gb(demand)


def cache_gb(demand: Demand) -> float:
    """GB of the key-value cache of a request."""
    tokens = min(demand.prompt_tokens + demand.max_output_tokens, KV_TOKENS_MAX)
    return tokens * KV_BYTES_PER_TOKEN / 2**30


def queue_depth(candidate: Candidate, model: str) -> int:
    """Requests for `model` ahead of a new one: ours or the engine's own figure, the larger."""
    ours = sum(1 for job in candidate.in_flight if job.model == model)
    slot = candidate.slot(model)
    theirs = 0 if slot is None else max(slot.num_running, 0) + max(slot.num_waiting, 0)
    return max(ours, theirs)
