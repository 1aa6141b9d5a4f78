"""SmolLM2 among its own: real weights, a full batch, and everybody's words stay their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from darkbloom_provider.engine.loading import load_steps
from darkbloom_provider.engine.prompt_cache import MIN_TOKENS, PromptCache
from darkbloom_provider.engine.requests import EngineSettings, GenerationRequest
from support.batch_run import Run, ask, weights_of
from support.canaries import CANARIES, foreign
from support.greedy import greedy

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

TOGETHER = 16
SETTINGS = EngineSettings(max_running=TOGETHER, prefill_step_busy=64, prefill_step_idle=256)


def request(number: int) -> GenerationRequest:
    """A word again and again, as the model will often go on. 6 to some 36 tokens."""
    times = 3 + number if number < TOGETHER and number % 2 == 0 else 3
    return ask(" ".join([f"{CANARIES[number]},"] * times), 2, logprobs=0)


@pytest.fixture(scope="module")
def run(smollm2: Path) -> Run:
    """All have been answered."""
    weights = weights_of(load_steps(smollm2, step_bytes=10**9))
    run = Run(weights, SETTINGS, cache=PromptCache(10**9))
    for number in range(len(CANARIES)):
        run.add(number, request(number))
    run.to_the_end()
    return run


def test_sixty_four_prompts_at_once_never_see_each_others_words(run: Run) -> None:
    assert len(set(CANARIES)) == 64
    texts = [run.outcomes[number].text for number in range(len(CANARIES))]
    assert [foreign(text, own) for text, own in zip(texts, CANARIES, strict=True)] == [[]] * 64
    # Words do come through here: it would show if they were another's.
    assert sum(own in text for text, own in zip(texts, CANARIES, strict=True)) > 32


def test_a_batch_of_sixteen_says_what_mlx_lm_says_to_each_alone(run: Run) -> None:
    for number in range(TOGETHER):
        expected = greedy(run.weights, request(number))
        assert expected.agrees(run.outcomes[number].logprobs), CANARIES[number]


def test_the_same_is_said_from_the_prompt_cache(run: Run) -> None:
    assert run.cache is not None
    assert run.cache.hit_tokens == 0
    for number in range(TOGETHER):
        run.add(100 + number, request(number))
    run.to_the_end()
    for number in range(TOGETHER):
        assert run.outcomes[100 + number].text == run.outcomes[number].text
    # All of each prompt that is long enough to be kept, but for its last token.
    prompts = [run.outcomes[number].prompt_tokens or 0 for number in range(TOGETHER)]
    assert run.cache.hit_tokens == sum(n - 1 for n in prompts if n - 1 >= MIN_TOKENS) > 100
