"""What a model says to a prompt that nobody shares it with, and how close a call each token was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step

from darkbloom_provider.engine.loading import Weights
from darkbloom_provider.engine.prompt import encode
from darkbloom_provider.engine.requests import GenerationRequest, TokenLogprob
from darkbloom_provider.engine.token_bytes import token_data

TOLERANCE = 1e-3
"""Two tokens whose log-probabilities are closer than this may change places in company.

A batch adds the same products up in another order, so that log-probabilities differ in their last
digits: by 2e-5 at most, measured over 960 tokens of SmolLM2 in float32, alone and among sixteen.
Where one token differs, everything after it may: nothing is compared from there on.
"""


@dataclass(frozen=True, slots=True)
class Greedy:
    """The most likely completion, token by token, without the token that ends a turn."""

    data: tuple[bytes, ...]
    """What each token writes."""
    margins: tuple[float, ...]
    """By how much each token's log-probability leads the second's; the turn's end has one too."""

    @property
    def text(self) -> str:
        return b"".join(self.data).decode()

    def agrees(self, said: Sequence[TokenLogprob]) -> bool:
        """Whether a completion is this one, as far as floating point does not decide."""
        theirs = tuple(entry.chosen.data for entry in said)
        if theirs == self.data:
            return True
        both = zip(self.data, theirs, strict=False)
        at = next((at for at, (mine, its) in enumerate(both) if mine != its), None)
        at = min(len(theirs), len(self.data)) if at is None else at
        return at < len(self.margins) and self.margins[at] < TOLERANCE


def greedy(weights: Weights, request: GenerationRequest) -> Greedy:
    """Generate with mlx-lm itself, outside of any batch."""
    written = token_data(weights.tokenizer)
    data: list[bytes] = []
    margins: list[float] = []
    for token, logprobs in generate_step(
        mx.array(encode(weights.tokenizer, request)),
        weights.model,
        max_tokens=request.max_tokens or 0,
    ):
        first, second = np.sort(np.array(logprobs))[:-3:-1]
        margins.append(float(first - second))
        if token in weights.tokenizer.eos_token_ids:
            break
        data.append(written(int(token)))
    return Greedy(tuple(data), tuple(margins))
