"""Rows that are decoded together, one step at a time, on a model that counts upwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import pytest

from darkbloom_provider.engine.decoding import Decoding, Row, Token
from darkbloom_provider.engine.layers import merge
from darkbloom_provider.engine.requests import SamplingParams
from darkbloom_provider.engine.sampling import Sampler
from support.counting_up import VOCABULARY, CountingUp, held


def greedy(logits: Any) -> Any:
    return mx.argmax(logits, axis=-1)


class Adding:
    """A sampler that adds to what the model says, so that its rows are known by their tokens."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.batches: list[int] = []

    def __call__(self, logits: Any) -> Any:
        self.batches.append(logits.shape[0])
        return greedy(logits) + self.number


class Rig:
    """A batch, and prompts that come into it computed up to their last token."""

    def __init__(self) -> None:
        self.model = CountingUp()
        self.decoding = Decoding(self.model)

    def join(
        self, key: int, prompt: Sequence[int], limit: int = 100, sampler: Any = greedy, **more: Any
    ) -> None:
        *done, last = prompt
        layers = self.model.make_cache()
        if done:
            numbers = mx.array(done, mx.float32)[None, None, :, None]
            layers[0].update_and_fetch(numbers, numbers)
        row = Row(key, done, limit, more.pop("ends", frozenset()), sampler, **more)
        self.decoding.join([row], [merge([layer]) for layer in layers], [last])

    def step(self) -> dict[int, int]:
        return told(self.decoding.step())

    def contents(self, key: int) -> list[int]:
        found = self.decoding.contents(key)
        assert found is not None
        layers, tokens = found
        assert held(layers) == tokens
        return tokens


def told(tokens: list[Token]) -> dict[int, int]:
    return {token.key: token.token for token in tokens}


def test_a_step_is_begun_before_the_one_before_it_is_told() -> None:
    rig = Rig()
    rig.join(1, [5, 10])
    assert rig.step() == {}
    assert rig.model.calls == [[[10]]]
    assert rig.decoding.unread
    assert rig.step() == {1: 11}
    assert rig.model.calls == [[[10]], [[11]]]
    assert rig.step() == {1: 12}


def test_what_is_computed_can_be_told_without_computing_anything() -> None:
    rig = Rig()
    rig.join(1, [10])
    rig.join(2, [4, 20])
    rig.step()
    assert told(rig.decoding.flush()) == {1: 11, 2: 21}
    assert len(rig.model.calls) == 1
    assert not rig.decoding.unread
    assert rig.decoding.flush() == []
    # Nothing is lost or told twice when the steps go on.
    assert [rig.step() for _ in range(3)] == [{}, {1: 12, 2: 22}, {1: 13, 2: 23}]


def test_a_newcomer_takes_its_first_step_together_with_everybody_else() -> None:
    rig = Rig()
    rig.join(1, [10])
    rig.step()
    rig.join(2, [1, 2, 3, 20])
    assert rig.step() == {1: 11}
    assert rig.model.calls[-1] == [[11], [20]]
    assert rig.step() == {1: 12, 2: 21}


def test_rows_that_choose_alike_are_sampled_together_and_keep_their_order() -> None:
    rig = Rig()
    ones, tens = Adding(1), Adding(10)
    for key, sampler in enumerate((ones, tens, greedy, ones, tens)):
        rig.join(key, [100 * (key + 1)], sampler=sampler)
    rig.step()
    assert rig.step() == {0: 102, 1: 211, 2: 301, 3: 402, 4: 511}
    assert (ones.batches, tens.batches) == ([2, 2], [2, 2])
    rig.decoding.leave([0, 2])
    assert rig.step() == {1: 222, 3: 404, 4: 522}
    assert rig.step() == {1: 233, 3: 406, 4: 533}
    assert ones.batches[-1] == 1


def test_whoever_samples_takes_nothing_from_those_that_take_the_likeliest() -> None:
    rig = Rig()
    likeliest = Sampler(SamplingParams(temperature=0), seed=0)
    one, two = Adding(1), Adding(2)
    for key, sampler in enumerate((likeliest, one, likeliest, two, one)):
        rig.join(key, [100 * (key + 1)], sampler=sampler)
    rig.step()
    assert rig.step() == {0: 101, 1: 202, 2: 301, 3: 403, 4: 502}
    assert (one.batches, two.batches) == ([2, 2], [1, 1])
    rig.decoding.leave([1, 4])
    assert rig.step() == {0: 102, 2: 302, 3: 406}


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_a_row_that_ends_by_length_is_not_computed_further(limit: int) -> None:
    rig = Rig()
    rig.join(1, [10], limit)
    said: list[Token] = []
    while not said or said[-1].reason is None:
        said += rig.decoding.step()
    assert [token.token for token in said] == list(range(11, 11 + limit))
    assert [token.reason for token in said] == [None] * (limit - 1) + ["length"]
    assert len(rig.model.calls) == limit


def test_nobody_is_computed_further_when_all_end_by_length_at_once() -> None:
    rig = Rig()
    rig.join(1, [10], 2)
    rig.step()
    rig.join(2, [20], 1)
    assert rig.step() == {1: 11}
    last = rig.decoding.step()
    assert [(token.key, token.token, token.reason) for token in last] == [
        (1, 12, "length"),
        (2, 21, "length"),
    ]
    assert len(rig.model.calls) == 2


def test_a_token_that_ends_a_text_says_so_even_if_it_is_the_last_allowed() -> None:
    rig = Rig()
    rig.join(1, [10], 2, ends=frozenset({12}))
    rig.step()
    [first] = rig.decoding.step()
    [second] = rig.decoding.step()
    assert (first.reason, second.reason) == (None, "stop")


@pytest.mark.parametrize("flush", [False, True])
def test_a_cache_that_is_taken_holds_just_the_tokens_that_it_is_said_to_hold(flush: bool) -> None:
    rig = Rig()
    rig.join(1, [7, 8, 9, 10])
    rig.join(2, [20])
    for _ in range(4):
        rig.step()
    if flush:
        rig.decoding.flush()
    first = rig.contents(1)
    assert rig.contents(2) == [20, 21, 22, 23]
    rig.step()
    assert first == [7, 8, 9, 10, 11, 12, 13]
    assert rig.decoding.contents(3) is None


def test_who_leaves_is_computed_no_more_and_the_others_go_on() -> None:
    rig = Rig()
    for key in (1, 2, 3):
        rig.join(key, [*range(10 * key, 11 * key)])
    first = rig.step()
    rig.decoding.leave([2, 77])
    assert first == {}
    assert rig.step() == {1: 11, 3: 33}
    assert rig.model.calls[-1] == [[11], [33]]
    assert rig.contents(3) == [30, 31, 32, 33]
    rig.decoding.leave([1, 3])
    assert (len(rig.decoding), rig.decoding.unread, rig.step()) == (0, False, {})
    rig.join(4, [40])
    assert [rig.step(), rig.step()] == [{}, {4: 41}]


def test_probabilities_are_computed_for_those_who_asked_and_are_what_the_token_was_chosen_by() -> (
    None
):
    rig = Rig()

    def forbid_eleven(_context: Any, logits: Any) -> Any:
        return mx.where(mx.arange(VOCABULARY) == 11, -mx.inf, logits)

    rig.join(1, [10], wants_logprobs=True, processors=[forbid_eleven])
    rig.join(2, [20])
    rig.step()
    first, second = rig.decoding.step()
    assert second.logprobs is None
    assert first.logprobs is not None
    assert first.logprobs.shape == (VOCABULARY,)
    assert first.logprobs[11].item() == -mx.inf
    assert mx.logsumexp(first.logprobs).item() == pytest.approx(0, abs=1e-5)
    assert first.token == mx.argmax(first.logprobs).item() != 11


def test_a_processor_sees_the_tokens_of_its_own_row_and_all_of_them() -> None:
    rig = Rig()
    seen: list[list[int]] = []

    def watch(context: Any, logits: Any) -> Any:
        seen.append(context.tolist())
        return logits

    processors: list[Callable[..., Any]] = [watch]
    rig.join(1, [10])
    rig.join(2, [4, 5, 20], processors=processors)
    rig.step()
    rig.decoding.leave([1])
    rig.step()
    rig.join(3, [30])
    rig.step()
    assert seen == [[4, 5, 20], [4, 5, 20, 21], [4, 5, 20, 21, 22]]
