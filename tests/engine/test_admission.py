"""The decision by itself: what fits is let in, what cannot fit is refused, nothing in between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.engine import admission
from darkbloom_provider.engine.admission import Accept, Limits, Load, Refuse, Unload, Wait, worst
from darkbloom_provider.engine.errors import InsufficientMemoryError, NoRoomError
from darkbloom_provider.engine.ledger import Ledger
from darkbloom_provider.engine.prompt_cache import PromptCache
from darkbloom_provider.models.memory import Footprint, LayerShape


def model(weights: int = 1000, per_token: int = 10) -> Footprint:
    return Footprint(weights, (LayerShape(per_token),), 1, 0, fused=True, vocabulary=1)


def limits(ceiling: int | None) -> Limits:
    return Limits(ceiling=ceiling, piece_tokens=64, row_piece_tokens=0)


def ledger(ceiling: int, *, active: int = 0, cache: int = 0) -> Ledger:
    made = Ledger(PromptCache(cache), lambda: active)
    made.limits = limits(ceiling)
    return made


def room_for(rows: int, tokens: int, footprint: Footprint) -> int:
    return worst({"m": Load(footprint, (tokens,) * rows)}, limits(10**12))


def test_without_a_ceiling_everything_is_let_in() -> None:
    assert admission.judge_request("m", 10**9, {"m": Load(model())}, limits(None)) == Accept(None)


def test_every_row_is_reckoned_as_long_as_the_longest_and_a_copy_of_all_is_set_aside() -> None:
    short = {"m": Load(model(0), (100, 100, 100))}
    long = {"m": Load(model(0), (100, 100, 1000))}
    more = 3 * 900 * 10 * 2
    assert worst(long, limits(None)) - worst(short, limits(None)) == more


def test_a_request_waits_for_others_and_is_refused_when_nothing_would_make_it_fit() -> None:
    fits = room_for(2, 600, model())
    loads = {"m": Load(model(), (600, 600))}
    assert admission.judge_request("m", 600, loads, limits(fits)) == Wait()
    verdict = admission.judge_request("m", 6000, loads, limits(fits))
    assert isinstance(verdict, Refuse)
    assert verdict.needed > verdict.available == fits


def test_idle_models_go_before_anybody_waits_and_only_as_many_as_needed() -> None:
    loads = {name: Load(model()) for name in ("m", "old", "new")}
    ceiling = room_for(1, 600, model()) + 1000
    verdict = admission.judge_request("m", 600, loads, limits(ceiling), idle=("old", "new"))
    assert verdict == Unload(("old",))


def test_what_cannot_be_explained_counts_as_used() -> None:
    fits = room_for(1, 600, model())
    loads = {"m": Load(model())}
    assert admission.judge_request("m", 600, loads, limits(fits)) == Accept(0)
    verdict = admission.judge_request("m", 600, loads, limits(fits), unexplained=1)
    assert isinstance(verdict, Refuse)


def test_prompts_go_in_smaller_pieces_where_memory_is_tight() -> None:
    wide = Footprint(0, (LayerShape(1),), 1000, 0, fused=True, vocabulary=1)
    roomy, tight = (Limits(c, piece_tokens=4096, row_piece_tokens=1) for c in (10**9, 10**6))
    assert admission.piece_tokens(Load(wide), roomy) == 4096
    assert admission.piece_tokens(Load(wide), tight) == 125


REQUESTS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 2000), st.booleans()))


@given(REQUESTS, st.integers(20_000, 200_000), st.integers(0, 50_000))
def test_promises_never_exceed_the_ceiling_and_what_is_alone_is_let_in(
    requests: list[tuple[str, int, bool]], ceiling: int, cache: int
) -> None:
    books = ledger(ceiling, cache=cache)
    footprints = {"a": model(), "b": model(3000, 7)}
    for name, footprint in footprints.items():
        books.load(name, footprint, make_room=False)
        books.loaded(name, footprint.weight_bytes)
    rows: dict[int, tuple[str, int]] = {}

    def total() -> int:
        loads = {
            name: Load(footprint, tuple(t for n, t in rows.values() if n == name))
            for name, footprint in footprints.items()
        }
        return worst(loads, books.limits)

    for key, (name, tokens, leaves) in enumerate(requests):
        if leaves and rows:
            gone = next(iter(rows))
            books.leave(rows.pop(gone)[0], gone)
        try:
            books.check(name, tokens)
            if books.enter(name, key, tokens):
                rows[key] = (name, tokens)
            else:
                assert rows or books.unwanted()
        except InsufficientMemoryError:
            continue
        assert total() <= ceiling
        assert total() + books._prompts.limit <= max(ceiling, total())


@given(st.integers(1, 10**6), st.integers(1, 5000))
def test_the_longest_request_that_fits_fits_and_one_more_token_does_not(
    ceiling: int, at_most: int
) -> None:
    found = admission.most_tokens(model(), limits(ceiling), at_most)
    assert 0 <= found <= at_most
    if found:
        assert room_for(1, found, model()) <= ceiling
    if found < at_most:
        assert worst({"m": Load(model(), (found + 1,))}, limits(ceiling)) > ceiling


def test_a_model_that_fits_only_in_the_place_of_another_is_loaded_only_if_that_may_go() -> None:
    books = ledger(room_for(1, 512, model()) + 500)
    books.load("first", model(), make_room=False)
    books.loaded("first", 1000)
    with pytest.raises(NoRoomError) as refusal:
        books.load("second", model(), make_room=False)
    assert refusal.value.ever
    assert books.load("second", model(), make_room=True) == ("first",)


def test_a_model_in_use_is_not_given_up_for_another() -> None:
    books = ledger(room_for(1, 512, model()) + 500)
    books.load("first", model(), make_room=False)
    books.loaded("first", 1000)
    assert books.enter("first", 1, 10)
    with pytest.raises(NoRoomError) as refusal:
        books.load("second", model(), make_room=True)
    assert refusal.value.ever


def test_a_model_larger_than_the_ceiling_is_refused_for_good() -> None:
    with pytest.raises(NoRoomError) as refusal:
        ledger(500).load("m", model(), make_room=True)
    assert not refusal.value.ever


def test_a_model_that_somebody_waits_for_is_not_given_up_for_another() -> None:
    books = Ledger(PromptCache(0), lambda: 0, lambda name: name == "first")
    books.limits = limits(room_for(1, 512, model()) + 500)
    books.load("first", model(), make_room=False)
    books.loaded("first", 1000)
    with pytest.raises(NoRoomError):
        books.load("second", model(), make_room=True)
