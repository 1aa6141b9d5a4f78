"""Who computes a beginning that several prompts have in common, and who waits for it.

Of requests that begin alike, one leads: its prompt is cut where the others leave it, and what the
model has made of it up to there goes into the prompt cache. Those that would compute the same wait
for that moment and go on from it. Nobody waits for anything else: a request is held back only
while another one is computing what it needs, and every step asks anew.

Decisions only: what happens to a batch is the caller's, who gets values back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from darkbloom_provider.engine.layers import Layer
from darkbloom_provider.engine.prefix_index import common_length
from darkbloom_provider.engine.prompt_cache import Hit, PromptCache, Space

MIN_SHARED = 64
"""Tokens that must be saved for a request to wait for another one."""
_CHECKPOINT_EVERY = 32
_CHECKPOINT_MARGIN = 8
"""Where caches cannot be shortened, they are also kept a little before the prompt's end: the next
turn of a conversation often renders the last few tokens differently."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that is not in the batch yet."""

    key: int
    space: Space
    prompt: Sequence[int] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Start:
    """How to begin a request now."""

    done: list[int] = field(repr=False)
    """Tokens that need not be computed, a list of its own."""
    layers: list[Layer] | None = field(repr=False)
    """The model's cache after those; None if there are none."""
    segments: list[list[int]] = field(repr=False)
    """The tokens to compute, cut where the cache is kept."""


Contents = tuple[Sequence[Layer], Sequence[int]]
"""A row's layers, and the tokens that they hold."""


@dataclass(slots=True)
class _Member:
    """A request in the batch."""

    space: Space
    prompt: Sequence[int]
    pending: list[int]
    """Lengths at which its cache may still be kept, in order; the last is the prompt's end."""
    planned: set[int]
    """Those at which it is kept in any case."""
    awaited: bool = False
    """Somebody waits for its next boundary."""
    given: bool = False
    """It was asked for its cache while it was decoding already."""
    common: dict[int, int] = field(default_factory=dict)
    """Tokens in common with candidates, by their key."""


class Sharing:
    """The beginnings that one model's batch shares.

    Args:
        cache: Where they are kept.
        trimmable: Whether this model's caches can always be shortened.
    """

    def __init__(self, cache: PromptCache, *, trimmable: bool) -> None:
        self._cache = cache
        self._trimmable = trimmable
        self._members: dict[int, _Member] = {}

    def begin(
        self,
        candidate: Candidate,
        behind: Iterable[Candidate],
        contents: Callable[[int], Contents | None],
        fits: Callable[[int], bool] = lambda _tokens: True,
    ) -> Start | None:
        """How to begin `candidate` now, or None: not yet.

        Either what it needs is being computed by another one, or it does not fit.

        Args:
            candidate: The request; after a start it is a member until `left`.
            behind: Those that would begin after it.
            contents: Takes what the row of a member holds, by the member's key.
            fits: Whether there is room for a prompt of which so many tokens are to be computed.
        """
        prompt = candidate.prompt
        if not self._cache.enabled:
            return Start([], None, [list(prompt)]) if fits(len(prompt)) else None
        space = candidate.space
        hit = self._cache.find(space, prompt)
        if self._waits(candidate, _length(hit)):
            return None
        if self._take_from_running(candidate, _length(hit), contents):
            hit = self._cache.find(space, prompt)
        done = _length(hit)
        if not fits(len(prompt) - done):
            return None
        planned = self._boundaries(candidate, done, behind)
        self._members[candidate.key] = _Member(
            space, prompt, [*sorted(planned - {len(prompt) - 1}), len(prompt) - 1], planned
        )
        if hit is not None:
            self._cache.take_up(hit)
        return Start(
            list(prompt[:done]),
            None if hit is None else list(hit.layers),
            _cut(prompt, done, planned),
        )

    def reached(self, key: int, contents: Callable[[int], Contents | None]) -> None:
        """A member's row has come to the end of a segment of its prompt."""
        member = self._members.get(key)
        if member is None or not member.pending:
            return
        at = member.pending.pop(0)
        if (at in member.planned or member.awaited) and not self._cache.holds(
            member.space, member.prompt[:at]
        ):
            self._keep(member, contents(key))
        member.awaited = False

    def decoding(self, key: int) -> None:
        """A member's prompt has been computed."""
        member = self._members.get(key)
        if member is not None:
            member.pending.clear()

    def finished(self, key: int, contents: Callable[[], Contents | None]) -> bool:
        """A member is whole; `left` follows. True if what it leaves behind is kept."""
        member = self._members.get(key)
        return member is not None and self._keep(member, contents())

    def left(self, key: int) -> None:
        """A member is no longer in the batch. Who waited for it asks anew."""
        self._members.pop(key, None)

    def clear(self) -> None:
        """The batch is gone."""
        self._members.clear()

    def _waits(self, candidate: Candidate, done: int) -> bool:
        for member in self._members.values():
            if member.space != candidate.space or not member.pending:
                continue
            common = self._common(member, candidate)
            if any(self._pays(at, self._worth(at, common), done) for at in member.pending):
                member.awaited = True
                return True
        return False

    def _pays(self, at: int, worth: int, done: int) -> bool:
        """Whether to wait for a row to come to length `at` in order to save `worth` tokens.

        Never longer than about twice the time that computing them would take.
        """
        saved = worth - done
        return saved >= MIN_SHARED and at - done <= 2 * saved

    def _worth(self, at: int, common: int) -> int:
        """Tokens that a row kept at length `at` saves one that has `common` tokens in common."""
        if at <= common:
            return at
        return common if self._trimmable else 0

    def _take_from_running(
        self,
        candidate: Candidate,
        done: int,
        contents: Callable[[int], Contents | None],
    ) -> bool:
        """Keep what a decoding member holds, if that helps the candidate."""
        if not self._trimmable:
            return False
        for key, member in self._members.items():
            if member.space != candidate.space or member.pending or member.given:
                continue
            if self._common(member, candidate) - done >= MIN_SHARED:
                member.given = True
                return self._keep(member, contents(key))
        return False

    def _boundaries(self, candidate: Candidate, done: int, behind: Iterable[Candidate]) -> set[int]:
        """Lengths at which the candidate's cache is worth keeping."""
        prompt, last = candidate.prompt, len(candidate.prompt) - 1
        found: set[int] = set()
        common = [
            min(common_length(prompt, other.prompt), last, len(other.prompt) - 1)
            for other in behind
            if other.space == candidate.space
        ]
        useful = {at for at in common if at - done >= MIN_SHARED}
        if useful:
            # The one place where most is saved; the next leader finds the next.
            found.add(max(useful, key=lambda at: (at - done) * sum(c >= at for c in common)))
        if not self._trimmable:
            checkpoint = (len(prompt) - _CHECKPOINT_MARGIN) // _CHECKPOINT_EVERY * _CHECKPOINT_EVERY
            found |= {at for at in (checkpoint, last) if at - done >= MIN_SHARED}
        return found

    def _keep(self, member: _Member, contents: Contents | None) -> bool:
        if contents is None:
            return False
        layers, tokens = contents
        return self._cache.put(member.space, tokens, layers)

    def _common(self, member: _Member, candidate: Candidate) -> int:
        found = member.common.get(candidate.key)
        if found is None:
            found = common_length(candidate.prompt, member.prompt)
            found = member.common[candidate.key] = min(found, len(candidate.prompt) - 1)
        return found


def always_trimmable(layers: Iterable[Layer]) -> bool:
    """Whether fresh layers of a model can be shortened at any length they will ever have."""
    return all(
        layer.is_trimmable()
        and not hasattr(layer, "max_size")  # a window forgets once it is full
        and always_trimmable(getattr(layer, "caches", ()))
        for layer in layers
    )


def _length(hit: Hit | None) -> int:
    return 0 if hit is None else hit.length


def _cut(prompt: Sequence[int], done: int, planned: set[int]) -> list[list[int]]:
    cuts = [done, *sorted(at for at in planned if done < at < len(prompt)), len(prompt)]
    return [list(prompt[a:b]) for a, b in itertools.pairwise(cuts)]
