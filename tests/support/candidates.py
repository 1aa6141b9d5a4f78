"""Providers as routing sees them."""

from __future__ import annotations

from dataclasses import replace

from darkbloom_provider.coordinator.routing.candidates import Candidate, InFlight
from darkbloom_provider.protocol.messages import (
    BackendCapacity,
    BackendSlot,
    PrivacyCapabilities,
    SystemMetrics,
)
from support.scripted_provider import PROMISES

MODEL = "mlx-community/gemma-4-26b-a4b-it-8bit"
NOW = 1_000.0


def candidate(**changes: object) -> Candidate:
    plain = Candidate(
        session_id="a",
        models=frozenset({MODEL}),
        status="online",
        trust="none",
        runtime_verified=True,
        public_key="key",
        backend="inprocess-mlx",
        encrypted_chunks=True,
        sip_verified=True,
        privacy=PROMISES,
        verified_at=NOW - 1,
        in_flight=(),
        capacity=None,
        metrics=SystemMetrics(),
        memory_gb=64,
        bandwidth_gbs=400,
        decode_tps=0,
        prefill_tps=0,
    )
    return replace(plain, **changes)  # type: ignore[arg-type] # the names are checked by replace


def capacity(total: float, active: float = 0, **slot: object) -> BackendCapacity:
    slots = (BackendSlot.model_validate({"model": MODEL, **slot}),) if slot else ()
    return BackendCapacity(slots=slots, gpu_memory_active_gb=active, total_memory_gb=total)


def jobs(count: int, model: str = MODEL) -> tuple[InFlight, ...]:
    return (InFlight(model, 100),) * count


def without(flag: str) -> PrivacyCapabilities:
    return PROMISES.model_copy(update={flag: False})
