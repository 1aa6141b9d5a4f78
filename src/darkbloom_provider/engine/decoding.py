"""The rows of a batch that have their prompt behind them: a token for each, step after step.

The caches are mlx-lm's, and so is the pipeline: a step is begun before the one before it is read,
so that the processor prepares one while the other is being computed. What mlx-lm's own
`GenerationBatch` does otherwise costs a server tokens, and is why this stands in its place:

* a newcomer takes its first step together with everybody else, not in a step of its own;
* rows that choose alike are sampled together, whatever their neighbours ask for, and those that
  take the likeliest token in one operation;
* probabilities are computed for those who asked;
* what is computed can be read at once, before a piece of a prompt would make it wait (`flush`).

Engine thread only. Whatever raises here leaves the batch unusable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.models.cache import TokenBuffer

from darkbloom_provider.engine.extraction import extract_row
from darkbloom_provider.engine.layers import BatchLayer, Layer
from darkbloom_provider.engine.penalties import LogitsProcessor
from darkbloom_provider.engine.requests import FinishReason
from darkbloom_provider.engine.sampling import Sampler

Array = Any
"""`mlx.core.array`. MLX's own annotations are not precise enough to check against."""
Model = Callable[..., Array]
"""Tokens (rows x length) and `cache=` in, logits (rows x length x vocabulary) out."""
_TIDY_EVERY = 512
"""Steps after which memory that arrays have freed is given back, as in mlx-lm."""


@dataclass(slots=True, eq=False)
class Row:
    """One completion."""

    key: int
    tokens: list[int]
    """What its cache holds."""
    limit: int
    """Most tokens of the completion."""
    ends: frozenset[int]
    """Tokens that end it."""
    sampler: Callable[[Array], Array]
    processors: Sequence[LogitsProcessor] = ()
    wants_logprobs: bool = False
    made: int = 0
    """Tokens of the completion that have been read."""
    unread: bool = False
    """Whether its next input is a token that nobody has read yet."""
    logprobs: Array | None = None
    """Those that its next input was chosen by."""
    context: TokenBuffer | None = None


class Token(NamedTuple):
    """One token of one completion."""

    key: int
    token: int
    logprobs: Array | None
    """Of the whole vocabulary, computed already; only for a row that wants them."""
    reason: FinishReason | None
    """Why it is the last one, if it is. Its row is still there until it leaves."""


class Parked(NamedTuple):
    """A row that was taken out, to come back later."""

    row: Row
    layers: list[Layer]
    """Its own, for nobody else. They share memory with the batch until they are copied."""
    input: int
    """The token it is fed next."""


class Decoding:
    """Decodes one token for each row at every step.

    Args:
        model: What turns tokens into logits.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._rows: list[Row] = []
        self._layers: list[BatchLayer] = []
        self._inputs: Array = mx.array([], mx.uint32)
        """The token of each row that comes next; perhaps not computed yet."""
        self._choice: _Choice | None = None
        self._steps = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: int) -> bool:
        return any(row.key == key for row in self._rows)

    @property
    def unread(self) -> bool:
        """Whether tokens are on their way that `flush` would bring."""
        return any(row.unread for row in self._rows)

    def join(self, rows: Sequence[Row], layers: Sequence[BatchLayer], inputs: list[int]) -> None:
        """Take rows in whose caches are the batch `layers`, and feed them `inputs` next."""
        if self._layers:
            for mine, theirs in zip(self._layers, layers, strict=True):
                mine.extend(theirs)
        else:
            self._layers = list(layers)
        for row in rows:
            row.context = TokenBuffer(row.tokens) if row.processors else None
        tokens = mx.array(inputs, mx.uint32)
        self._inputs = mx.concatenate([self._inputs, tokens]) if self._rows else tokens
        self._rows += rows
        self._choice = None

    def leave(self, keys: Iterable[int]) -> None:
        """Let go of rows; keys that are not here count as gone."""
        gone = set(keys)
        keep = [at for at, row in enumerate(self._rows) if row.key not in gone]
        if len(keep) == len(self._rows):
            return
        self._rows = [self._rows[at] for at in keep]
        self._choice = None
        if not keep:
            self._layers = []
            return
        for layer in self._layers:
            layer.filter(keep)
        self._inputs = self._inputs[mx.array(keep)]

    def park(self, key: int) -> Parked | None:
        """Take a row out with all that it needs to join again; None if it is not here.

        Only right after `flush`: a token that is on its way would be lost.
        """
        found = self.contents(key)
        if found is None:
            return None
        at = next(at for at, row in enumerate(self._rows) if row.key == key)
        parked = Parked(self._rows[at], found[0], int(self._inputs[at].item()))
        self.leave([key])
        return parked

    def contents(self, key: int) -> tuple[list[Layer], list[int]] | None:
        """A copy of a row's layers, and the tokens that they hold; None if it is not here."""
        at = next((at for at, row in enumerate(self._rows) if row.key == key), None)
        if at is None:
            return None
        return [extract_row(layer, at) for layer in self._layers], list(self._rows[at].tokens)

    def step(self) -> list[Token]:
        """Begin the next step of all rows, then read what the one before it chose."""
        if not self._rows:
            return []
        if all(row.unread and row.made + 1 >= row.limit for row in self._rows):
            return self.flush()  # nobody would want what the next step chooses
        inputs = self._inputs
        waiting = self._waiting()
        self._begin(inputs)
        mx.eval(inputs, [logprobs for _, _, logprobs in waiting if logprobs is not None])
        values = inputs.tolist()
        for row, value in zip(self._rows, values, strict=True):
            row.tokens.append(value)
        return [_read(row, values[at], logprobs) for at, row, logprobs in waiting]

    def flush(self) -> list[Token]:
        """Read what the last step chose, as soon as it has been computed."""
        waiting = self._waiting()
        mx.eval(self._inputs, [logprobs for _, _, logprobs in waiting if logprobs is not None])
        values = self._inputs.tolist()
        for _, row, _ in waiting:
            row.unread = False
        return [_read(row, values[at], logprobs) for at, row, logprobs in waiting]

    def _waiting(self) -> list[tuple[int, Row, Array | None]]:
        return [(at, row, row.logprobs) for at, row in enumerate(self._rows) if row.unread]

    def _begin(self, inputs: Array) -> None:
        logits = self._model(inputs[:, None], cache=self._layers)[:, -1, :]
        contexts = []
        for at, row in enumerate(self._rows):
            if row.context is None:
                continue
            context = row.context.update_and_fetch(inputs[at : at + 1])
            contexts.append(context)
            changed = logits[at : at + 1]
            for process in row.processors:
                changed = process(context, changed)
            logits[at : at + 1] = changed
        if self._choice is None:
            self._choice = _Choice.of(self._rows)
        self._inputs = self._choice.sample(logits)
        asked = []
        for at, row in enumerate(self._rows):
            row.unread = True
            if row.wants_logprobs:
                row.logprobs = logits[at] - mx.logsumexp(logits[at], axis=-1, keepdims=True)
                asked.append(row.logprobs)
        mx.async_eval(self._inputs, asked, contexts)  # type: ignore[no-untyped-call] # mlx's stubs
        self._steps += 1
        if self._steps % _TIDY_EVERY == 0:
            mx.clear_cache()


class _Choice(NamedTuple):
    """Which rows are sampled together. Holds until a row comes or goes."""

    groups: Sequence[tuple[Callable[[Array], Array], Array | slice]]
    """A sampler and the places of its rows."""
    greedy: bool
    """Whether there are more rows, which take the likeliest token."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> _Choice:
        places: dict[int, list[int]] = {}
        for at, row in enumerate(rows):
            places.setdefault(id(row.sampler), []).append(at)
        if len(places) == 1:
            return cls([(rows[0].sampler, slice(None))], greedy=False)
        groups: list[tuple[Callable[[Array], Array], Array | slice]] = []
        for group in places.values():
            sampler = rows[group[0]].sampler
            if isinstance(sampler, Sampler) and sampler.greedy:
                continue
            one = len(group) == 1
            groups.append((sampler, slice(group[0], group[0] + 1) if one else mx.array(group)))
        return cls(groups, greedy=len(groups) < len(places))

    def sample(self, logits: Array) -> Array:
        if not self.greedy and len(self.groups) == 1:
            return self.groups[0][0](logits)
        # Of all rows at once: to pick some of them out costs more than it saves.
        chosen = mx.argmax(logits, axis=-1) if self.greedy else mx.zeros(len(logits), mx.uint32)
        for sampler, places in self.groups:
            chosen[places] = sampler(logits[places])
        return chosen


def _read(row: Row, token: int, logprobs: Array | None) -> Token:
    row.made += 1
    reason: FinishReason | None = "length" if row.made >= row.limit else None
    return Token(row.key, token, logprobs, "stop" if token in row.ends else reason)
