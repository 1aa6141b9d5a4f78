"""The prompts that are being computed, some tokens of each at a time. Engine thread only.

A prompt is computed up to its last token: that one is fed with the first decode step, whose answer
is the completion's first token. The arithmetic follows mlx-lm's `PromptProcessingBatch`: rows that
are shorter than the longest of a step are padded on the right, and the caches roll the padding to
the left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from darkbloom_provider.engine.decoding import Model, Row
from darkbloom_provider.engine.extraction import extract_row
from darkbloom_provider.engine.layers import BatchLayer, Layer, merge


@dataclass(slots=True, eq=False)
class Prompt:
    """A row whose prompt is not computed yet."""

    row: Row
    segments: list[list[int]]
    """Tokens to compute, cut where the cache may be kept; without the prompt's last."""
    last: int
    """The prompt's last token."""
    begun: bool = False
    """Whether a part of it has been computed here."""

    @property
    def left(self) -> int:
        """Tokens that are still to be computed."""
        return sum(map(len, self.segments))


class Ready(NamedTuple):
    """Rows that can be decoded, as `Decoding.join` takes them."""

    rows: list[Row]
    layers: list[BatchLayer]
    inputs: list[int]


class Piece(NamedTuple):
    """What one step computed."""

    tokens: int
    """Padding included: it costs as much."""
    boundaries: list[int]
    """Keys of the rows that have come to the end of a segment."""


class Reading:
    """Computes prompts.

    Args:
        model: What turns tokens into logits.
        fresh: Makes a row's empty layers.
    """

    def __init__(self, model: Model, fresh: Callable[[], list[Layer]]) -> None:
        self._model = model
        self._fresh = fresh
        self._prompts: list[Prompt] = []
        self._layers: list[BatchLayer] = []
        self._ready: list[Ready] = []

    def __len__(self) -> int:
        """Prompts of which something is still to be computed."""
        return len(self._prompts)

    @property
    def left(self) -> list[int]:
        """Tokens of each prompt that are still to be computed."""
        return [prompt.left for prompt in self._prompts]

    @property
    def pieces(self) -> list[int]:
        """Tokens of each prompt that one step could compute, up to where it is cut."""
        return [len(prompt.segments[0]) for prompt in self._prompts]

    @property
    def begun(self) -> bool:
        """Whether a part of any prompt here has been computed, and the rest has not."""
        return any(prompt.begun for prompt in self._prompts)

    def join(
        self, row: Row, layers: Sequence[Layer] | None, segments: Sequence[Sequence[int]]
    ) -> None:
        """Take in a row.

        Args:
            row: Its `tokens` are those that its layers hold.
            layers: What is computed already; None if nothing is.
            segments: The rest of the prompt, at least one token, cut where the cache may be kept.

        Raises:
            CannotBeBatchedError: The layers' kind cannot be batched; a model that makes such
                layers is refused when it is loaded.
        """
        *cut, end = ([*segment] for segment in segments if segment)
        cut += [end[:-1]] if end[:-1] else []
        merged = [merge([layer]) for layer in (self._fresh() if layers is None else layers)]
        if not cut:
            self._ready.append(Ready([row], merged, [end[-1]]))
            return
        if self._layers:
            for mine, its in zip(self._layers, merged, strict=True):
                mine.extend(its)
        else:
            self._layers = merged
        self._prompts.append(Prompt(row, cut, end[-1]))

    def leave(self, key: int) -> None:
        """Let go of a row, if it is here."""
        self._ready = [ready for ready in self._ready if ready.rows[0].key != key]
        keep = [at for at, prompt in enumerate(self._prompts) if prompt.row.key != key]
        if len(keep) < len(self._prompts):
            self._keep(keep)

    def contents(self, key: int) -> tuple[list[Layer], list[int]] | None:
        """A copy of a row's layers, and the tokens that they hold; None if it is not here."""
        for at, prompt in enumerate(self._prompts):
            if prompt.row.key == key:
                return [extract_row(layer, at) for layer in self._layers], list(prompt.row.tokens)
        return None

    def read(self, tokens: int) -> Piece:
        """Compute up to so many tokens of each prompt, never past the end of a segment.

        What that completes is to be taken, by `take_ready`, before the next piece.
        """
        pieces = [prompt.segments[0][:tokens] for prompt in self._prompts]
        lengths = [len(piece) for piece in pieces]
        longest = max(lengths)
        padding = [longest - length for length in lengths]
        if max(padding):
            for layer in self._layers:
                layer.prepare(lengths=lengths, right_padding=padding)
        padded = [piece + [0] * missing for piece, missing in zip(pieces, padding, strict=True)]
        self._model(mx.array(padded), cache=self._layers)
        if max(padding):
            for layer in self._layers:
                layer.finalize()
        mx.eval([layer.state for layer in self._layers])
        mx.clear_cache()
        boundaries = []
        for prompt, piece in zip(self._prompts, pieces, strict=True):
            prompt.row.tokens += piece
            prompt.begun = True
            rest = prompt.segments[0][len(piece) :]
            prompt.segments[:1] = [rest] if rest else []
            if not rest:
                boundaries.append(prompt.row.key)
        return Piece(longest * len(pieces), boundaries)

    def take_ready(self) -> list[Ready]:
        """Hand over the rows of which only the last token is left."""
        ready, self._ready = self._ready, []
        done = [prompt for prompt in self._prompts if not prompt.segments]
        if not done:
            return ready
        if len(done) == len(self._prompts):  # the common case: nothing needs to be copied
            layers, keep = self._layers, []
        else:
            places = [at for at, prompt in enumerate(self._prompts) if not prompt.segments]
            layers = [merge([layer.extract(at) for at in places]) for layer in self._layers]
            keep = [at for at, prompt in enumerate(self._prompts) if prompt.segments]
        ready.append(Ready([p.row for p in done], layers, [p.last for p in done]))
        self._keep(keep)
        return ready

    def _keep(self, places: list[int]) -> None:
        self._prompts = [self._prompts[at] for at in places]
        if not places:
            self._layers = []
            return
        for layer in self._layers:
            layer.filter(places)
