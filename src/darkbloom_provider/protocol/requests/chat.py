"""Chat completions, and Responses requests as the network rewrites them into chat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from darkbloom_provider.protocol.requests import conversation, shared, tools
from darkbloom_provider.protocol.requests.document import Reader, refused
from darkbloom_provider.protocol.requests.request import TextRequest

MAX_TOP_LOGPROBS: Final = 20


def chat(document: Mapping[str, Any]) -> TextRequest:
    """A chat request from its JSON object.

    Raises:
        InvalidRequestError: With the parameter's name.
    """
    read = Reader(document)
    base = shared.base_request(read, document, "chat")
    offered = tools.openai_tools(read)
    choice = tools.openai_choice(read, offered)
    # The network leaves Responses' instructions where they are.
    instructions = read.get("instructions")
    if not isinstance(instructions, str | None):
        raise refused("instructions", "must be text")
    return replace(
        base,
        messages=conversation.with_instructions(
            conversation.openai_messages(read.get("messages")), instructions or ""
        ),
        include_usage=shared.include_usage(read),
        stop=read.stops("stop"),
        n=read.integer("n", 1, 1, shared.MAX_CHOICES),
        logprobs=_logprobs(read),
        tools=() if choice.mode == "none" else offered,
        tool_choice=choice,
        parallel_tool_calls=read.boolean("parallel_tool_calls", default=True),
        response_format=shared.response_format(read),
        template_options=shared.template_options(read),
        ignored=read.ignored(),
    )


def _logprobs(read: Reader) -> int | None:
    wanted = read.boolean("logprobs")
    top = read.integer("top_logprobs", 0, 0, MAX_TOP_LOGPROBS)
    if top and not wanted:
        raise refused("top_logprobs", "needs logprobs to be true")
    return top if wanted else None
