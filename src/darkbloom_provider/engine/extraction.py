"""One row out of a batch, to be kept. Engine thread only."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache

from darkbloom_provider.engine.layers import BatchLayer, Compound, Layer


def extract_row(batch: BatchLayer, idx: int) -> Layer:
    """A row by itself, to be kept: once it is computed, nothing in it holds on to the batch."""
    found = batch.extract(idx)
    _detach(found)
    return found


def begin_to_copy(layers: Sequence[Layer]) -> None:
    """Compute what was taken out of a batch, or it would hold on to the whole of it."""
    mx.async_eval([layer.state for layer in layers])  # type: ignore[no-untyped-call] # mlx's stubs


def _detach(layer: Layer) -> None:
    if isinstance(layer, Compound):
        for part in layer.caches:
            _detach(part)
    elif isinstance(layer, ArraysCache):
        # A slice, which would keep the states of all rows; mlx-lm copies the other kinds itself.
        layer.cache = [array if array is None else mx.contiguous(array) for array in layer.cache]
