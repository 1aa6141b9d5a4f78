"""How the next token is chosen. Used in the engine's thread only.

Everything here is lazy arithmetic on arrays: nothing reads a value, so the batch is never held up,
and nothing can raise inside a step, which would take the whole batch with it. The random numbers
come from a counter, not from MLX's global state, so a seeded request draws the same ones whatever
its neighbours do.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from darkbloom_provider.engine.requests import SamplingParams

Array = Any
"""`mlx.core.array`. MLX's own annotations are not precise enough to check against."""

_STRIDE = 0x9E3779B97F4A7C15
"""Odd, close to 2^64 divided by the golden ratio: keys of neighbouring steps lie far apart."""
_NUCLEUS = 1024
"""Most tokens that `top_p` keeps. Where so many do not reach its probability the model is guessing;
and to sort a whole vocabulary for one request costs its batch several times as much."""


class Sampler:
    """Logits of a batch in, one token for each row out."""

    __slots__ = ("__weakref__", "_drawn", "_params", "_seed")

    def __init__(self, params: SamplingParams, seed: int) -> None:
        self._params = params
        self._seed = seed
        self._drawn = 0

    @property
    def greedy(self) -> bool:
        """Whether it takes the likeliest token, whatever was drawn before."""
        return self._params.temperature == 0

    def __call__(self, logits: Array) -> Array:
        """Choose the next token of each row of `logits` (rows x vocabulary)."""
        params = self._params
        if self.greedy:
            return mx.argmax(logits, axis=-1)
        places, kept = self._likeliest(logits)
        # Filters look at the model's own probabilities; the temperature comes last, as in mlx-lm.
        if 0 < params.top_p < 1:
            kept = _keep_top_p(kept, mx.logsumexp(logits, axis=-1, keepdims=True), params.top_p)
        if params.min_p > 0:
            kept = _keep_min_p(kept, params.min_p)
        key = mx.random.key((self._seed + self._drawn * _STRIDE) % 2**64)
        self._drawn += 1
        chosen = mx.random.categorical(kept * (1 / params.temperature), key=key)
        if places is None:
            return chosen
        return mx.take_along_axis(places, chosen[..., None], axis=-1)[..., 0]

    def _likeliest(self, logits: Array) -> tuple[Array | None, Array]:
        """The tokens that come into question, in any order, and their logits; None means all.

        All that follows, random numbers included, then costs as much as a small vocabulary would.
        """
        size = logits.shape[-1]
        count = size
        if 0 < self._params.top_k < size:
            count = self._params.top_k
        elif 0 < self._params.top_p < 1:
            count = min(size, _NUCLEUS)
        if count == size:
            return None, logits
        places = mx.argpartition(logits, size - count, axis=-1)[..., size - count :]
        return places, mx.take_along_axis(logits, places, axis=-1)


class Samplers:
    """Gives equal requests the same sampler object, so that a batch of them is one call.

    Args:
        entropy: A fresh random number of 64 bits; the start of each unseeded sampler.
    """

    def __init__(self, entropy: Callable[[], int]) -> None:
        self._entropy = entropy
        self._shared: weakref.WeakValueDictionary[SamplingParams, Sampler] = (
            weakref.WeakValueDictionary()
        )

    def get(self, params: SamplingParams) -> Sampler:
        """The sampler for `params`: its own for a seeded request, else the shared one."""
        if params.seed is not None:
            return Sampler(params, params.seed % 2**64)
        sampler = self._shared.get(params)
        if sampler is None:
            sampler = Sampler(params, self._entropy())
            self._shared[params] = sampler
        return sampler


def _keep_top_p(logits: Array, total: Array, top_p: float) -> Array:
    """Keep the likeliest tokens that together reach the probability `top_p`.

    Args:
        logits: Of tokens among which all of these are.
        total: log(sum(exp)) over the whole vocabulary.
        top_p: What they are to reach.
    """
    ranked = mx.sort(logits, axis=-1)
    probabilities = mx.exp((ranked - total).astype(mx.float32))
    above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
    dropped = (above >= top_p).sum(axis=-1, keepdims=True)
    return _at_least(logits, mx.take_along_axis(ranked, dropped, axis=-1))


def _keep_min_p(logits: Array, min_p: float) -> Array:
    """Keep tokens at least `min_p` times as likely as the likeliest."""
    return _at_least(logits, mx.max(logits, axis=-1, keepdims=True) + mx.log(mx.array(min_p)))


def _at_least(logits: Array, threshold: Array) -> Array:
    return mx.where(logits < threshold, -mx.inf, logits)
