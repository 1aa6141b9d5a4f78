from __future__ import annotations

import itertools
from typing import Any

import mlx.core as mx
import pytest

from darkbloom_provider.engine.requests import SamplingParams
from darkbloom_provider.engine.sampling import Sampler, Samplers

PROBABILITIES = [0.5, 0.3, 0.15, 0.05]
LOGPROBS = mx.log(mx.array([PROBABILITIES]))


def _drawn(params: SamplingParams, count: int = 300) -> set[int]:
    sampler = Sampler(params, seed=1)
    rows = mx.concatenate([LOGPROBS] * count)
    return set(sampler(rows).tolist())


@pytest.mark.parametrize(
    ("params", "tokens"),
    [
        (SamplingParams(), {0}),
        (SamplingParams(temperature=1.0), {0, 1, 2, 3}),
        (SamplingParams(temperature=1.0, top_k=2), {0, 1}),
        (SamplingParams(temperature=1.0, top_k=1), {0}),
        (SamplingParams(temperature=1.0, top_k=99), {0, 1, 2, 3}),
        (SamplingParams(temperature=1.0, top_p=0.75), {0, 1}),
        (SamplingParams(temperature=1.0, top_p=0.01), {0}),
        (SamplingParams(temperature=1.0, min_p=0.2), {0, 1, 2}),
        (SamplingParams(temperature=1.0, min_p=1.0), {0}),
        (SamplingParams(temperature=1.0, top_p=0.9, top_k=3, min_p=0.5), {0, 1}),
        (SamplingParams(temperature=1.0, top_p=0.9, top_k=2), {0, 1}),
        (SamplingParams(temperature=9.0, top_p=0.75, min_p=0.01), {0, 1}),
    ],
)
def test_only_tokens_that_the_parameters_leave_are_drawn(
    params: SamplingParams, tokens: set[int]
) -> None:
    assert _drawn(params) == tokens


def test_tokens_come_as_often_as_they_are_likely() -> None:
    sampler = Sampler(SamplingParams(temperature=1.0), seed=2)
    draws = list(itertools.chain.from_iterable(sampler(LOGPROBS).tolist() for _ in range(2000)))
    for token, probability in enumerate(PROBABILITIES):
        assert draws.count(token) / len(draws) == pytest.approx(probability, abs=0.05)


def test_filtered_tokens_come_as_often_as_they_are_likely() -> None:
    sampler = Sampler(SamplingParams(temperature=1.0, top_k=2), seed=2)
    draws = list(itertools.chain.from_iterable(sampler(LOGPROBS).tolist() for _ in range(2000)))
    assert draws.count(0) / len(draws) == pytest.approx(0.5 / 0.8, abs=0.05)


def test_logits_need_not_be_normalised() -> None:
    params = SamplingParams(temperature=0.8, top_p=0.8, min_p=0.05)
    plain, shifted = (Sampler(params, seed=3) for _ in range(2))
    rows = mx.concatenate([LOGPROBS] * 50)
    assert plain(rows).tolist() == shifted(rows + 7).tolist()


def test_the_same_seed_draws_the_same_whatever_else_is_drawn() -> None:
    params = SamplingParams(temperature=1.0, seed=42)
    samplers = Samplers(entropy=itertools.count().__next__)
    one, two = samplers.get(params), samplers.get(params)
    other = samplers.get(SamplingParams(temperature=1.0))
    first = [one(LOGPROBS).item() for _ in range(50)]
    second: list[Any] = []
    for _ in range(50):
        other(LOGPROBS)
        second.append(two(LOGPROBS).item())
    assert first == second
    assert len(set(first)) > 1


def test_equal_requests_share_one_sampler_while_any_of_them_runs() -> None:
    starts: list[int] = []

    def entropy() -> int:
        starts.append(len(starts))
        return starts[-1]

    samplers = Samplers(entropy)
    params = SamplingParams(temperature=0.7)
    one = samplers.get(params)
    assert samplers.get(params) is one
    assert samplers.get(SamplingParams(temperature=0.8)) is not one
    del one
    samplers.get(params)
    assert len(starts) == 3


def test_top_p_keeps_the_likeliest_of_a_large_vocabulary() -> None:
    size = 5000
    likely = mx.full((1, size), -30.0)
    likely[0, 4321], likely[0, 17], likely[0, 99] = 1.0, 0.9, -3.0
    logprobs = likely - mx.logsumexp(likely, axis=-1, keepdims=True)
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=0.9), seed=1)
    assert set(sampler(mx.concatenate([logprobs] * 300)).tolist()) == {4321, 17}


def test_top_p_keeps_no_more_of_a_guess_than_its_bound() -> None:
    flat = mx.arange(5000)[None] * 1e-6
    flat = flat - mx.logsumexp(flat, axis=-1, keepdims=True)
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=0.99), seed=1)
    drawn = set(sampler(mx.concatenate([flat] * 300)).tolist())
    assert min(drawn) >= 5000 - 1024
    assert len(drawn) > 200
