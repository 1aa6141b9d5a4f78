"""What the engine is asked for, for one request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from darkbloom_provider.engine import requests as engine
from darkbloom_provider.engine.parsers.forced import forced_schema
from darkbloom_provider.protocol.requests.request import TextRequest


def generations_of(request_id: str, request: TextRequest) -> Iterable[engine.GenerationRequest]:
    """What the engine is asked for: the answers to the first prompt, to the second, and so on."""
    for prompt in request.prompts or (None,):
        for number in range(request.n):
            yield engine.GenerationRequest(
                request_id=request_id,
                model=request.model,
                messages=request.messages if prompt is None else None,
                prompt=prompt,
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                top_k=request.top_k,
                min_p=request.min_p,
                seed=_seed(request.seed, number),
                repetition_penalty=request.repetition_penalty,
                stop=request.stop,
                tools=request.tools or None,
                presence_penalty=request.presence_penalty,
                frequency_penalty=request.frequency_penalty,
                logit_bias=request.logit_bias,
                logprobs=request.logprobs,
                ignore_eos=request.ignore_eos,
                structure=_structure(request),
                chat_template_kwargs=request.template_options,
                tenant=request.tenant,
            )


def _seed(seed: int | None, number: int) -> int | None:
    """The seed of the answer with this number: the first one's is the request's own."""
    if seed is None or number == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest)


def _structure(request: TextRequest) -> engine.Structure | None:
    choice, wanted = request.tool_choice, request.response_format
    if choice.mode == "required":
        return engine.Structure(
            "json_schema", json.dumps(forced_schema(request.tools, choice.name)), "tools"
        )
    if wanted is None:
        return None
    if wanted.schema is None:
        return engine.Structure("json_object")
    return engine.Structure("json_schema", json.dumps(wanted.schema))
