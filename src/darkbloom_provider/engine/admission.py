"""Whether work fits into the memory it may use, decided before it begins. Pure.

The sum, in bytes, of which nothing may ever exceed the ceiling:

    weights of every model in memory
  + what each batch keeps at its fullest: rows x the longest row's prompt and completion
  + one more copy of the largest of these: rows that join or leave make mlx-lm copy the whole batch
  + intermediate results of the dearest step
  + the prompt cache, which always makes room

A request is let in only if the sum with its worst case stays under the ceiling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from darkbloom_provider.models.memory import Footprint

SMALLEST_ROW = 512
"""Tokens of the request that a model must have room for, or it is not loaded."""
_GROWTH = 256
"""Tokens by which mlx-lm's caches grow at a time."""
_SMALLEST_PIECE = 64
"""Prompt tokens that one step must be able to take on, all prompts together."""
_WORK_SHARE = 8
"""Intermediate results get no more than one part in so many; prompts go in smaller pieces then."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine may do."""

    ceiling: int | None = None
    """Bytes; None refuses nothing."""
    metal: bool = False
    piece_tokens: int = 4096
    """Prompt tokens that one step takes on at most, all prompts together."""
    row_piece_tokens: int = 512
    """The same for one prompt."""

    @property
    def slack(self) -> int:
        """Tokens for which a batch has room beyond its longest request: growth and padding."""
        return _GROWTH + self.row_piece_tokens


@dataclass(frozen=True, slots=True)
class Load:
    """A model in memory, or on its way there."""

    footprint: Footprint
    rows: tuple[int, ...] = ()
    """Prompt and longest possible completion of each request in its batch, in tokens."""

    def cache_bytes(self, limits: Limits) -> int:
        """What its batch keeps at its fullest."""
        if not self.rows:
            return 0
        return self.footprint.batch_bytes(len(self.rows), max(self.rows), limits.slack)

    def with_row(self, tokens: int) -> Load:
        """The same with one request more."""
        return replace(self, rows=(*self.rows, tokens))


Loads = Mapping[str, Load]


@dataclass(frozen=True, slots=True)
class Accept:
    """It fits."""

    prompt_cache: int | None
    """Bytes that the prompt cache may hold from now on; None sets it no limit."""


@dataclass(frozen=True, slots=True)
class Unload:
    """It fits once these models, which nobody uses, are out of memory."""

    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """It fits when others are done."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """It does not fit, and waiting does not help."""

    needed: int
    """Bytes it would take all by itself."""
    available: int
    """Bytes it could have."""


Verdict = Accept | Unload | Wait | Refuse


def worst(loads: Loads, limits: Limits) -> int:
    """The most bytes that all this can come to, the prompt cache apart."""
    caches = [load.cache_bytes(limits) for load in loads.values()]
    weights = sum(load.footprint.weight_bytes for load in loads.values())
    work = max((work_bytes(load, limits) for load in loads.values()), default=0)
    return weights + sum(caches) + max(caches, default=0) + work


def work_bytes(load: Load, limits: Limits) -> int:
    """What the dearest step of a model needs for intermediate results."""
    context = max(load.rows, default=SMALLEST_ROW) + limits.slack
    each = load.footprint.work_per_token(context, metal=limits.metal)
    wanted = each * limits.piece_tokens
    if limits.ceiling is not None:
        wanted = min(wanted, max(limits.ceiling // _WORK_SHARE, each * _SMALLEST_PIECE))
    return wanted + load.footprint.decode_work(max(1, len(load.rows)))


def piece_tokens(load: Load, limits: Limits) -> int:
    """Prompt tokens that one step of a model may take on, so that `work_bytes` is kept."""
    context = max(load.rows, default=SMALLEST_ROW) + limits.slack
    each = load.footprint.work_per_token(context, metal=limits.metal)
    room = work_bytes(load, limits) - load.footprint.decode_work(max(1, len(load.rows)))
    return max(_SMALLEST_PIECE, room // each)


def judge_request(
    model: str,
    tokens: int,
    loads: Loads,
    limits: Limits,
    *,
    idle: Sequence[str] = (),
    unexplained: int = 0,
) -> Verdict:
    """Whether a request may join the batch of its model now.

    Args:
        model: One of `loads`.
        tokens: Its prompt and the longest completion that it may have.
        loads: What is in memory.
        limits: The ceiling.
        idle: Other models that nobody uses, the one to give up first at the front.
        unexplained: Bytes in use that the sum knows nothing of.
    """
    alone = {model: Load(loads[model].footprint, (tokens,))}
    after = {**loads, model: loads[model].with_row(tokens)}
    return _judge(alone, after, limits, idle, unexplained)


def judge_model(
    model: str,
    footprint: Footprint,
    loads: Loads,
    limits: Limits,
    *,
    idle: Sequence[str] = (),
    unexplained: int = 0,
) -> Verdict:
    """Whether a model may be loaded now, and would have room to serve a small request."""
    alone = {model: Load(footprint, (SMALLEST_ROW,))}
    return _judge(alone, {**loads, **alone}, limits, idle, unexplained)


def most_tokens(footprint: Footprint, limits: Limits, at_most: int) -> int:
    """The longest request, up to `at_most` tokens, that a model could serve all by itself."""
    if limits.ceiling is None:
        return at_most
    low, high = 0, at_most
    while low < high:
        middle = (low + high + 1) // 2
        if worst({"": Load(footprint, (middle,))}, limits) <= limits.ceiling:
            low = middle
        else:
            high = middle - 1
    return low


def _judge(
    alone: Loads, after: Loads, limits: Limits, idle: Sequence[str], unexplained: int
) -> Verdict:
    ceiling = limits.ceiling
    if ceiling is None:
        return Accept(None)
    needed = worst(alone, limits)
    if needed > ceiling:
        return Refuse(needed, ceiling)
    room = ceiling - unexplained - worst(after, limits)
    if room >= 0:
        return Accept(room)
    for count in range(1, len(idle) + 1):
        rest = {name: load for name, load in after.items() if name not in idle[:count]}
        if worst(rest, limits) + unexplained <= ceiling:
            return Unload(tuple(idle[:count]))
    if sum(len(load.rows) for load in after.values()) > 1:
        return Wait()
    return Refuse(needed, max(0, room + needed))
