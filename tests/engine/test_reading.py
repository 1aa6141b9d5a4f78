"""Prompts that are computed piece by piece, on a model whose caches tell what went in."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models.cache import ChunkedKVCache

from darkbloom_provider.engine.decoding import Row
from darkbloom_provider.engine.reading import Reading, Ready
from support.counting_up import CountingUp, held


class Rig:
    def __init__(self) -> None:
        self.model = CountingUp()
        self.reading = Reading(self.model, self.model.make_cache)

    def join(self, key: int, *segments: list[int], done: Any = None) -> Row:
        layers, tokens = done or (None, [])
        row = Row(key, [*tokens], 1, frozenset(), lambda logits: logits)
        self.reading.join(row, layers, segments)
        return row

    def contents(self, key: int) -> list[int]:
        found = self.reading.contents(key)
        assert found is not None
        layers, tokens = found
        assert held(layers) == tokens
        return tokens


def rows(ready: list[Ready]) -> dict[int, tuple[list[int], int]]:
    """What the cache of each row that is ready holds, and its prompt's last token."""
    found = {}
    for group in ready:
        for at, row in enumerate(group.rows):
            tokens = held([layer.extract(at) for layer in group.layers]) if row.tokens else []
            assert tokens == row.tokens
            found[row.key] = (tokens, group.inputs[at])
    return found


def test_a_piece_never_goes_past_the_end_of_a_segment() -> None:
    rig = Rig()
    rig.join(1, [1, 2, 3, 4, 5], [6, 7, 8])
    pieces = [rig.reading.read(3) for _ in range(3)]
    assert [(piece.tokens, piece.boundaries) for piece in pieces] == [(3, []), (2, [1]), (2, [1])]
    assert rig.model.calls == [[[1, 2, 3]], [[4, 5]], [[6, 7]]]
    assert rows(rig.reading.take_ready()) == {1: ([1, 2, 3, 4, 5, 6, 7], 8)}
    assert len(rig.reading) == 0


def test_shorter_ones_are_padded_and_the_padding_is_no_part_of_their_cache() -> None:
    rig = Rig()
    rig.join(1, [*range(10, 20)])
    rig.join(2, [20, 21, 22])
    rig.join(3, [*range(30, 36)])
    piece = rig.reading.read(8)
    assert (piece.tokens, piece.boundaries) == (24, [2, 3])
    assert [rig.contents(key) for key in (1, 2, 3)] == [
        [*range(10, 18)],
        [20, 21],
        [*range(30, 35)],
    ]
    assert rig.reading.left == [1, 0, 0]


def test_those_that_are_done_go_and_the_others_stay_as_they_are() -> None:
    rig = Rig()
    rig.join(1, [*range(10, 30)])
    rig.join(2, [40, 41, 42])
    rig.reading.read(4)
    assert rows(rig.reading.take_ready()) == {2: ([40, 41], 42)}
    rig.join(3, [50, 51, 52, 53, 54, 55])
    rig.reading.read(4)
    assert rig.contents(1) == [*range(10, 18)]
    assert rig.contents(3) == [50, 51, 52, 53]
    assert rig.reading.take_ready() == []


def test_a_prompt_of_which_one_token_is_left_is_ready_without_being_computed() -> None:
    rig = Rig()
    rig.join(1, [7])
    assert len(rig.reading) == 0
    assert rows(rig.reading.take_ready()) == {1: ([], 7)}
    assert rig.model.calls == []


def test_a_prompt_goes_on_from_what_is_kept_and_leaves_that_as_it_was() -> None:
    rig = Rig()
    rig.join(1, [1, 2, 3, 4], [5])
    rig.reading.read(9)
    kept = rig.reading.contents(1)
    assert kept is not None
    assert rows(rig.reading.take_ready()) == {1: ([1, 2, 3, 4], 5)}
    for key in (2, 3):
        rig.join(key, [8, 9, 10 + key], done=kept)
    rig.reading.read(9)
    assert held(kept[0]) == [1, 2, 3, 4]
    assert rows(rig.reading.take_ready()) == {
        2: ([1, 2, 3, 4, 8, 9], 12),
        3: ([1, 2, 3, 4, 8, 9], 13),
    }


@pytest.mark.parametrize("key", [1, 2, 3])
def test_who_leaves_takes_nothing_of_the_others_along(key: int) -> None:
    rig = Rig()
    rig.join(1, [*range(10, 20)])
    rig.join(2, [*range(20, 25)])
    rig.join(3, [30])
    rig.reading.read(2)
    held_then = rig.contents(1)
    rig.reading.leave(key)
    rig.reading.leave(77)
    found = rows(rig.reading.take_ready())
    while len(rig.reading):
        rig.reading.read(4)
        found |= rows(rig.reading.take_ready())
    assert held_then == [10, 11]
    everybody = {1: ([*range(10, 19)], 19), 2: ([*range(20, 24)], 24), 3: ([], 30)}
    assert found == {k: row for k, row in everybody.items() if k != key}


def test_a_kind_of_layer_that_cannot_be_batched_is_refused_alone() -> None:
    rig = Rig()
    rig.join(1, [1, 2, 3, 4])
    rig.reading.read(2)
    with pytest.raises(TypeError, match="cannot be batched"):
        rig.join(2, [5, 6], done=([ChunkedKVCache(8)], []))
    rig.reading.read(2)
    assert rows(rig.reading.take_ready()) == {1: ([1, 2, 3], 4)}


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=5),
    st.integers(1, 8),
)
def test_however_prompts_are_cut_they_come_out_whole(lengths: list[list[int]], size: int) -> None:
    rig = Rig()
    expected: dict[int, tuple[list[int], int]] = {}
    found: dict[int, tuple[list[int], int]] = {}
    for key, cuts in enumerate(lengths):
        prompt = [100 * key + number for number in range(sum(cuts))]
        ends = [sum(cuts[: at + 1]) for at in range(len(cuts))]
        segments = [prompt[end - cut : end] for end, cut in zip(ends, cuts, strict=True)]
        expected[key] = (prompt[:-1], prompt[-1])
        rig.join(key, *segments)
        if len(rig.reading):
            rig.reading.read(size)
        found |= rows(rig.reading.take_ready())
    while len(rig.reading):
        rig.reading.read(size)
        found |= rows(rig.reading.take_ready())
    assert found == expected
