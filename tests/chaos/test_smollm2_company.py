"""Real weights for minutes: chats of many lengths that come, go and come back change nobody's text.

The slice of it that every run of the tests takes is in `tests/engine/test_smollm2_company.py`.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from darkbloom_provider.engine.loading import load_steps
from darkbloom_provider.engine.prompt_cache import PromptCache
from darkbloom_provider.engine.requests import EngineSettings, GenerationRequest
from support.batch_run import Run, weights_of
from support.canaries import CANARIES, foreign
from support.greedy import greedy

pytestmark = [pytest.mark.chaos, pytest.mark.model]

SETTINGS = EngineSettings(max_running=16, prefill_step_busy=64, prefill_step_idle=512)
MOST_TOKENS = 12


def chat(number: int) -> GenerationRequest:
    """A question about a canary behind 0 to 6 sentences, which others begin with too."""
    padding = "Answer in one short sentence and be kind to whoever asks. " * (number % 4 * 2)
    question = f"{padding}The code word is {CANARIES[number]}. What is the code word?"
    return GenerationRequest(
        "r",
        "m",
        messages=({"role": "user", "content": question},),
        max_tokens=MOST_TOKENS,
        logprobs=0,
    )


@pytest.mark.timeout(3600)
def test_sixty_four_chats_say_what_each_says_alone_however_they_come(smollm2: Path) -> None:
    weights = weights_of(load_steps(smollm2, step_bytes=10**9))
    alone = [greedy(weights, chat(number)) for number in range(64)]
    assert sum(own in said.text.lower() for own, said in zip(CANARIES, alone, strict=True)) > 32
    run = Run(weights, SETTINGS, cache=PromptCache(10**9))
    chance = random.Random(11)
    for turn in (0, 100, 200):  # all at once, from the cache, and with company that leaves
        for number in range(64):
            run.add(turn + number, chat(number))
            if turn == 200:
                run.step(chance.randrange(3))
                run.add(1000 + number, chat(chance.randrange(64)))
                run.step(chance.randrange(3))
                if not run.outcomes[1000 + number].over:
                    run.cancel(1000 + number)
        run.to_the_end()
        for number, own in enumerate(CANARIES):
            outcome = run.outcomes[turn + number]
            assert alone[number].agrees(outcome.logprobs), (turn, own)
            assert foreign(outcome.text, own) == foreign(alone[number].text, own)
