from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from darkbloom_provider.engine.text import REPLACEMENT, Detokenizer, StopMatcher

TEXT = st.text(max_size=40)


class Bytes:
    """A tokenizer whose tokens are given runs of bytes."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self._tokens = tokens

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self._tokens[i] for i in ids).decode("utf-8", "replace")


def _cut(content: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(content) + 1) for cut in cuts}), len(content)]
    return [content[a:b] for a, b in itertools.pairwise(edges) if a < b]


@given(TEXT.filter(lambda text: REPLACEMENT not in text), st.lists(st.integers(0, 200)))
@example("🦊é€", list(range(9)))
def test_text_cut_into_tokens_anywhere_comes_out_whole_and_never_in_half_characters(
    text: str, cuts: list[int]
) -> None:
    tokens = _cut(text.encode(), cuts)
    detokenizer = Detokenizer(Bytes(tokens).decode)
    pieces = [detokenizer.add(token) for token in range(len(tokens))]
    assert "".join(pieces) == text
    assert not any(REPLACEMENT in piece for piece in pieces)


def test_a_character_left_unfinished_is_never_shown() -> None:
    detokenizer = Detokenizer(Bytes([b"a\xf0", b"\x9f"]).decode)
    assert [detokenizer.add(0), detokenizer.add(1)] == ["a", ""]


def test_bytes_that_are_no_character_do_not_hold_up_the_text_after_them() -> None:
    detokenizer = Detokenizer(Bytes([b"\xf0", b"b"]).decode)
    assert [detokenizer.add(0), detokenizer.add(1)] == ["", REPLACEMENT + "b"]


def test_endless_broken_bytes_are_given_up_on() -> None:
    detokenizer = Detokenizer(Bytes([b"\x80", b"ok"]).decode)
    pieces = [detokenizer.add(0) for _ in range(40)]
    assert max(map(len, pieces)) <= 20
    assert "".join(pieces)
    assert "".join([*pieces, detokenizer.add(1)]).endswith("ok")


@given(st.lists(st.integers(0, 150), max_size=30), st.integers(0, 29))
def test_a_real_tokenizer_gives_the_text_it_decodes_at_once(
    tiny_model: Path, ids: list[int], cut: int
) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=False))

    words = [token for token in ids if decode([token]).isascii()]
    prompt, completion = words[:cut], words[cut:]
    detokenizer = Detokenizer(decode, prompt)
    assert decode(prompt) + "".join(map(detokenizer.add, completion)) == decode(words)


def test_the_space_before_the_first_word_is_kept() -> None:
    def sentencepiece(tokens: Sequence[int]) -> str:
        return "".join(["▁Hello", "▁world"][i] for i in tokens).replace("▁", " ").removeprefix(" ")

    assert Detokenizer(sentencepiece, prompt=[0]).add(1) == " world"


# ---------------------------------------------------------------- stop strings


def _reference(text: str, stops: list[str]) -> tuple[str, bool]:
    """Read character by character; end where any stop string is complete."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


SMALL = st.text(alphabet="ab\n", max_size=30)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4)


@given(SMALL, STOPS, st.lists(st.integers(0, 29)))
@example("abab", ["ba", "abab"], [1, 2, 3])
@example("aab", ["ab"], [1, 2])
def test_wherever_the_text_is_cut_it_ends_at_the_first_stop_string(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    for piece in _cut(text.encode(), cuts):
        shown += matcher.feed(piece.decode())
        # What was shown can never have to be taken back.
        assert _reference(text, stops)[0].startswith(shown)
    if not matcher.matched:
        shown += matcher.flush()
    assert (shown, matcher.matched) == _reference(text, stops)


@given(SMALL, STOPS)
def test_no_more_is_held_back_than_a_stop_string_could_begin_with(
    text: str, stops: list[str]
) -> None:
    matcher = StopMatcher(stops)
    shown = matcher.feed(text)
    if not matcher.matched:
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_after_a_match_nothing_comes_any_more() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.feed("one END two") == "one "
    assert matcher.matched
    assert (matcher.feed("three"), matcher.flush()) == ("", "")


@pytest.mark.parametrize("stops", [[], [""]])
def test_without_stop_strings_nothing_is_held_back(stops: list[str]) -> None:
    assert StopMatcher(stops).feed("text") == "text"
