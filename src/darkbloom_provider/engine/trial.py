"""Finding out how a model's requests can be computed, and whether they can. Engine thread only.

Models come in families, and mlx-lm adds new ones with every version. Whether one can be batched is
not asked by name but tried: with the layers it makes, and with short rows of unequal length.
"""

from __future__ import annotations

from functools import partial

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from darkbloom_provider.engine.decoding import Array, Decoding, Model, Row
from darkbloom_provider.engine.layers import BatchLayer, CannotBeBatchedError
from darkbloom_provider.engine.reading import Reading
from darkbloom_provider.engine.requests import SamplingParams
from darkbloom_provider.engine.sampling import Sampler

_ROWS = 7
"""As many as no model has heads: a mask that is one axis off would fit by accident."""
_PADDING = 0
"""What `Reading` pads with."""
_TOKENS = (2, 3, 5, 4)
"""What the rows say, over and over. Every vocabulary has these."""
_STEPS = 8
"""In which the two tokens have to come."""
_SAME = 0.01
"""Nearer than this log-probabilities are the same, in the mean over a vocabulary."""


def keeps_company(model: Model) -> bool:
    """Whether rows of unequal length can be computed together.

    Some of mlx-lm's models take a mask for a single row only, and raise for more. Some with a
    recurrent state take the padding of shorter rows for text: there the answers change with it.

    Raises:
        CannotBeBatchedError: Its layers cannot; then not even one row can be computed.
    """
    try:
        one, other = (_answers(model, padding) for padding in (0, 1))
    except CannotBeBatchedError:
        raise
    except Exception:  # noqa: BLE001 - whatever it is, it is the answer
        return False
    apart = mx.sort(mx.abs(one - other).mean(axis=-1))
    # Of most rows: a single one may fall on the other side of a choice of experts.
    return bool((apart[_ROWS // 2] < _SAME).item())


def problem(model: Model) -> str | None:
    """What keeps two tokens from being computed for nobody, in one sentence; None if nothing."""
    try:
        reading, decoding = Reading(model, lambda: make_prompt_cache(model)), Decoding(model)
        reading.join(Row(0, [], 2, frozenset(), _greedy()), None, [[0, 0]])
        reading.read(1)
        [ready] = reading.take_ready()
        decoding.join(*ready)
        for _ in range(_STEPS):
            if any(token.reason for token in decoding.step()):
                return None
    except Exception as error:  # noqa: BLE001 - that is the answer
        return f"its steps fail ({type(error).__name__})"
    return "its steps bring nothing out"


def _greedy() -> Sampler:
    return Sampler(SamplingParams(temperature=0), seed=0)


def _padded(model: Model, padding: int, tokens: Array, *, cache: list[BatchLayer]) -> Array:
    return model(mx.where(tokens == _PADDING, padding, tokens), cache=cache)


def _answers(model: Model, padding: int) -> Array:
    """Log-probabilities after prompts of one token, of two and so on, computed together.

    Args:
        model: Whose.
        padding: The token that fills up shorter rows.
    """
    padded = partial(_padded, model, padding)
    reading, decoding = Reading(padded, lambda: make_prompt_cache(model)), Decoding(padded)
    for length in range(1, _ROWS + 1):
        prompt = [_TOKENS[at % len(_TOKENS)] for at in range(length)]
        row = Row(length, [], 1, frozenset(), _greedy(), wants_logprobs=True)
        reading.join(row, None, [prompt])
    reading.read(_ROWS)
    for ready in reading.take_ready():
        decoding.join(*ready)
    decoding.step()
    answers: list[Array] = [
        token.logprobs for token in sorted(decoding.flush(), key=lambda token: token.key)
    ]
    return mx.stack(answers).astype(mx.float32)
