from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.engine.pace import PrefillPace


def pace(busy_tokens: int = 1024, idle_tokens: int = 2048) -> PrefillPace:
    return PrefillPace(busy_s=0.2, idle_s=0.5, busy_tokens=busy_tokens, idle_tokens=idle_tokens)


def test_the_first_slice_is_small_because_nothing_is_known() -> None:
    assert pace().slice_tokens(1, decoding=True) == 128
    assert pace().slice_tokens(4, decoding=True) == 32
    assert pace(busy_tokens=8).slice_tokens(1, decoding=True) == 8


def test_a_step_takes_as_long_as_it_may() -> None:
    tempo = pace()
    tempo.learn(0.05, prompt_tokens=0, decoding=True)
    tempo.learn(0.15, prompt_tokens=100, decoding=True)  # a millisecond a token
    assert tempo.slice_tokens(1, decoding=True) == 144
    assert tempo.slice_tokens(3, decoding=True) == 48
    assert tempo.slice_tokens(1, decoding=False) == 496


def test_a_machine_that_slows_down_gets_smaller_slices_at_once() -> None:
    tempo = pace()
    tempo.learn(0.1, prompt_tokens=100, decoding=False)
    before = tempo.slice_tokens(1, decoding=True)
    tempo.learn(0.4, prompt_tokens=100, decoding=False)
    assert tempo.slice_tokens(1, decoding=True) < before / 2


def test_prompts_never_starve_behind_slow_streams() -> None:
    tempo = pace()
    tempo.learn(5.0, prompt_tokens=0, decoding=True)
    tempo.learn(5.1, prompt_tokens=128, decoding=True)
    assert tempo.slice_tokens(1, decoding=True) >= 16
    assert tempo.slice_tokens(8, decoding=True) >= 1


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.integers(0, 20_000), st.booleans()),
        max_size=20,
    ),
    st.integers(0, 8),
    st.booleans(),
)
def test_a_slice_is_never_nothing_and_never_above_the_bound(
    steps: list[tuple[float, int, bool]], prompts: int, decoding: bool
) -> None:
    tempo = pace()
    for seconds, tokens, busy in steps:
        tempo.learn(seconds, prompt_tokens=tokens, decoding=busy)
    tokens = tempo.slice_tokens(prompts, decoding=decoding)
    assert tokens >= 1
    assert tokens * prompts <= (1024 if decoding else 2048)
