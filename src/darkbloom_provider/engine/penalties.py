"""What changes one request's logits before a token is chosen. Engine thread only.

Lazy arithmetic on arrays throughout: nothing reads a token's value, so the batch is never held up,
and nothing depends on one, so nothing can raise inside a step. Results keep the logits' own type:
rows of a batch are joined again, and another type would change the neighbours' rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from darkbloom_provider.engine.requests import GenerationRequest

Array = Any
"""`mlx.core.array`. MLX's own annotations are not precise enough to check against."""
LogitsProcessor = Callable[[Array, Array], Array]
"""The tokens so far, prompt included, and one row of logits in; the row of logits out."""


def processors(request: GenerationRequest, vocabulary_size: int) -> tuple[LogitsProcessor, ...]:
    """The processors of one request; none for most. Not to be shared: they count its tokens.

    Args:
        request: A checked request, whose `logit_bias` names tokens of the vocabulary only.
        vocabulary_size: Width of the model's logits.
    """
    found: list[LogitsProcessor] = []
    repetition = request.repetition_penalty
    if repetition is not None and repetition != 1:
        found.append(RepetitionPenalty(repetition, vocabulary_size))
    if request.presence_penalty or request.frequency_penalty:
        found.append(
            CountPenalty(request.presence_penalty, request.frequency_penalty, vocabulary_size)
        )
    if request.logit_bias:
        found.append(Bias(dict(request.logit_bias), vocabulary_size))
    return tuple(found)


class RepetitionPenalty:
    """Makes tokens of prompt and completion less likely by a factor (arXiv:1909.05858)."""

    __slots__ = ("_factor", "_seen", "_started")

    def __init__(self, factor: float, vocabulary_size: int) -> None:
        self._factor = factor
        self._seen = mx.zeros(vocabulary_size, mx.bool_)
        mx.eval(self._seen)
        self._started = False

    def __call__(self, tokens: Array, logits: Array) -> Array:
        """One row of logits, with those of tokens seen so far pushed down."""
        self._seen[tokens[-1:] if self._started else tokens] = True
        self._started = True
        pushed = mx.where(logits < 0, logits * self._factor, logits / self._factor)
        return mx.where(self._seen, pushed, logits).astype(logits.dtype)


class CountPenalty:
    """Takes something off tokens of the completion: once, and for each time it holds them.

    The definition is the OpenAI API's: `logit -= count * frequency + (count > 0) * presence`.
    """

    __slots__ = ("_counts", "_frequency", "_presence", "_started")

    def __init__(self, presence: float, frequency: float, vocabulary_size: int) -> None:
        self._presence = presence
        self._frequency = frequency
        self._counts = mx.zeros(vocabulary_size, mx.float32)
        mx.eval(self._counts)
        self._started = False

    def __call__(self, tokens: Array, logits: Array) -> Array:
        """One row of logits, with those of the completion's tokens lowered."""
        if not self._started:
            # Asked for the first token: all there is yet is the prompt.
            self._started = True
            return logits
        self._counts = self._counts.at[tokens[-1:]].add(1)
        lowered = self._counts * self._frequency + (self._counts > 0) * self._presence
        return (logits - lowered).astype(logits.dtype)


class Bias:
    """Adds a fixed number to the logits of some tokens."""

    __slots__ = ("_added",)

    def __init__(self, biases: dict[int, float], vocabulary_size: int) -> None:
        places = mx.array(list(biases), mx.uint32)
        self._added = mx.zeros(vocabulary_size).at[places].add(mx.array(list(biases.values())))
        mx.eval(self._added)

    def __call__(self, _tokens: Array, logits: Array) -> Array:
        """One row of logits, with the biases added."""
        return (logits + self._added).astype(logits.dtype)
