"""What the dialects have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from darkbloom_provider.protocol.requests.document import (
    InvalidRequestError,
    Reader,
    model_of,
    refused,
)
from darkbloom_provider.protocol.requests.request import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    Dialect,
    ResponseFormat,
    TextRequest,
)

MAX_CHOICES: Final = 128

_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    # Where a feature is not served, any value that would change the answer is refused.
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("auto", "none", {"type": "auto"}, {"type": "none"}),
    "response_format": ({"type": "text"},),
    "ignore_eos": (False,),
    # Never served: the older form of tools, conversations kept by a server, sound.
    "functions": ([],),
    "previous_response_id": ("",),
    "modalities": (["text"],),
}
_TEMPLATE_OPTIONS: Final = frozenset(
    # Only these: the rest of what a renderer takes would let a consumer bring a program along.
    {"enable_thinking", "thinking", "reasoning_effort", "preserve_thinking", "clear_thinking"}
)
_EFFORTS: Final = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
"""Templates know three efforts."""


def refuse_unserved(document: Mapping[str, Any], served: frozenset[str]) -> None:
    """Refuse by name what would change the answer and is not served."""
    for name, neutral in _NEUTRAL.items():
        value = document.get(name)
        if value is not None and name not in served and value not in neutral:
            raise InvalidRequestError(f"{name} is not served by this provider", param=name)


def base_request(read: Reader, document: Mapping[str, Any], dialect: Dialect) -> TextRequest:
    """A request with everything that means the same in every dialect."""
    read.know("model", "endpoint", *_NEUTRAL)
    return TextRequest(
        dialect=dialect,
        model=model_of(document),
        stream=read.boolean("stream"),
        max_tokens=read.limit() or DEFAULT_MAX_TOKENS,
        temperature=read.number("temperature", DEFAULT_TEMPERATURE, 0, 2),
        top_p=read.number("top_p", DEFAULT_TOP_P, 0, 1),
        top_k=read.integer("top_k", 0, 0, 2**31 - 1),
        min_p=read.number("min_p", 0.0, 0, 1),
        repetition_penalty=read.number("repetition_penalty", 1.0, 0.01, 10),
        presence_penalty=read.number("presence_penalty", 0.0, -2, 2),
        frequency_penalty=read.number("frequency_penalty", 0.0, -2, 2),
        logit_bias=read.logit_bias(),
        seed=read.seed(),
        ignore_eos=read.boolean("ignore_eos"),
        tenant=_tenant(read),
    )


def _tenant(read: Reader) -> str | None:
    metadata = read.get("metadata")
    told = (
        read.get("safety_identifier"),
        read.get("user"),
        metadata.get("user_id") if isinstance(metadata, dict) else None,
    )
    return next((name for name in told if isinstance(name, str) and name), None)


def include_usage(read: Reader) -> bool:
    """Whether a stream ends with its usage."""
    options = read.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def template_options(read: Reader) -> dict[str, object]:
    """Variables for the chat template; the most specific spelling counts."""
    options: dict[str, object] = {}
    reasoning = read.object("reasoning") or {}
    for name, effort in (
        ("reasoning", reasoning.get("effort")),
        ("reasoning_effort", read.get("reasoning_effort")),
    ):
        if effort == "none":
            options["enable_thinking"] = False
        elif effort is not None:
            if not isinstance(effort, str) or effort not in _EFFORTS:
                raise refused(name, f"must be one of none, {', '.join(_EFFORTS)}")
            options["reasoning_effort"] = _EFFORTS[effort]
    if read.get("enable_thinking") is not None:
        options["enable_thinking"] = read.boolean("enable_thinking")
    name = "chat_template_kwargs"
    for key, value in (read.object(name) or {}).items():
        if key in _TEMPLATE_OPTIONS:
            if not isinstance(value, bool | int | str):
                raise refused(name, "may hold only truth values, numbers and words")
            options[key] = value
    return options


def response_format(read: Reader) -> ResponseFormat | None:
    """The form of the answer. `json_schema` may hold more than the schema, as Responses has it."""
    name = "response_format"
    value = read.object(name)
    kind = None if value is None else value.get("type")
    if value is None or kind == "text":
        return None
    if kind == "json_object":
        return ResponseFormat()
    if kind != "json_schema":
        raise refused(name, "must be of type text, json_object or json_schema")
    wrapper = value.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else value.get("schema")
    if not isinstance(schema, dict):
        raise refused(name, "holds no schema")
    return ResponseFormat(schema)
