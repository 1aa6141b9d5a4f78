"""The network in numbers, for everybody: what it did, who is connected, what they serve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.providers.hub import Hub
from darkbloom_provider.coordinator.providers.registry import Session, clamp
from darkbloom_provider.coordinator.public.kept import Kept
from darkbloom_provider.coordinator.public.traffic import Traffic, traffic
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ANYONE
from darkbloom_provider.coordinator.rest.replies import json_reply
from darkbloom_provider.coordinator.rest.shapes import (
    COUNT,
    NUMBER,
    TEXT,
    TIME,
    Operation,
    array,
    one_of,
    record,
)
from darkbloom_provider.coordinator.rest.view_rows import shapes
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.coordinator.settings import TRUST_RANK

LIFE: Final = timedelta(minutes=1)
LATELY: Final = timedelta(minutes=30)
MAX_CORES: Final = 4_096
_TRAFFIC: Final = {"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT}
_CORES: Final = record(total=COUNT, performance=COUNT, efficiency=COUNT)
_STATS: Final = record(
    total_requests=COUNT,
    total_prompt_tokens=COUNT,
    total_completion_tokens=COUNT,
    total_tokens=COUNT,
    avg_tokens_per_request=NUMBER,
    active_providers=COUNT,
    total_gpu_cores=COUNT,
    total_cpu_cores=COUNT,
    total_memory_gb=COUNT,
    total_bandwidth_gbs=NUMBER,
    network_capacity_tps=NUMBER,
    providers=array(
        record(
            id=TEXT,
            chip=TEXT,
            chip_family=TEXT,
            chip_tier=TEXT,
            machine_model=TEXT,
            memory_gb=COUNT,
            gpu_cores=COUNT,
            cpu_cores=_CORES,
            memory_bandwidth_gbs=NUMBER,
            status=one_of("online", "serving", "offline", "untrusted"),
            trust_level=one_of(*TRUST_RANK),
            decode_tps=NUMBER,
            requests_served=COUNT,
            tokens_generated=COUNT,
            models=array(TEXT),
            current_model=TEXT,
        )
    ),
    models=array(record(id=TEXT, providers=COUNT)),
    time_series=array(record(timestamp=TIME, requests=COUNT, **_TRAFFIC)),
)


def endpoints(services: Services, hub: Hub) -> list[Endpoint]:
    """The endpoint, bound to the coordinator's parts."""
    kept: Kept[dict[str, Any]] = Kept(LIFE, services.monotonic)

    async def add_up() -> dict[str, Any]:
        since = services.clock() - LATELY
        return stats(await services.db.read(lambda c: traffic(c, since=since)), list(hub.registry))

    async def serve(_request: Request) -> Response:
        return json_reply(await kept.get((), add_up))

    operation = Operation("The network in numbers; kept for a minute", _STATS)
    return [Endpoint("GET", "/v1/stats", serve, ANYONE, operation)]


def stats(done: Traffic, sessions: Sequence[Session]) -> dict[str, Any]:
    """The reply.

    Source: the network's statistics. Its totals are the larger of what providers say about
    themselves and what was paid for here; its capacity is always 0.
    """
    providers = [_provider(session) for session in sessions]
    requests = max(sum(p["requests_served"] for p in providers), done.requests)
    written = max(sum(p["tokens_generated"] for p in providers), done.completion_tokens)
    tokens = done.prompt_tokens + written
    serving = Counter(model for provider in providers for model in provider["models"])
    return {
        "total_requests": requests,
        "total_prompt_tokens": done.prompt_tokens,
        "total_completion_tokens": written,
        "total_tokens": tokens,
        "avg_tokens_per_request": round(tokens / requests, 2) if requests else 0.0,
        "active_providers": len(providers),
        "total_gpu_cores": sum(p["gpu_cores"] for p in providers),
        "total_cpu_cores": sum(p["cpu_cores"]["total"] for p in providers),
        "total_memory_gb": sum(p["memory_gb"] for p in providers),
        "total_bandwidth_gbs": round(sum(p["memory_bandwidth_gbs"] for p in providers), 2),
        "network_capacity_tps": 0,
        "providers": providers,
        "models": [{"id": model, "providers": n} for model, n in sorted(serving.items())],
        "time_series": shapes(done.minutes),
    }


def _provider(session: Session) -> dict[str, Any]:
    hardware = session.hardware
    cores = hardware.cpu_cores
    return {
        "id": session.id,
        "chip": hardware.chip_name,
        "chip_family": hardware.chip_family,
        "chip_tier": hardware.chip_tier,
        "machine_model": hardware.machine_model,
        "memory_gb": hardware.memory_gb,
        "gpu_cores": _cores(hardware.gpu_cores),
        "cpu_cores": {
            "total": _cores(cores.total),
            "performance": _cores(cores.performance),
            "efficiency": _cores(cores.efficiency),
        },
        "memory_bandwidth_gbs": hardware.memory_bandwidth_gbs,
        "status": session.status,
        "trust_level": session.trust,
        "decode_tps": session.decode_tps,
        "requests_served": max(session.stats.requests_served, 0),
        "tokens_generated": max(session.stats.tokens_generated, 0),
        "models": [model.id for model in session.models],
        "current_model": session.active_model or "",
    }


def _cores(reported: int) -> int:
    return int(clamp(reported, MAX_CORES))
