from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from darkbloom_provider.engine.errors import InvalidGenerationError
from darkbloom_provider.engine.requests import (
    Delta,
    EngineSnapshot,
    GenerationRequest,
    SamplingParams,
    SlotSnapshot,
)

VALID = GenerationRequest("r", "m", prompt="p")


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"messages": ({"role": "user", "content": "x"},)}, "exactly one"),
        ({"prompt": None}, "exactly one"),
        ({"prompt": None, "messages": ()}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -1.0}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": math.inf}, "repetition_penalty"),
        ({"stop": ("a", "")}, "stop"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": math.nan}, "frequency_penalty"),
        ({"logit_bias": ((5, 101.0),)}, "logit_bias"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias"),
        ({"logprobs": 21}, "top_logprobs"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused_by_name(
    change: dict[str, Any], parameter: str
) -> None:
    with pytest.raises(InvalidGenerationError, match=parameter) as caught:
        replace(VALID, **change).check()
    assert caught.value.status_code == 400


def test_a_sensible_request_passes() -> None:
    replace(VALID, max_tokens=1, temperature=2.0, top_p=0.0, repetition_penalty=1.1).check()


def test_all_greedy_requests_sample_alike() -> None:
    assert replace(VALID, top_p=0.9, seed=3).sampling == SamplingParams()
    assert replace(VALID, temperature=1.0, seed=3).sampling == SamplingParams(1.0, seed=3)


def test_what_the_consumer_wrote_shows_in_no_representation() -> None:
    secret = "my secret"
    request = GenerationRequest(
        "r", "m", messages=({"content": secret},), stop=(secret,), tools=({"name": secret},)
    )
    shown = repr(request) + repr(replace(VALID, prompt=secret)) + repr(Delta(secret, 1))
    assert secret not in shown


def test_a_slot_is_found_by_its_model() -> None:
    snapshot = EngineSnapshot(slots=(SlotSnapshot("a", "running"),))
    assert snapshot.slot("a") is snapshot.slots[0]
    assert snapshot.slot("b") is None


def test_the_front_of_the_engine_loads_no_mlx() -> None:
    program = (
        "import sys; import darkbloom_provider.engine.engine, darkbloom_provider.engine.requests; "
        "import darkbloom_provider.models.gguf_import, darkbloom_provider.models.store; "
        "sys.exit(any(name.split('.')[0] in {'mlx', 'mlx_lm', 'transformers', 'gguf'} "
        "for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
