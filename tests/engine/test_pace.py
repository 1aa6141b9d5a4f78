from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.engine.pace import PrefillPace, without_padding


def pace(busy_tokens: int = 1024, idle_tokens: int = 2048) -> PrefillPace:
    return PrefillPace(busy_s=0.2, idle_s=0.5, busy_tokens=busy_tokens, idle_tokens=idle_tokens)


def test_the_first_slice_is_small_because_nothing_is_known() -> None:
    assert pace().slice_tokens(1, decoding=True) == 128
    assert pace().slice_tokens(4, decoding=True) == 32
    assert pace(busy_tokens=8).slice_tokens(1, decoding=True) == 8


def test_a_step_takes_as_long_as_it_may() -> None:
    tempo = pace()
    tempo.learn_decoding(0.05)
    tempo.learn_reading(0.1, 100)  # a millisecond a token
    assert tempo.slice_tokens(1, decoding=True) == 144
    assert tempo.slice_tokens(3, decoding=True) == 48
    assert tempo.slice_tokens(1, decoding=False) == 496


def test_a_machine_that_slows_down_gets_smaller_slices_at_once() -> None:
    tempo = pace()
    tempo.learn_reading(0.1, 100)
    before = tempo.slice_tokens(1, decoding=True)
    tempo.learn_reading(0.4, 100)
    assert tempo.slice_tokens(1, decoding=True) < before / 2


def test_one_quick_slice_does_not_make_the_next_one_long() -> None:
    tempo = pace()
    tempo.learn_reading(0.1, 100)
    before = tempo.slice_tokens(1, decoding=True)
    tempo.learn_reading(0.05, 100)
    assert before < tempo.slice_tokens(1, decoding=True) < 1.5 * before


def test_prompts_never_starve_behind_slow_streams() -> None:
    tempo = pace()
    tempo.learn_decoding(5.0)
    tempo.learn_reading(0.1, 128)
    assert tempo.slice_tokens(1, decoding=True) >= 16
    assert tempo.slice_tokens(8, decoding=True) >= 1


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.integers(0, 20_000)),
        max_size=20,
    ),
    st.integers(0, 8),
    st.booleans(),
)
def test_a_slice_is_never_nothing_and_never_above_the_bound(
    steps: list[tuple[float, int]], prompts: int, decoding: bool
) -> None:
    tempo = pace()
    for seconds, tokens in steps:
        if tokens:
            tempo.learn_reading(seconds, tokens)
        else:
            tempo.learn_decoding(seconds)
    tokens = tempo.slice_tokens(prompts, decoding=decoding)
    assert tokens >= 1
    assert tokens * prompts <= (1024 if decoding else 2048)


def test_prompts_that_take_no_time_are_computed_together() -> None:
    tempo = pace()
    tempo.learn_reading(0.1, 1000)
    assert tempo.joins(64, [64] * 7, waiting=64)


def test_a_crowd_comes_in_groups_so_that_the_first_do_not_wait_for_the_last() -> None:
    tempo = pace()
    tempo.learn_reading(0.1, 100)  # a millisecond a token
    assert tempo.joins(200, [], waiting=1600)
    assert tempo.joins(200, [200] * 4, waiting=800)
    assert not tempo.joins(200, [200] * 5, waiting=600)
    assert not tempo.joins(200, [200] * 2, waiting=200)


def test_those_that_have_begun_are_done_before_newcomers_begin() -> None:
    tempo = pace()
    tempo.learn_reading(0.1, 100)
    assert tempo.joins(200, [200], waiting=200)
    assert not tempo.joins(200, [200], waiting=200, begun=True)
    assert not tempo.joins(200, [200], waiting=200, begun=True, outnumbered=True)
    assert tempo.joins(20, [200], waiting=20, begun=True)


def test_prompts_of_like_length_are_computed_in_one_slice() -> None:
    assert without_padding(2048, [88, 92, 90, 95]) == 95
    assert without_padding(64, [88, 92, 90, 95]) == 64


def test_prompts_that_are_nearly_done_do_not_wait_for_the_padding_of_others() -> None:
    assert without_padding(80, [10] * 7 + [74] * 4) == 10
    assert without_padding(80, [60] * 4 + [1500]) == 80


@given(st.integers(1, 3000), st.lists(st.integers(1, 3000), min_size=1, max_size=20))
def test_a_slice_has_something_of_every_prompt_and_little_padding(
    tokens: int, lengths: list[int]
) -> None:
    cut = without_padding(tokens, lengths)
    assert 1 <= cut <= min(tokens, max(lengths))
    padding = sum(max(0, cut - length) for length in lengths)
    assert padding <= max(32, cut * len(lengths) / 4)


def test_the_rest_of_a_crowd_comes_as_one_group() -> None:
    tempo = pace()
    tempo.learn_reading(0.1, 100)
    assert not tempo.joins(200, [200] * 3, waiting=400)
    assert tempo.joins(200, [200] * 3, waiting=400, outnumbered=True)
    assert not tempo.joins(200, [200], waiting=400, overtaking=True, outnumbered=True)


def test_a_short_prompt_does_not_wait_behind_a_long_one() -> None:
    tempo = pace()
    tempo.learn_reading(0.1, 100)
    assert tempo.joins(200, [8000], waiting=200)
    assert not tempo.joins(5000, [8000], waiting=5000)


def test_only_short_prompts_go_before_one_that_does_not_join() -> None:
    tempo = pace()
    tempo.learn_reading(0.1, 100)
    assert tempo.joins(20, [50], waiting=5000, overtaking=True)
    assert not tempo.joins(50, [50], waiting=5000, overtaking=True)
    assert tempo.joins(50, [50], waiting=5000)


@given(st.integers(1, 100_000), st.integers(0, 100_000))
def test_a_prompt_is_never_kept_from_an_empty_batch(tokens: int, others: int) -> None:
    assert pace().joins(tokens, [], waiting=tokens + others)
