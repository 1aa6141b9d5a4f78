"""What the engine uses of mlx-lm's cache layers: one conversation's, and those of a batch.

The layers of a model come in several kinds (attention over everything, sliding windows, recurrent
states, lists of those), and mlx-lm knows how to batch each of them. Source: `mlx_lm.models.cache`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


class Layer(Protocol):
    """One cache layer of one conversation, as mlx-lm's models make them."""

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        ...

    @property
    def state(self) -> object:
        """Its arrays and counters."""
        ...

    def is_trimmable(self) -> bool:
        """Whether it can be shortened."""
        ...

    def trim(self, n: int) -> int:
        """Forget the last `n` tokens; returns how many were forgotten."""
        ...


class BatchLayer(Protocol):
    """The same for several rows."""

    @property
    def state(self) -> object:
        """Its arrays and counters."""
        ...

    def extend(self, other: BatchLayer) -> None:
        """Take in the rows of `other`, which is of the same kind and of no use afterwards."""
        ...

    def filter(self, batch_indices: list[int]) -> None:
        """Keep these rows only, in this order."""
        ...

    def extract(self, idx: int) -> Layer:
        """A row by itself, which may share memory with the batch; see `extraction`."""
        ...

    def prepare(self, *, lengths: list[int], right_padding: list[int]) -> None:
        """Say how many of the tokens that come next count, and how many behind them do not."""
        ...

    def finalize(self) -> None:
        """Move what `prepare` announced as padding out of the way."""
        ...


@runtime_checkable
class Compound(Protocol):
    """A layer made of several (mlx-lm's `CacheList`)."""

    caches: Sequence[Layer]


@runtime_checkable
class _Mergeable(Protocol):
    def merge(self, caches: Sequence[Layer]) -> BatchLayer: ...


class CannotBeBatchedError(TypeError):
    """Layers of this kind cannot be batched.

    Args:
        kind: In mlx-lm's words.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(f"{kind} cannot be batched")
        self.kind = kind


def merge(rows: Sequence[Layer]) -> BatchLayer:
    """One batch of several rows' layers, which are copied.

    Raises:
        CannotBeBatchedError: Layers of this kind cannot be batched.
    """
    return _mergeable(rows[0]).merge(rows)


def _mergeable(layer: Layer) -> _Mergeable:
    for part in layer.caches if isinstance(layer, Compound) else ():
        _mergeable(part)
    if not isinstance(layer, _Mergeable):
        raise CannotBeBatchedError(type(layer).__name__)
    return layer
