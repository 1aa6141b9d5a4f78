"""Prompts that begin alike, on a real model: computed once, and nobody's text changes by it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from darkbloom_provider.engine.batch import Batch
from darkbloom_provider.engine.loading import Weights, load_steps
from darkbloom_provider.engine.prompt import read
from darkbloom_provider.engine.prompt_cache import PromptCache
from darkbloom_provider.engine.requests import EngineSettings, GenerationRequest
from darkbloom_provider.engine.sampling import Samplers
from darkbloom_provider.engine.updates import Failed, Finished, Progress, Released, RequestUpdate

SETTINGS = EngineSettings(max_running=16, prefill_step_busy=16, prefill_step_idle=64)
SYSTEM = "the stone and the river " * 12
"""A little more than a hundred tokens."""
ENOUGH = 10**8


@pytest.fixture(scope="module")
def weights(tiny_model: Path) -> Weights:
    steps = load_steps(tiny_model, step_bytes=10**9)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: Weights = done.value
            return result


class Counting:
    """The model, with the positions that went through it."""

    def __init__(self, model: object) -> None:
        self._model = model
        self.positions = 0

    def __call__(self, tokens: mx.array, **options: object) -> object:
        self.positions += tokens.size
        return self._model(tokens, **options)  # type: ignore[operator] # a module of mlx

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)


class Run:
    """One batch with a prompt cache, and what came of each request."""

    def __init__(
        self, weights: Weights, budget: int = ENOUGH, settings: EngineSettings = SETTINGS
    ) -> None:
        self.model = Counting(weights.model)
        self.cache = PromptCache(budget)
        self.batch = Batch(
            replace(weights, model=self.model),
            settings=settings,
            samplers=Samplers(itertools.count(1).__next__),
            cache=self.cache,
        )
        self.tokenizer = weights.tokenizer
        self.text: dict[int, str] = {}
        self.ends: dict[int, Finished | Failed | Released] = {}

    def add(self, key: int, request: GenerationRequest) -> None:
        self.text[key] = ""
        self.take(self.batch.add(key, request, read(self.tokenizer, request)))

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.take(self.batch.step())

    def to_the_end(self) -> dict[int, str]:
        for _ in range(2_000):
            if not self.batch.busy:
                return self.text
            self.step()
        raise AssertionError("the batch does not come to an end")

    def take(self, updates: list[RequestUpdate]) -> None:
        for update in updates:
            if isinstance(update, Progress):
                self.text[update.key] += update.text
            elif isinstance(update, Finished | Failed | Released):
                self.ends[update.key] = update


def ask(text: str, max_tokens: int = 12, tenant: str | None = None) -> GenerationRequest:
    return GenerationRequest("r", "m", prompt=text, max_tokens=max_tokens, tenant=tenant)


def cold(weights: Weights, request: GenerationRequest) -> str:
    run = Run(weights, budget=0)
    run.add(0, request)
    return run.to_the_end()[0]


def tokens_of(weights: Weights, text: str) -> int:
    return len(list(weights.tokenizer.encode(text)))


def test_a_second_request_computes_only_what_is_new_and_says_the_same(weights: Weights) -> None:
    run = Run(weights)
    run.add(0, ask(SYSTEM + "water"))
    run.to_the_end()
    before = run.model.positions
    second = ask(SYSTEM + "light")
    run.add(1, second)
    assert run.to_the_end()[1] == cold(weights, second)
    assert run.model.positions - before < 12 + 12


def test_an_exact_repetition_computes_one_token_of_its_prompt(weights: Weights) -> None:
    run = Run(weights)
    request = ask(SYSTEM)
    run.add(0, request)
    run.to_the_end()
    before = run.model.positions
    run.add(1, request)
    texts = run.to_the_end()
    assert texts[1] == texts[0] == cold(weights, request)
    assert run.model.positions - before <= 12 + 1


def test_the_next_turn_does_not_compute_the_history(weights: Weights) -> None:
    run = Run(weights)
    run.add(0, ask(SYSTEM, 60))
    answer = run.to_the_end()[0]
    before = run.model.positions
    turn = ask(SYSTEM + answer + " and then", 10)
    run.add(1, turn)
    assert run.to_the_end()[1] == cold(weights, turn)
    # Text that is read again may be cut into other tokens here and there.
    assert run.model.positions - before < tokens_of(weights, SYSTEM + answer) // 2


@pytest.mark.parametrize("copies", [2, 7, 16])
def test_identical_prompts_admitted_together_compute_it_once(weights: Weights, copies: int) -> None:
    run = Run(weights)
    request = ask(SYSTEM)
    for key in range(copies):
        run.add(key, request)
    assert set(run.to_the_end().values()) == {cold(weights, request)}
    assert run.model.positions <= tokens_of(weights, SYSTEM) + copies * (12 + 1)


def test_chats_with_one_system_prompt_compute_it_once(weights: Weights) -> None:
    run = Run(weights)
    requests = [ask(f"{SYSTEM} question {n * 7919}", 10) for n in range(16)]
    for key, request in enumerate(requests):
        run.add(key, request)
    texts = run.to_the_end()
    own = sum(tokens_of(weights, f" question {n * 7919}") + 10 for n in range(16))
    # Rows of one piece are padded to the longest of them.
    assert run.model.positions < tokens_of(weights, SYSTEM) + 2 * own
    for key, request in enumerate(requests):
        assert texts[key] == cold(weights, request)


def test_a_request_that_comes_later_goes_on_from_one_that_is_being_decoded(
    weights: Weights,
) -> None:
    run = Run(weights)
    run.add(0, ask(SYSTEM + "water", 40))
    run.step(20)
    assert len(run.cache) == 0
    second = ask(SYSTEM + "light")
    run.add(1, second)
    before = run.model.positions
    run.step()
    assert run.model.positions - before < 16
    assert run.to_the_end()[1] == cold(weights, second)
    assert run.text[0] == cold(weights, ask(SYSTEM + "water", 40))


def test_a_request_that_comes_while_its_beginning_is_computed_waits_for_it(
    weights: Weights,
) -> None:
    run = Run(weights)
    run.add(0, ask(SYSTEM + "water"))
    run.step()
    second = ask(SYSTEM + "light")
    run.add(1, second)
    texts = run.to_the_end()
    assert texts[1] == cold(weights, second)
    assert run.model.positions < tokens_of(weights, SYSTEM) * 1.5 + 2 * 20


def test_whoever_waits_for_a_request_that_is_cancelled_begins_by_itself(weights: Weights) -> None:
    run = Run(weights)
    request = ask(SYSTEM)
    run.add(0, request)
    run.add(1, request)
    run.step()
    run.take(run.batch.cancel(0))
    assert run.to_the_end()[1] == cold(weights, request)


def test_a_request_held_back_holds_up_nobody(weights: Weights) -> None:
    run = Run(weights)
    run.add(0, ask(SYSTEM))
    run.add(1, ask(SYSTEM))
    run.add(2, ask("a", 3))
    run.step(6)
    assert isinstance(run.ends.get(2), Finished)
    assert 1 not in run.ends


def test_tenants_share_nothing(weights: Weights) -> None:
    run = Run(weights)
    for key, tenant in enumerate([None, "one", "two"]):
        run.add(key, ask(SYSTEM, tenant=tenant))
    texts = run.to_the_end()
    assert set(texts.values()) == {cold(weights, ask(SYSTEM))}
    assert run.model.positions >= 3 * tokens_of(weights, SYSTEM)
    assert run.cache.hit_tokens == 0


@pytest.mark.parametrize("budget", [0, 1, 40_000, 300_000])
def test_a_full_cache_and_many_requests_never_stall(weights: Weights, budget: int) -> None:
    run = Run(weights, budget, replace(SETTINGS, max_running=3))
    requests = [ask(f"{SYSTEM * (1 + n % 3)} {n % 4}", 5) for n in range(24)]
    for key, request in enumerate(requests):
        run.add(key, request)
        run.step(key % 3)
    texts = run.to_the_end()
    for key, request in enumerate(requests[:4]):
        assert texts[key] == cold(weights, request)
    assert all(isinstance(end, Finished) for end in run.ends.values())
    assert run.cache.nbytes <= budget


def test_what_is_kept_does_not_hold_on_to_the_batch_it_came_from(weights: Weights) -> None:
    run = Run(weights)
    for key in range(8):
        run.add(key, ask(f"{key} {SYSTEM}", 4))
    run.to_the_end()
    mx.synchronize()
    mx.clear_cache()
    held = mx.get_active_memory() - weights.weight_bytes
    run.cache.shrink(0)
    mx.clear_cache()
    left = mx.get_active_memory() - weights.weight_bytes
    assert held - left <= 8 * 160 * 2 * 2 * 2 * 16 * 4 * 1.5
