"""Schemas, compiled and enforced on the tiny model, whose own words are nonsense."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tokenizer_utils import load as load_tokenizer

from darkbloom_provider.engine.engine import Engine
from darkbloom_provider.engine.errors import (
    EngineClosedError,
    EngineError,
    GenerationFailedError,
    InvalidGenerationError,
)
from darkbloom_provider.engine.generation import Generation
from darkbloom_provider.engine.requests import GenerationRequest, Structure
from darkbloom_provider.engine.structure import MAX_SCHEMA, Grammars, Guide

MODEL = "tiny"
SCHEMA = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}, "of": {"enum": ["water", "stone"]}},
    "required": ["sure", "of"],
    "additionalProperties": False,
}


@pytest.fixture
async def engine(tiny_model: Path) -> AsyncIterator[Engine]:
    async with Engine() as engine:
        await engine.load(MODEL, tiny_model)
        yield engine


@pytest.fixture(scope="module")
def grammars(tiny_model: Path) -> Grammars:
    tokenizer = load_tokenizer(tiny_model)
    return Grammars(tokenizer, 1000)


def schema(value: object) -> Structure:
    return Structure("json_schema", json.dumps(value))


def ask(structure: Structure | None, **options: Any) -> GenerationRequest:
    return GenerationRequest(
        "r", MODEL, prompt="hello", structure=structure, **{"max_tokens": 150, **options}
    )


async def text_of(generation: Generation) -> str:
    return "".join([delta.text async for delta in generation])


# ---------------------------------------------------------------- enforced


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 3}, {"logprobs": 2}])
async def test_a_schema_is_kept_to_beside_free_requests(
    engine: Engine, options: dict[str, Any]
) -> None:
    free = await text_of(engine.submit(ask(None)))
    beside = engine.submit(ask(None))
    held = engine.submit(ask(schema(SCHEMA), **options))
    answer = json.loads(await text_of(held))
    assert set(answer) == {"sure", "of"}
    assert isinstance(answer["sure"], bool)
    assert answer["of"] in {"water", "stone"}
    assert held.finish_reason == "stop"
    assert await text_of(beside) == free


async def test_any_object_begins_as_one(engine: Engine) -> None:
    text = await text_of(engine.submit(ask(Structure("json_object"))))
    assert text.lstrip().startswith("{")


async def test_penalties_and_biases_cannot_break_a_schema(engine: Engine) -> None:
    wild = ask(
        schema(SCHEMA),
        presence_penalty=2.0,
        frequency_penalty=2.0,
        repetition_penalty=3.0,
        logit_bias=((5, 100.0), (40, 100.0)),
    )
    assert set(json.loads(await text_of(engine.submit(wild)))) == {"sure", "of"}


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ('{"type": "secret"}', "enforced"),
        ('{"$ref": "http://secret.example/"}', "enforced"),
        ('{"type": "string", "pattern": "(?!secret)x"}', "enforced"),
        ('{"not": {"type": "array"}}', "keywords that cannot be enforced: not"),
        (" " * (MAX_SCHEMA + 1), "longer"),
    ],
)
async def test_what_cannot_be_enforced_is_400_and_quotes_nothing(
    engine: Engine, text: str, reason: str
) -> None:
    generation = engine.submit(ask(Structure("json_schema", text)))
    with pytest.raises(InvalidGenerationError, match=reason) as caught:
        await text_of(generation)
    await generation.released()
    assert caught.value.status_code == 400
    assert "response_format" in caught.value.message
    assert "secret" not in "".join(caught.value.lines())
    assert await text_of(engine.submit(ask(None, max_tokens=3)))


def test_a_vocabulary_that_cannot_be_guided_is_the_models_fault_by_name() -> None:
    class Foreign:
        eos_token_ids = frozenset({1})

    with pytest.raises(InvalidGenerationError, match="not supported with this model"):
        Grammars(Foreign(), 10).compile(schema(SCHEMA))  # type: ignore[arg-type] # the point


# ---------------------------------------------------------------- a guide alone


def test_a_guide_never_raises_and_says_why_it_gave_up(grammars: Grammars) -> None:
    guide = grammars.compile(schema(SCHEMA))
    logits = mx.zeros((1, 1000))
    first = guide(mx.array([5], mx.uint32), logits)
    allowed = np.array(mx.isfinite(first)[0]).tolist()
    assert 0 < sum(allowed) < 50
    outside = allowed.index(False)
    assert guide(mx.array([5, outside], mx.uint32), logits) is logits
    assert guide.failed == "the text left the grammar"
    assert guide(mx.array([5, outside, 5], mx.uint32), logits) is logits

    class Raising:
        def compute_bitmask(self) -> bytes:
            raise MemoryError

    broken = Guide(Raising(), 1000, frozenset())
    assert broken(mx.array([5], mx.uint32), logits) is logits
    assert broken.failed == "MemoryError"


async def test_a_guide_that_gives_up_ends_only_its_own_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = await text_of(engine.submit(ask(None)))
    beside = engine.submit(ask(None))

    def giving_up(self: Guide, _tokens: Any, logits: Any) -> Any:
        self.failed = "tired"
        return logits

    monkeypatch.setattr(Guide, "__call__", giving_up)
    with pytest.raises(EngineError, match="response_format"):
        await text_of(engine.submit(ask(schema(SCHEMA))))
    assert await text_of(beside) == free


# ---------------------------------------------------------------- while it is compiled


class Slow:
    """Stands where a model's grammars do, and takes until it is told."""

    def __init__(self, outcome: Exception | None = None) -> None:
        self.go_on = threading.Event()
        self.outcome = outcome

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def slowly(_grammars: Grammars, _structure: Structure, _prompt_end: str | None) -> Guide:
            self.go_on.wait(30)
            raise self.outcome or InvalidGenerationError(400, "late")

        monkeypatch.setattr(Grammars, "compile", slowly)


async def test_streams_flow_and_cancellations_are_heard_while_a_schema_is_compiled(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow()
    slow.stand_in(monkeypatch)
    generation = engine.submit(ask(schema(SCHEMA)))
    assert await text_of(engine.submit(ask(None, max_tokens=5)))
    generation.cancel()
    assert await text_of(generation) == ""
    slow.go_on.set()
    await generation.released()


async def test_closing_while_a_schema_is_compiled_fails_its_request(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine() as engine:
        await engine.load(MODEL, tiny_model)
        slow = Slow()
        slow.stand_in(monkeypatch)
        generation = engine.submit(ask(schema(SCHEMA)))
        slow.go_on.set()
    with pytest.raises((EngineClosedError, InvalidGenerationError)):
        await text_of(generation)


async def test_a_fault_of_the_compiler_is_told_by_its_kind(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(ValueError("secret"))
    slow.go_on.set()
    slow.stand_in(monkeypatch)
    with pytest.raises(GenerationFailedError) as caught:
        await text_of(engine.submit(ask(schema(SCHEMA))))
    assert "secret" not in "".join(caught.value.lines())
