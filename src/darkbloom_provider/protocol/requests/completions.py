"""Completions, the older dialect: text in, the text that follows out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from darkbloom_provider.protocol.requests import shared
from darkbloom_provider.protocol.requests.document import Reader, refused
from darkbloom_provider.protocol.requests.request import TextRequest

MAX_PROMPTS: Final = 128
MAX_LOGPROBS: Final = 5


def completions(document: Mapping[str, Any]) -> TextRequest:
    """A completions request from its JSON object.

    Raises:
        InvalidRequestError: With the parameter's name.
    """
    read = Reader(document)
    base = shared.base_request(read, document, "completions")
    if read.boolean("echo"):
        raise refused("echo", "is not served by this provider")
    if read.get("suffix"):
        raise refused("suffix", "is not served by this provider")
    n = read.integer("n", 1, 1, shared.MAX_CHOICES)
    if read.integer("best_of", n, 1, shared.MAX_CHOICES) != n:
        raise refused("best_of", "is not served by this provider")
    return replace(
        base,
        prompts=_prompts(read.get("prompt")),
        include_usage=shared.include_usage(read),
        stop=read.stops("stop"),
        n=n,
        logprobs=_logprobs(read),
        response_format=shared.response_format(read),
        ignored=read.ignored(),
    )


def _logprobs(read: Reader) -> int | None:
    # Here the number of alternatives alone says whether log probabilities are wanted.
    value = read.get("logprobs")
    if value is None or value is False:
        return None
    return read.integer("logprobs", 0, 0, MAX_LOGPROBS)


def _prompts(value: object) -> tuple[str, ...]:
    prompts = [value] if isinstance(value, str) else value
    if not isinstance(prompts, list) or not prompts or len(prompts) > MAX_PROMPTS:
        raise refused("prompt", f"must be text or a list of at most {MAX_PROMPTS} texts")
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise refused("prompt", "may hold text only, not token ids")
    if not all(prompts):
        raise refused("prompt", "must not be empty")
    return tuple(prompts)
