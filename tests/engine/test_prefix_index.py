"""The radix tree against the plainest model there is: a dictionary that is searched through."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from darkbloom_provider.engine.prefix_index import PrefixIndex, common_length

TOKENS = st.lists(st.integers(0, 2), max_size=9).map(tuple)


def naive_common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


class IndexMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index: PrefixIndex[int] = PrefixIndex()
        self.model: dict[tuple[int, ...], int] = {}
        self.count = 0

    @rule(tokens=TOKENS)
    def put(self, tokens: tuple[int, ...]) -> None:
        self.count += 1
        assert self.index.put(tokens, self.count) == self.model.get(tokens)
        self.model[tokens] = self.count

    @rule(tokens=TOKENS)
    def remove(self, tokens: tuple[int, ...]) -> None:
        assert self.index.remove(tokens) == self.model.pop(tokens, None)

    @rule(tokens=TOKENS)
    def find(self, tokens: tuple[int, ...]) -> None:
        whole = [key for key in self.model if tokens[: len(key)] == key]
        match = self.index.longest_prefix(tokens)
        if whole:
            longest = max(whole, key=len)
            assert match is not None
            assert (match.tokens, match.value) == (longest, self.model[longest])
            assert match.length == len(longest)
        else:
            assert match is None
        assert self.index.prefixes(tokens) == sorted(
            (key for key in whole if key != tokens), key=len
        )

    @rule(tokens=TOKENS)
    def find_common(self, tokens: tuple[int, ...]) -> None:
        best = max((naive_common(key, tokens) for key in self.model), default=0)
        match = self.index.longest_common(tokens)
        if best == 0:
            assert match is None
        else:
            assert match is not None
            assert match.length == best
            assert naive_common(match.tokens, tokens) == best
            assert self.model[match.tokens] == match.value

    @invariant()
    def as_many_as_were_put(self) -> None:
        assert len(self.index) == len(self.model)

    @invariant()
    def an_empty_index_holds_no_nodes(self) -> None:
        if not self.model:
            assert not self.index._root.children


TestIndex = IndexMachine.TestCase


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_common_length_is_that_of_the_plain_comparison(
    first: list[int], second: list[int]
) -> None:
    assert common_length(first, second) == naive_common(tuple(first), tuple(second))


@pytest.mark.parametrize("length", [1, 1_000, 50_000])
def test_long_sequences_that_differ_at_their_end_are_told_apart(length: int) -> None:
    index: PrefixIndex[str] = PrefixIndex()
    tokens = list(range(length))
    index.put([*tokens, 1], "one")
    index.put([*tokens, 2], "two")
    match = index.longest_prefix([*tokens, 2, 3])
    assert match is not None
    assert match.value == "two"
