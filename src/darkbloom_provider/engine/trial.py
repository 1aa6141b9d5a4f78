"""Finding out, when a model is loaded, how its requests can be computed. Engine thread only.

Models come in families, and mlx-lm adds new ones with every version. Whether one can be batched is
not asked by name but tried: with the layers it makes, and with short rows of unequal length.
"""

from __future__ import annotations

from mlx_lm.models.cache import make_prompt_cache

from darkbloom_provider.engine.decoding import Decoding, Model, Row
from darkbloom_provider.engine.layers import CannotBeBatchedError
from darkbloom_provider.engine.reading import Reading
from darkbloom_provider.engine.requests import SamplingParams
from darkbloom_provider.engine.sampling import Sampler

_ROWS = 7
"""As many as no model has heads: a mask that is one axis off would fit by accident."""


def keeps_company(model: Model) -> bool:
    """Whether rows of unequal length can be computed together.

    Some of mlx-lm's models take a mask for a single row only, and raise for more.

    Raises:
        CannotBeBatchedError: Its layers cannot; then not even one row can be computed.
    """
    reading = Reading(model, lambda: make_prompt_cache(model))
    decoding = Decoding(model)
    greedy = Sampler(SamplingParams(temperature=0), seed=0)
    try:
        for length in range(1, _ROWS + 1):
            row = Row(length, [], limit=2, ends=frozenset(), sampler=greedy)
            reading.join(row, None, [[0] * length])  # every vocabulary has a token 0
        reading.read(_ROWS)
        for ready in reading.take_ready():
            decoding.join(*ready)
        decoding.step()
        decoding.flush()
    except CannotBeBatchedError:
        raise
    except Exception:  # noqa: BLE001 - whatever it is, it is the answer
        return False
    return True
