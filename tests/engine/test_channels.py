"""In harmony a structure holds for the final channel, and the analysis before it is free."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tokenizer_utils import load as load_tokenizer

from darkbloom_provider.engine import channels
from darkbloom_provider.engine.engine import Engine
from darkbloom_provider.engine.errors import InvalidGenerationError
from darkbloom_provider.engine.generation import Generation
from darkbloom_provider.engine.parsers.choice import choose
from darkbloom_provider.engine.requests import GenerationRequest, Structure
from darkbloom_provider.engine.structure import Grammars
from darkbloom_provider.protocol.output import ContentDelta, ReasoningDelta
from support.tiny_model import HARMONY, HARMONY_TEMPLATE, build_tiny_model

MODEL = "harmonic"
SCHEMA = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}, "of": {"enum": ["water", "stone"]}},
    "required": ["sure", "of"],
    "additionalProperties": False,
}
HELD = Structure("json_schema", json.dumps(SCHEMA))
ANSWER = '{"sure":true,"of":"stone"}'
FINAL = "<|channel|>final<|message|>"
THOUGHT = "<|channel|>analysis<|message|>{a stone?\n<|end|><|start|>assistant"
PROMPT_END = "<|end|><|start|>assistant"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("models") / MODEL, channels=True)


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Any:
    return load_tokenizer(model)


# ---------------------------------------------------------------- token by token


def taken(tokenizer: Any, text: str, *, prompt_end: str | None = PROMPT_END) -> str:
    """The part of a text, token by token, that a guide lets pass."""
    vocabulary = len(tokenizer.get_vocab())
    guide = Grammars(tokenizer, vocabulary, in_channels=True).compile(HELD, prompt_end)
    said = ""
    tokens: list[int] = [0]
    for token in tokenizer.encode(text, add_special_tokens=False):
        logits = guide(mx.array(tokens, mx.uint32), mx.zeros((1, vocabulary)))
        assert guide.failed is None
        if not np.isfinite(np.array(logits))[0, token]:
            break
        tokens.append(token)
        said += tokenizer.decode([token])
    return said


@pytest.mark.parametrize("thoughts", ["", THOUGHT, THOUGHT * 2])
def test_after_any_thoughts_the_final_message_obeys(tokenizer: Any, thoughts: str) -> None:
    whole = f"{thoughts}{FINAL}{ANSWER}<|im_end|>"
    assert taken(tokenizer, whole) == whole
    assert taken(tokenizer, f"{thoughts}{FINAL}a stone") == f"{thoughts}{FINAL}"


@pytest.mark.parametrize(
    "text", [ANSWER, "the stone", "<|message|>", "<|im_end|>", "<|start|>assistant"]
)
def test_an_answer_begins_with_its_channel(tokenizer: Any, text: str) -> None:
    assert taken(tokenizer, text) == ""


def test_no_other_channel_is_opened_and_thoughts_do_not_end_the_completion(tokenizer: Any) -> None:
    assert taken(tokenizer, "<|channel|>commentary<|message|>") == "<|channel|>"
    begun = "<|channel|>analysis<|message|>a stone"
    assert taken(tokenizer, f"{begun}<|im_end|>") == begun
    assert taken(tokenizer, f"{begun}<|channel|>") == begun


def test_where_no_header_is_due_the_answer_obeys_from_its_first_token(tokenizer: Any) -> None:
    assert taken(tokenizer, ANSWER, prompt_end=None) == ANSWER
    assert taken(tokenizer, ANSWER, prompt_end=PROMPT_END + FINAL) == ANSWER


def test_the_markers_have_to_be_tokens() -> None:
    assert channels.known(HARMONY)
    assert not channels.known(HARMONY[:-1])


# ---------------------------------------------------------------- in the batch


@pytest.fixture
async def engine(model: Path) -> AsyncIterator[Engine]:
    async with Engine() as engine:
        await engine.load(MODEL, model)
        yield engine


def ask(seed: int = 1, structure: Structure = HELD, **options: Any) -> GenerationRequest:
    asked: dict[str, Any] = {
        "messages": ({"role": "user", "content": "Which?"},),
        "max_tokens": 600,
        "temperature": 1.0,
        "seed": seed,
        "structure": structure,
    }
    return GenerationRequest("r", MODEL, **asked | options)


async def text_of(generation: Generation) -> str:
    return "".join([delta.text async for delta in generation])


def parted(text: str) -> tuple[str, str]:
    """The thoughts and the answer that a consumer is shown."""
    factory = choose(HARMONY_TEMPLATE, HARMONY.__contains__).held_to_a_structure
    parser = factory.parser(call_id=str)
    pieces = [*parser.feed(text), *parser.finish()]
    return (
        "".join(piece.text for piece in pieces if isinstance(piece, ReasoningDelta)),
        "".join(piece.text for piece in pieces if isinstance(piece, ContentDelta)),
    )


def obeys(answer: str) -> bool:
    read = json.loads(answer)
    return set(read) == {"sure", "of"} and read["of"] in {"water", "stone"}


async def test_consumers_see_free_thoughts_and_an_answer_that_obeys(
    engine: Engine, tokenizer: Any
) -> None:
    # Makes the model, which is one of random numbers, end its thoughts.
    bias = ((tokenizer.get_added_vocab()["<|end|>"], 9.0),)
    generations = [engine.submit(ask(seed, logit_bias=bias)) for seed in range(12)]
    read = [parted(await text_of(generation)) for generation in generations]
    assert all(obeys(answer) for _, answer in read)
    assert any(thoughts for thoughts, _ in read)
    assert all(generation.finish_reason == "stop" for generation in generations)


async def test_an_answer_whose_header_is_in_the_prompt_obeys_at_once(engine: Engine) -> None:
    at_once = ask(chat_template_kwargs={"answers_at_once": True})
    assert obeys(await text_of(engine.submit(at_once)))


async def test_a_schema_that_cannot_be_enforced_is_named_as_ever(engine: Engine) -> None:
    refused = ask(structure=Structure("json_schema", '{"not": {"type": "array"}}'))
    with pytest.raises(InvalidGenerationError, match="keywords that cannot be enforced: not"):
        await text_of(engine.submit(refused))
