"""What prompts have already been through a model, kept for the next that begins the same.

An entry holds the model's own cache layers for a run of tokens. Layers of a row that was taken out
of a batch are never written to again: joining a batch copies them, so an entry can serve any number
of requests, and a shortened view of it costs nothing.

Layers of attention over everything can be shortened to any length. Layers that forget (sliding
windows that are full, recurrent states) cannot: such an entry serves whole or not at all.

Entries belong to one model and one tenant. Nobody's first token comes sooner because of what
another tenant has asked: time to first token is something a consumer can measure.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from darkbloom_provider.engine.layers import Compound, Layer
from darkbloom_provider.engine.prefix_index import PrefixIndex, Tokens

MIN_TOKENS = 16
"""Shorter runs are not worth an entry."""


@dataclass(frozen=True, slots=True)
class Space:
    """Whose entries: one model and one tenant. No tenant is a space of its own."""

    model: str
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """The beginning of a prompt that need not be computed."""

    length: int
    """Tokens; always less than the prompt's, as the last one has to be computed."""
    layers: tuple[Layer, ...]
    """To be read, not to be written to."""


@dataclass(slots=True)
class _Entry:
    layers: tuple[Layer, ...]
    nbytes: int
    trimmable: bool


class PromptCache:
    """Entries of all models under one limit in bytes; those used longest ago go first.

    Args:
        budget: Most bytes ever held. 0 keeps nothing.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        """Bytes held."""
        self.limit = budget
        """Most bytes to hold now; what is under the memory's ceiling may be less than the budget.
        See `shrink`."""
        self.hit_tokens = 0
        """Prompt tokens that did not have to be computed, since the start."""
        self._spaces: dict[Space, PrefixIndex[_Entry]] = {}
        self._used: OrderedDict[tuple[Space, Tokens], _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._used)

    @property
    def enabled(self) -> bool:
        """Whether anything can be kept at all."""
        return self.limit > 0

    def find(self, space: Space, prompt: Sequence[int]) -> Hit | None:
        """The longest beginning of `prompt` that is held, at most all but its last token."""
        index = self._spaces.get(space)
        if index is None or len(prompt) <= 1:
            return None
        usable = prompt[:-1]
        best: tuple[Tokens, _Entry, int] | None = None
        whole = index.longest_prefix(usable)
        if whole is not None:
            best = (whole.tokens, whole.value, whole.length)
        common = index.longest_common(usable)
        if (
            common is not None
            and common.value.trimmable
            and common.length > (best or ((), 0, 0))[2]
        ):
            best = (common.tokens, common.value, common.length)
        if best is None or best[2] < MIN_TOKENS:
            return None
        tokens, entry, length = best
        self._used.move_to_end((space, tokens))
        return Hit(length, shortened(entry.layers, len(tokens) - length))

    def take_up(self, hit: Hit) -> None:
        """Note that a hit was used."""
        self.hit_tokens += hit.length

    def holds(self, space: Space, tokens: Sequence[int]) -> bool:
        """Whether keeping `tokens` would add nothing to what is held."""
        index = self._spaces.get(space)
        if index is None:
            return False
        common = index.longest_common(tokens)
        if common is None or common.length < len(tokens):
            return False
        if common.value.trimmable:
            return True
        exact = index.longest_prefix(tokens)
        return exact is not None and exact.length == len(tokens)

    def put(self, space: Space, tokens: Sequence[int], layers: Sequence[Layer]) -> bool:
        """Keep the layers that `tokens` left behind; False if there is no room for them."""
        nbytes = sum(layer.nbytes for layer in layers)
        if len(tokens) < MIN_TOKENS or nbytes > self.limit:
            return False
        if self.holds(space, tokens):
            return True
        trimmable = all(layer.is_trimmable() for layer in layers)
        entry = _Entry(tuple(layers), nbytes, trimmable)
        index = self._spaces.setdefault(space, PrefixIndex())
        key = tuple(tokens)
        if trimmable:
            # The new one can be shortened to any of its beginnings.
            for shorter in index.prefixes(key):
                self._drop(space, shorter)
        index = self._spaces.setdefault(space, index)
        index.put(key, entry)
        self._used[space, key] = entry
        self.nbytes += nbytes
        self.shrink(self.limit)
        return True

    def shrink(self, limit: int) -> None:
        """Set the limit, within the budget, and let go of what is above it."""
        self.limit = max(0, min(limit, self.budget))
        while self.nbytes > self.limit:
            self._drop(*next(iter(self._used)))

    def forget(self, model: str) -> None:
        """Let go of everything of a model."""
        for space, tokens in [key for key in self._used if key[0].model == model]:
            self._drop(space, tokens)

    def _drop(self, space: Space, tokens: Tokens) -> None:
        entry = self._used.pop((space, tokens))
        self.nbytes -= entry.nbytes
        index = self._spaces[space]
        index.remove(tokens)
        if not len(index):
            del self._spaces[space]


def shortened(layers: Sequence[Layer], by: int) -> tuple[Layer, ...]:
    """The same layers without their last `by` tokens; the originals are left as they are."""
    if by == 0:
        return tuple(layers)
    views = tuple(_view(layer) for layer in layers)
    for view in views:
        view.trim(by)
    return views


def _view(layer: Layer) -> Layer:
    # Shallow: trimming changes counters only, and the arrays are shared.
    view = copy.copy(layer)
    if isinstance(view, Compound):
        view.caches = tuple(_view(part) for part in view.caches)
    return view
