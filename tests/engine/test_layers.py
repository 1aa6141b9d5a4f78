"""mlx-lm's cache layers as the engine uses them: every kind, one row in and one row out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

from darkbloom_provider.engine.extraction import extract_row
from darkbloom_provider.engine.layers import merge

WIDTH = 64
TOKENS = 64
ROWS = 8


def attention(cache: Any, number: int, tokens: int = TOKENS) -> Any:
    numbers = mx.full((1, 1, tokens, WIDTH), float(number))
    cache.update_and_fetch(numbers, -numbers)
    return cache


def recurrent(number: int) -> ArraysCache:
    cache = ArraysCache(2)
    cache[0] = mx.full((1, TOKENS, WIDTH), float(number))
    cache[1] = mx.full((1, WIDTH, TOKENS), -float(number))
    return cache


KINDS: dict[str, Callable[[int], Any]] = {
    "attention": lambda number: attention(KVCache(), number),
    "window": lambda number: attention(RotatingKVCache(TOKENS), number),
    "forgetful window": lambda number: attention(RotatingKVCache(TOKENS // 2), number),
    "recurrent": recurrent,
    "list": lambda number: CacheList(recurrent(number), attention(KVCache(), number)),
}


def arrays(layer: Any) -> list[Any]:
    if isinstance(layer, CacheList):
        return [array for part in layer.caches for array in arrays(part)]
    return [*layer.cache] if isinstance(layer, ArraysCache) else [layer.keys, layer.values]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_comes_out_of_a_batch_as_it_went_in(kind: str) -> None:
    batch = merge([KINDS[kind](number) for number in range(ROWS)])
    before, after = KINDS[kind](5), extract_row(batch, 5)
    assert type(before) is type(after)
    for old, new in zip(arrays(before), arrays(after), strict=True):
        assert new.shape[0] == 1
        assert mx.all(new == old[:, :, : new.shape[2]]).item()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_kept_does_not_keep_the_batch_it_came_from(kind: str) -> None:
    before = mx.get_active_memory()
    batch = merge([KINDS[kind](number) for number in range(ROWS)])
    mx.eval(batch.state)
    kept = extract_row(batch, 3)
    mx.eval(kept.state)
    del batch
    # A whole row more is what an allocator may round up to.
    assert mx.get_active_memory() - before < 2 * kept.nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_joining_a_batch_copies_what_is_kept_of_a_prompt(kind: str) -> None:
    kept = KINDS[kind](1)
    before = [mx.array(array) for array in arrays(kept)]
    batch = merge([kept])
    for layer in batch.caches if isinstance(batch, CacheList) else [batch]:
        if isinstance(layer, ArraysCache):
            layer[0] = layer[0] + 1
        else:
            more: Any = layer
            more.update_and_fetch(mx.zeros((1, 1, 1, WIDTH)), mx.zeros((1, 1, 1, WIDTH)))
    mx.eval(batch.state)
    for old, new in zip(before, arrays(kept), strict=True):
        assert mx.array_equal(old, new).item()


@pytest.mark.parametrize(
    "layer",
    [QuantizedKVCache(), ChunkedKVCache(8), CacheList(KVCache(), ChunkedKVCache(8))],
    ids=lambda layer: type(layer).__name__,
)
def test_a_kind_that_cannot_be_batched_is_named(layer: Any) -> None:
    with pytest.raises(TypeError, match=r"^(Quantized|Chunked)KVCache cannot be batched$"):
        merge([layer])
