"""What one request with a seed, with logprobs or with a stop string costs the batch it joins."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import model, ours
from benchmarks.figure import Figure, Measure, in_turn
from benchmarks.scale import Scale

BATCH = 8
ROUNDS = 3
"""Times as many as elsewhere: a cost of three in a hundred has to stand out of the noise."""
FEATURES: Mapping[str, Mapping[str, Any]] = {
    "nothing": {},
    "seed": {"temperature": 0.8, "top_p": 0.95, "seed": 7},
    "logprobs": {"logprobs": 5},
    "stop": {"stop": ("this never comes", "nor this")},
}


def measure(scale: Scale) -> list[Figure]:
    """The share of its tokens/s that the batch loses to the dearest of them."""
    with ours.model_folder(scale) as folder:
        return asyncio.run(_measure(folder, scale))


async def _measure(folder: Path, scale: Scale) -> list[Figure]:
    async with ours.loaded_engine(folder) as engine:

        def with_feature(asked: Mapping[str, Any]) -> Measure[float]:
            line = model.Prompts()

            async def rate() -> float:
                plain = [
                    ours.request(prompt, scale.tokens_out)
                    for prompt in line.some(BATCH, scale.tokens_in)
                ]
                return await ours.tokens_per_second(
                    engine, [replace(plain[0], **asked), *plain[1:]]
                )

            return rate

        many = replace(scale, rounds=scale.rounds * ROUNDS)
        without, *others = await in_turn([with_feature(f) for f in FEATURES.values()], many)
    # Neighbours in time are compared, so that a drift of the machine is no cost.
    costs = [
        statistics.median(1 - ours / plain for ours, plain in zip(taken, without, strict=True))
        for taken in others
    ]
    return [Figure("engine.features_cost", max(costs), "share of tokens/s")]
