"""Measuring a model through the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from darkbloom_provider.engine import benchmark
from darkbloom_provider.engine.benchmark import Plan, steady_rate
from darkbloom_provider.engine.engine import Engine
from darkbloom_provider.engine.errors import EngineError, ModelNotLoadedError
from darkbloom_provider.engine.requests import EngineSettings
from support.tiny_model import CONTEXT_LENGTH, MODEL_ID

SMALL = Plan(batches=(1, 3), prompt_tokens=40, output_tokens=4, rounds=2)


async def test_every_figure_is_measured_and_nothing_is_left_running(tiny_model: Path) -> None:
    steps: list[tuple[float, str]] = []
    async with Engine(EngineSettings(max_running=3)) as engine:
        await engine.load(MODEL_ID, tiny_model)
        found = await benchmark.measure(
            engine, MODEL_ID, SMALL, progress=lambda share, what: steps.append((share, what))
        )
        slot = engine.snapshot().slot(MODEL_ID)
        assert slot is not None
        assert (slot.running, slot.waiting) == (0, 0)
    assert [rates.batch for rates in found.rates] == [1, 3]
    assert all(rates.prefill_tps > 0 and rates.decode_tps > 0 for rates in found.rates)
    assert 30 < found.prompt_tokens < 60
    assert found.ttft_cold_s > 0
    assert found.ttft_warm_s > 0
    assert found.memory.peak_gb > 0
    assert found.refused == ()
    shares = [share for share, _ in steps]
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] < 1
    assert "batch of 3" in [what for _, what in steps]


async def test_a_batch_for_which_there_is_no_room_is_told_and_left_out(tiny_model: Path) -> None:
    async with Engine(EngineSettings(max_running=1, max_waiting=0)) as engine:
        await engine.load(MODEL_ID, tiny_model)
        found = await benchmark.measure(engine, MODEL_ID, SMALL)
        assert [rates.batch for rates in found.rates] == [1]
        assert found.refused == (3,)


async def test_a_model_that_cannot_answer_at_all_is_an_error(tiny_model: Path) -> None:
    async with Engine() as engine:
        await engine.load(MODEL_ID, tiny_model)
        with pytest.raises(ModelNotLoadedError):
            await benchmark.measure(engine, "another", SMALL)
        long = Plan(batches=(1,), prompt_tokens=2 * CONTEXT_LENGTH, rounds=1)
        with pytest.raises(EngineError):
            await benchmark.measure(engine, MODEL_ID, long)
        fitting = long.within(CONTEXT_LENGTH)
        assert (await benchmark.measure(engine, MODEL_ID, fitting)).prompt_tokens > 400


async def test_what_takes_long_is_not_repeated(tiny_model: Path) -> None:
    now = iter(range(10**6))
    plan = Plan(batches=(1,), prompt_tokens=8, output_tokens=2, rounds=50, patience_s=1)
    async with Engine() as engine:
        await engine.load(MODEL_ID, tiny_model)
        await benchmark.measure(engine, MODEL_ID, plan, clock=lambda: float(next(now)))
        # The tokenizer's trial, a pair of first tokens, a prompt and a completion.
        assert engine.snapshot().tokens_generated < 30


@pytest.mark.parametrize(
    ("streams", "rate"),
    [
        ([[(0, 1), (1, 2), (2, 3)]], 1),
        ([[(0, 1), (2, 5)], [(1, 1), (2, 3), (9, 4)]], 6),
        ([[(0, 1), (1, 3)], [(4, 1), (6, 7)]], 9 / 6),
    ],
    ids=["one stream", "only while both flow", "never together"],
)
def test_the_rate_is_that_of_the_time_when_all_streams_flow(
    streams: list[list[tuple[float, int]]], rate: float
) -> None:
    assert steady_rate(streams) == pytest.approx(rate)
