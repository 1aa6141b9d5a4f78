"""The prompt cache on layers that count, not compute."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.engine.prompt_cache import MIN_TOKENS, PromptCache, Space

MINE = Space("model", "me")
BYTES = 10


@dataclass
class CountingLayer:
    """Knows the tokens that it was made of, as a real one knows their keys and values."""

    tokens: tuple[int, ...]
    forgets: bool = False
    length: int | None = None

    @property
    def nbytes(self) -> int:
        return BYTES * len(self.tokens)

    @property
    def held(self) -> tuple[int, ...]:
        return self.tokens[: self.length]

    @property
    def state(self) -> object:
        return self.held

    def is_trimmable(self) -> bool:
        return not self.forgets

    def trim(self, n: int) -> int:
        assert not self.forgets
        self.length = len(self.held) - n
        return n


@dataclass
class CompoundLayer(CountingLayer):
    caches: tuple[CountingLayer, ...] = ()

    def trim(self, n: int) -> int:
        for part in self.caches:
            part.trim(n)
        return n


def run(length: int, *end: int) -> tuple[int, ...]:
    return (*range(length), *end)


def put(
    cache: PromptCache, tokens: tuple[int, ...], space: Space = MINE, *, forgets: bool = False
) -> bool:
    return cache.put(space, tokens, [CountingLayer(tokens, forgets)])


def test_the_longest_common_beginning_is_found_and_holds_just_those_tokens() -> None:
    cache = PromptCache(10_000)
    put(cache, run(30, 7))
    put(cache, run(50, 8))
    hit = cache.find(MINE, run(40, 9, 9))
    assert hit is not None
    assert hit.length == 40
    assert [layer.held for layer in hit.layers] == [run(40)]  # type: ignore[attr-defined] # ours


def test_an_exact_hit_leaves_one_token_to_compute() -> None:
    cache = PromptCache(10_000)
    put(cache, run(30))
    hit = cache.find(MINE, run(30))
    assert hit is not None
    assert hit.length == 29


def test_a_hit_leaves_the_entry_as_it_was() -> None:
    cache = PromptCache(10_000)
    layer = CompoundLayer(run(30), caches=(CountingLayer(run(30)),))
    cache.put(MINE, run(30), [layer])
    cache.find(MINE, run(20, 5))
    assert layer.caches[0].held == run(30)
    hit = cache.find(MINE, run(30, 5))
    assert hit is not None
    assert hit.length == 30


def test_layers_that_forget_serve_whole_or_not_at_all() -> None:
    cache = PromptCache(10_000)
    put(cache, run(30), forgets=True)
    put(cache, run(60), forgets=True)
    assert cache.find(MINE, run(30)) is None
    hit = cache.find(MINE, run(50))
    assert hit is not None
    assert hit.length == 30
    hit = cache.find(MINE, run(61))
    assert hit is not None
    assert hit.length == 60


def test_nobody_is_served_from_another_tenants_or_models_entries() -> None:
    cache = PromptCache(10_000)
    put(cache, run(30))
    for space in (Space("model"), Space("model", "you"), Space("other", "me")):
        assert cache.find(space, run(30)) is None
    assert cache.find(MINE, run(30)) is not None


def test_what_was_used_longest_ago_goes_first() -> None:
    cache = PromptCache(3 * BYTES * 20)
    first, second, third, fourth = (tuple(range(n, n + 20)) for n in (0, 100, 200, 300))
    for tokens in (first, second, third):
        put(cache, tokens)
    cache.find(MINE, (*first, 1))
    put(cache, fourth)
    assert cache.find(MINE, (*second, 1)) is None
    for tokens in (first, third, fourth):
        assert cache.find(MINE, (*tokens, 1)) is not None


def test_an_entry_that_is_too_large_is_not_kept_and_drives_nothing_out() -> None:
    cache = PromptCache(BYTES * 50)
    assert put(cache, run(40))
    assert not put(cache, tuple(range(100, 200)))
    assert cache.find(MINE, run(41)) is not None


def test_a_longer_entry_takes_the_place_of_its_beginnings() -> None:
    cache = PromptCache(10_000)
    put(cache, run(30))
    put(cache, run(60))
    assert len(cache) == 1
    assert cache.nbytes == 60 * BYTES
    assert put(cache, run(40))  # adds nothing
    assert cache.nbytes == 60 * BYTES


def test_short_runs_are_not_kept() -> None:
    cache = PromptCache(10_000)
    assert not put(cache, run(MIN_TOKENS - 1))


def test_a_cache_without_room_keeps_nothing() -> None:
    cache = PromptCache(0)
    assert not cache.enabled
    assert not put(cache, run(30))


def test_forgetting_a_model_leaves_the_others() -> None:
    cache = PromptCache(10_000)
    put(cache, run(30))
    put(cache, run(30), Space("other"))
    cache.forget("model")
    assert cache.nbytes == 30 * BYTES
    assert cache.find(Space("other"), run(31)) is not None


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "find", "shrink", "forget"]),
        st.lists(st.integers(0, 1), min_size=1, max_size=24).map(tuple),
        st.sampled_from([MINE, Space("model", "you"), Space("other")]),
        st.booleans(),
    ),
    max_size=40,
)


@given(OPERATIONS)
def test_it_never_holds_more_than_its_limit_and_never_serves_foreign_tokens(
    operations: list[tuple[str, tuple[int, ...], Space, bool]],
) -> None:
    cache = PromptCache(BYTES * 80)
    for operation, tokens, space, forgets in operations:
        match operation:
            case "put":
                put(cache, tokens, space, forgets=forgets)
            case "shrink":
                cache.shrink(BYTES * len(tokens))
                cache.shrink(BYTES * 80)
            case "forget":
                cache.forget(space.model)
            case _:
                hit = cache.find(space, tokens)
                if hit is not None:
                    assert MIN_TOKENS <= hit.length < len(tokens)
                    for layer in hit.layers:
                        assert layer.held == tokens[: hit.length]  # type: ignore[attr-defined] # ours
        assert cache.nbytes <= cache.limit
        assert (cache.nbytes == 0) == (len(cache) == 0)
