"""A model that says the number after the last, and whose caches tell what went in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache

VOCABULARY = 1000


class CountingUp:
    """Tokens are numbers. Its one layer keeps each as a key, and nothing else."""

    def __init__(self) -> None:
        self.calls: list[list[list[int]]] = []
        """The tokens of each call, row by row, padding included."""

    def __call__(self, tokens: Any, cache: Sequence[Any]) -> Any:
        self.calls.append(tokens.tolist())
        keys = tokens.astype(mx.float32)[:, None, :, None]
        cache[0].update_and_fetch(keys, keys)
        return 5.0 * (mx.arange(VOCABULARY) == tokens[..., None] + 1)

    def make_cache(self) -> list[Any]:
        return [KVCache()]


def held(layers: Sequence[Any]) -> list[int]:
    """The tokens in one row's cache."""
    [layer] = layers
    return [int(number) for number in layer.keys[0, 0, : layer.offset, 0].tolist()]
