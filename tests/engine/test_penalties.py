from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from darkbloom_provider.engine.penalties import processors
from darkbloom_provider.engine.requests import GenerationRequest

VOCABULARY = 4
LOGITS = [4.0, 3.0, -2.0, 1.0]


def after(prompt: list[int], completion: list[int], **options: Any) -> list[float]:
    """One request's logits after so many tokens, as the batch would ask for them: step by step."""
    [process] = processors(GenerationRequest("r", "m", prompt="p", **options), VOCABULARY)
    for length in range(len(completion) + 1):
        row = process(mx.array(prompt + completion[:length], mx.uint32), mx.array([LOGITS]))
    result: list[list[float]] = row.tolist()
    return [round(value, 4) for value in result[0]]


@pytest.mark.parametrize("penalty", [None, 1.0])
def test_a_request_without_penalties_has_no_processor(penalty: float | None) -> None:
    request = GenerationRequest("r", "m", prompt="p", repetition_penalty=penalty)
    assert processors(request, VOCABULARY) == ()


def test_a_repetition_penalty_looks_at_prompt_and_completion() -> None:
    assert after([0], [], repetition_penalty=2.0) == [2.0, 3.0, -2.0, 1.0]
    assert after([0, 0], [2, 3], repetition_penalty=2.0) == [2.0, 3.0, -4.0, 0.5]


def test_presence_counts_once_and_frequency_each_time_and_the_prompt_never() -> None:
    assert after([0, 1], [1, 1, 3], presence_penalty=0.5) == [4.0, 2.5, -2.0, 0.5]
    assert after([0, 1], [1, 1, 3], frequency_penalty=0.5) == [4.0, 2.0, -2.0, 0.5]
    assert after([0], [1], presence_penalty=-1.0, frequency_penalty=-1.0) == [4.0, 5.0, -2.0, 1.0]


def test_a_bias_is_added_at_every_step() -> None:
    assert after([0], [1, 2], logit_bias=((2, 10.0), (3, -100.0))) == [4.0, 3.0, 8.0, -99.0]


@pytest.mark.parametrize(
    "option",
    [{"repetition_penalty": 2.0}, {"presence_penalty": 1.0}, {"logit_bias": ((1, 1.0),)}],
)
def test_the_type_of_the_logits_stays_so_that_neighbours_are_not_rounded_otherwise(
    option: dict[str, Any],
) -> None:
    [process] = processors(GenerationRequest("r", "m", prompt="p", **option), VOCABULARY)
    row = mx.array([LOGITS], mx.bfloat16)
    for tokens in ([1], [1, 2]):
        assert process(mx.array(tokens, mx.uint32), row).dtype == mx.bfloat16


def test_several_processors_work_on_each_others_results() -> None:
    request = GenerationRequest(
        "r", "m", prompt="p", repetition_penalty=2.0, presence_penalty=1.0, logit_bias=((0, 1.0),)
    )
    assert len(processors(request, VOCABULARY)) == 3
