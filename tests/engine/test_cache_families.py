"""Every kind of cache that mlx-lm batches: company, sharing and leaving change nobody's text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from darkbloom_provider.engine.loading import Weights
from darkbloom_provider.engine.prompt_cache import PromptCache
from darkbloom_provider.engine.requests import EngineSettings, GenerationRequest
from support.batch_run import PHASES, SETTINGS, Run, alone, ask, reach
from support.families import FAMILIES, WINDOW, build_family
from support.greedy import greedy

SYSTEM = "the stone and the river " * 12
"""About a hundred tokens: several windows."""
MIXED = (
    ask("hello", 24),
    ask(SYSTEM + "give light", 12),
    ask("a", WINDOW + 8),
    ask("water", 1),
    ask(SYSTEM[: 6 * WINDOW], 16),
    ask(SYSTEM + "take time", 20),
)
SHARED = tuple(ask(SYSTEM + word, 6) for word in ("water", "house", "year", "light", "stone"))


class Family:
    """A model, and what it says to a request that comes alone."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._alone: dict[tuple[str | None, int | None], str] = {}

    def alone(self, request: GenerationRequest) -> str:
        asked = request.prompt, request.max_tokens
        if asked not in self._alone:
            self._alone[asked] = alone(self.weights, request).text
        return self._alone[asked]

    def run(self, budget: int = 10**8, settings: EngineSettings = SETTINGS) -> Run:
        return Run(self.weights, settings, cache=PromptCache(budget))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tiny_model: Path) -> Family:
    return Family(build_family(request.param, tiny_model))


def test_alone_a_request_gets_what_mlx_lm_itself_generates(family: Family) -> None:
    for request in MIXED:
        assert family.alone(request) == greedy(family.weights, request).text


@pytest.mark.parametrize("steps_between", [0, 3])
def test_mixed_lengths_that_join_and_leave_between_steps_cold_and_then_from_the_cache(
    family: Family, steps_between: int
) -> None:
    run = family.run()
    computed = []
    for turn in (0, 10):
        before = run.model.positions
        for key, request in enumerate(MIXED):
            run.add(turn + key, request)
            run.step(steps_between)
        outcomes = run.to_the_end()
        computed.append(run.model.positions - before)
        assert [outcomes[turn + key].text for key in range(len(MIXED))] == [
            family.alone(request) for request in MIXED
        ]
    assert computed[1] < computed[0]


def test_a_beginning_in_common_is_computed_once(family: Family) -> None:
    separate, shared = family.run(budget=0), family.run()
    for run in (separate, shared):
        for key, request in enumerate(SHARED):
            run.add(key, request)
        outcomes = run.to_the_end()
        assert [outcomes[key].text for key in range(len(SHARED))] == [
            family.alone(request) for request in SHARED
        ]
    assert shared.model.positions < separate.model.positions / 2


def test_the_next_turn_goes_on_from_the_last_one(family: Family) -> None:
    run = family.run()
    run.add(0, MIXED[1])
    first = run.to_the_end()[0].text
    follow = ask(f"{MIXED[1].prompt}{first} then they come", 12)
    before = run.model.positions
    run.add(1, follow)
    assert run.to_the_end()[1].text == family.alone(follow)
    assert run.model.positions - before < WINDOW * 2 + 12


@pytest.mark.parametrize("phase", PHASES)
def test_a_request_cancelled_in_any_phase_leaves_the_others_their_text(
    family: Family, phase: str
) -> None:
    run = family.run(settings=replace(SETTINGS, max_running=3))
    survivors = (MIXED[0], MIXED[5])
    for key, request in enumerate(survivors):
        run.add(key, request)
    run.step(2)
    run.add(9, replace(MIXED[1], max_tokens=60))
    reach(run, 9, phase)
    run.cancel(9)
    assert run.outcomes[9].released
    outcomes = run.to_the_end()
    assert [outcomes[key].text for key in (0, 1)] == [family.alone(each) for each in survivors]
    # What it left in the cache is as good as anybody's.
    run.add(10, MIXED[1])
    assert run.to_the_end()[10].text == family.alone(MIXED[1])
