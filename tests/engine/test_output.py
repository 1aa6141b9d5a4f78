from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.engine.output import Output, host_row
from darkbloom_provider.engine.requests import TokenLogprob
from darkbloom_provider.engine.text import Detokenizer, StopMatcher

ROW = mx.log(mx.array([0.5, 0.3, 0.15, 0.05]))
WORDS = ["a", "b", "c", "d"]


def _decode(tokens: Sequence[int]) -> str:
    return "".join(WORDS[token] for token in tokens)


def output(logprobs: int | None, *stops: str) -> Output:
    return Output(
        Detokenizer(_decode), StopMatcher(stops), logprobs, lambda token: WORDS[token].encode()
    )


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_rows_are_read_where_they_lie_in_any_type(dtype: mx.Dtype) -> None:
    rows = mx.random.normal((3, 11)).astype(dtype)
    row = list(rows)[1]
    mx.eval(row)
    assert np.array_equal(host_row(row), np.array(row.astype(mx.float32)))


def test_who_asked_for_nothing_gets_nothing() -> None:
    assert output(None).add(1, None) == ("b", ())


def test_the_chosen_token_and_the_likeliest_are_told_best_first() -> None:
    text, [told] = output(3).add(2, ROW)
    assert text == "c"
    assert told.chosen.data == b"c"
    assert told.chosen.logprob == pytest.approx(np.log(0.15), abs=1e-5)
    assert [choice.data for choice in told.top] == [b"a", b"b", b"c"]


def test_no_alternatives_are_told_if_none_were_asked_for() -> None:
    _, [told] = output(0).add(0, ROW)
    assert told.top == ()


def test_more_alternatives_than_tokens_are_all_there_are() -> None:
    _, [told] = output(20).add(0, ROW)
    assert len(told.top) == 4


@given(st.lists(st.integers(0, 3), max_size=12), st.text("abcd", min_size=1, max_size=4))
def test_probabilities_cover_the_text_that_was_shown_and_nothing_else(
    tokens: list[int], stop: str
) -> None:
    one = output(0, stop)
    text, told = "", list[TokenLogprob]()
    for token in tokens:
        if one.stops.matched:
            break
        piece, more = one.add(token, ROW)
        text, told = text + piece, [*told, *more]
    if not one.stops.matched:
        rest, more = one.flush()
        text, told = text + rest, [*told, *more]
    said = b"".join(entry.chosen.data for entry in told).decode()
    whole = _decode(tokens)
    assert text == whole.split(stop)[0]
    # With one character a token, tokens held back as a possible stop are told when they are shown.
    assert text.startswith(said)
    assert one.stops.matched or said == text
