"""A structure holds for the answer, not for the thoughts before it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import load as load_tokenizer

from darkbloom_provider.engine.engine import Engine
from darkbloom_provider.engine.generation import Generation
from darkbloom_provider.engine.parsers.tagged import GEMMA_THOUGHT, THINK, Thinking
from darkbloom_provider.engine.requests import GenerationRequest, Structure
from darkbloom_provider.engine.thoughts import Markers, Phase, Thoughts, markers

MODEL = "thinks"
SCHEMA = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}, "of": {"enum": ["water", "stone"]}},
    "required": ["sure", "of"],
    "additionalProperties": False,
}
HELD = Structure("json_schema", json.dumps(SCHEMA))

# ---------------------------------------------------------------- token by token

OPENER, CLOSER = 1, 2
WRITES = {
    OPENER: b"<think>",
    CLOSER: b"</think>",
    3: b"water",
    4: b"</thi",
    5: b"nk>\n\n",
    6: b'nk>{"',
}


def think(opener: int | None = OPENER, thinking: Thinking = THINK) -> Markers:
    return Markers(thinking, opener, WRITES.__getitem__)


@pytest.mark.parametrize(
    ("prompt_end", "opener", "phase"),
    [
        ("assistant\n", OPENER, Phase.POSSIBLE),
        ("assistant\n<think>\n", OPENER, Phase.OPEN),
        ("assistant\n<think>\n", None, Phase.OPEN),
        ("<think>\n\n</think>\n\n", OPENER, Phase.OVER),
        ("assistant\n", None, Phase.OVER),
        ("What does <think> mean?\nassistant\n", OPENER, Phase.POSSIBLE),
    ],
)
def test_the_end_of_the_prompt_says_whether_thoughts_are_open(
    prompt_end: str, opener: int | None, phase: Phase
) -> None:
    assert think(opener).thoughts(prompt_end).phase is phase


@pytest.mark.parametrize(
    ("tokens", "taken"),
    [
        ([OPENER, 3, CLOSER, 3], [True, True, True, False]),
        ([OPENER, 3, 4, 5, 3], [True, True, True, True, False]),
        ([OPENER, 4, 3, OPENER, CLOSER, CLOSER], [True, True, True, True, True, False]),
        ([3, OPENER, CLOSER], [False, False, False]),
    ],
)
def test_thoughts_end_at_their_marker_however_it_is_cut(
    tokens: list[int], taken: list[bool]
) -> None:
    thoughts = think().thoughts("assistant\n")
    assert thoughts.opener == OPENER
    assert [thoughts.take(token) for token in tokens] == taken
    assert thoughts.phase is Phase.OVER
    assert thoughts.opener is None


def test_a_token_that_ends_thoughts_and_begins_the_answer_is_refused() -> None:
    thoughts = Thoughts(think(), Phase.OPEN)
    thoughts.take(4)
    with pytest.raises(ValueError, match="token of its own"):
        thoughts.take(6)


def test_each_familys_opener_is_found_in_its_vocabulary() -> None:
    def opener(thinking: Thinking | None, vocabulary: dict[str, int]) -> int | None:
        found = markers(thinking, vocabulary, WRITES.__getitem__)
        return None if found is None else found.opener

    assert opener(THINK, {"<think>": 7}) == 7
    assert opener(GEMMA_THOUGHT, {"<|channel>": 8}) == 8
    assert opener(THINK, {}) is None
    assert markers(None, {"<think>": 7}, WRITES.__getitem__) is None


# ---------------------------------------------------------------- in the batch


@pytest.fixture
async def engine(thinking_model: Path) -> AsyncIterator[Engine]:
    async with Engine() as engine:
        await engine.load(MODEL, thinking_model)
        yield engine


@pytest.fixture(scope="module")
def bias(thinking_model: Path) -> tuple[tuple[int, float], ...]:
    """Makes the model, which is one of random numbers, open its thoughts and close them."""
    vocabulary = load_tokenizer(thinking_model).get_added_vocab()
    return ((vocabulary["<think>"], 12.0), (vocabulary["</think>"], 11.0))


def ask(bias: tuple[tuple[int, float], ...], seed: int = 1, **options: Any) -> GenerationRequest:
    asked: dict[str, Any] = {
        "messages": ({"role": "user", "content": "Which?"},),
        "max_tokens": 400,
        "temperature": 1.0,
        "seed": seed,
        "logit_bias": bias,
        "structure": HELD,
    }
    return GenerationRequest("r", MODEL, **asked | options)


async def text_of(generation: Generation) -> str:
    return "".join([delta.text async for delta in generation])


def obeys(text: str) -> bool:
    answer = json.loads(text)
    return set(answer) == {"sure", "of"} and answer["of"] in {"water", "stone"}


@pytest.mark.parametrize("seed", range(6))
async def test_thoughts_that_the_model_opens_are_free_and_the_answer_obeys(
    engine: Engine, bias: tuple[tuple[int, float], ...], seed: int
) -> None:
    generation = engine.submit(ask(bias, seed))
    text = await text_of(generation)
    assert text.startswith("<think>")
    assert obeys(text.partition("</think>")[2])
    assert generation.finish_reason == "stop"


async def test_thoughts_that_the_prompt_opens_are_free_and_the_answer_obeys(
    engine: Engine, bias: tuple[tuple[int, float], ...]
) -> None:
    open_ = {"opens_thoughts": True}
    generations = [engine.submit(ask(bias, n, chat_template_kwargs=open_)) for n in range(6)]
    parts = [(await text_of(generation)).partition("</think>") for generation in generations]
    assert any(thoughts for thoughts, _, _ in parts)
    assert all(marker and obeys(answer) for _, marker, answer in parts)


async def test_an_answer_without_thoughts_obeys_from_its_first_token(
    engine: Engine, bias: tuple[tuple[int, float], ...]
) -> None:
    off = {"enable_thinking": False}
    assert obeys(await text_of(engine.submit(ask(bias, chat_template_kwargs=off))))
    assert obeys(await text_of(engine.submit(ask(()))))


async def test_a_plain_prompt_is_continued_without_thoughts(
    engine: Engine, bias: tuple[tuple[int, float], ...]
) -> None:
    plain = ask(bias, messages=None, prompt="<think>\n")
    assert obeys(await text_of(engine.submit(plain)))


async def test_thoughts_may_not_end_the_completion(
    engine: Engine, bias: tuple[tuple[int, float], ...], thinking_model: Path
) -> None:
    [end] = load_tokenizer(thinking_model).eos_token_ids
    generation = engine.submit(
        ask(
            ((end, 100.0), bias[1]),
            structure=HELD,
            chat_template_kwargs={"opens_thoughts": True},
        )
    )
    assert obeys((await text_of(generation)).partition("</think>")[2])


async def test_thoughts_cut_by_the_limit_are_no_answer_and_no_fault(
    engine: Engine, bias: tuple[tuple[int, float], ...]
) -> None:
    generation = engine.submit(ask(bias[:1], max_tokens=12))
    text = await text_of(generation)
    assert text.startswith("<think>")
    assert "</think>" not in text
    assert generation.finish_reason == "length"
