"""The heartbeat's figures against what the engine, MLX and the system say themselves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import mlx.core as mx

from darkbloom_provider.daemon.facts import GB, Machine, ProviderFacts, capacity
from darkbloom_provider.engine.requests import EngineSnapshot
from darkbloom_provider.host import hardware, metrics, thermal
from darkbloom_provider.host.posture import Posture
from darkbloom_provider.protocol.messages import BackendSlot, Heartbeat
from support.processes import until
from support.sdk import Route, route, user

CONSUMERS = 3
LIMIT = 200


def slots(engine: EngineSnapshot) -> tuple[BackendSlot, ...]:
    return capacity(engine, 1).slots


async def test_a_heartbeat_says_what_the_engine_does_and_holds(
    home_root: Path, tiny_model: Path
) -> None:
    weights = (tiny_model / "model.safetensors").stat().st_size
    machine = Machine(
        hardware=hardware.detect(), posture=Posture(), wallet_address="0x1", machine_id="0" * 32
    )
    async with route("local", home_root, tiny_model) as r:
        facts = ProviderFacts(machine, r.supervisor, version="1", public_key="key")
        enough = asyncio.Event()
        beats: list[Heartbeat] = []

        def all_run() -> bool:
            before, beat, after = r.supervisor.engine(), facts.heartbeat(), r.supervisor.engine()
            told = beat.backend_capacity
            assert told is not None
            # The engine's thread goes on meanwhile: it is one of its steps or the next.
            assert told.slots in {slots(before), slots(after)}
            beats.append(beat)
            return told.slots[0].num_running == CONSUMERS

        try:
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(ask(r, enough)) for _ in range(CONSUMERS)]
                await until(all_run, "all consumers to be served at once")
                enough.set()
        finally:
            enough.set()
        await r.idle()

        busy, quiet = beats[-1], facts.heartbeat()
        assert busy.status == "serving"
        assert (busy.active_model, busy.warm_models) == (r.model, (r.model,))
        assert busy.backend_capacity is not None
        (slot,) = busy.backend_capacity.slots
        assert (slot.model, slot.state, slot.num_waiting) == (r.model, "running", 0)
        assert slot.max_tokens_potential == CONSUMERS * LIMIT
        assert CONSUMERS < slot.active_tokens <= CONSUMERS * 1024
        assert busy.backend_capacity.total_memory_gb == hardware.detect().memory_gb

        assert quiet.status == "idle"
        assert quiet.backend_capacity is not None
        (slot,) = quiet.backend_capacity.slots
        assert (slot.num_running, slot.num_waiting) == (0, 0)
        assert (slot.active_tokens, slot.max_tokens_potential) == (0, 0)
        counted = [tokens for task in asked for tokens in task.result()]
        assert quiet.stats.requests_served == len(counted)
        assert quiet.stats.tokens_generated == sum(counted)

        memory = r.supervisor.engine().memory
        assert weights <= memory.active_gb * GB <= mx.get_peak_memory()
        assert memory.peak_gb * GB <= mx.get_peak_memory()


async def ask(r: Route, enough: asyncio.Event) -> list[int]:
    """Ask again and again; the completion tokens of every answer, as the consumer was told."""
    counted: list[int] = []
    while not enough.is_set():
        answer = await r.openai.chat.completions.create(
            model=r.model, messages=user("hello"), max_tokens=LIMIT
        )
        assert answer.usage is not None
        counted.append(answer.usage.completion_tokens)
    return counted


def test_the_load_is_the_systems_and_within_its_bounds() -> None:
    sampled = metrics.sampler()()
    assert 0 < sampled.memory_pressure < 1
    assert 0 <= sampled.cpu_usage <= 1
    assert sampled.thermal_state in thermal.THERMAL_STATES
