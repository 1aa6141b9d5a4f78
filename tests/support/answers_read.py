"""What a parser made of a text, in a form that tests can compare."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from darkbloom_provider.engine.parsers.choice import ParserFactory, choose
from darkbloom_provider.engine.parsers.parser import Parser
from darkbloom_provider.protocol.output import (
    ContentDelta,
    Piece,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallEnded,
    ToolCallStarted,
    coalesced,
)

FACTORIES: dict[str, ParserFactory] = {
    "plain": choose("", lambda token: False),
    "qwen": choose("<tool_call> <think> </think>", lambda token: False),
    "minimax": choose("<minimax:tool_call> <think> </think>", lambda token: False),
    "gemma4": choose("<|tool_call>", {"<|channel>", "<channel|>"}.__contains__),
    "function_gemma": choose("<start_function_call>", lambda token: False),
    "gemma3": choose("", {"<start_of_turn>"}.__contains__),
    "llama": choose("<|python_tag|>", lambda token: False),
    "deepseek": choose("", {"<think>", "</think>"}.__contains__),
    "lfm": choose("<|tool_call_start|>", lambda token: False),
    "harmony": choose("", {"<|channel|>", "<|message|>", "<|start|>"}.__contains__),
}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = (
    tool(
        "weather",
        city={"type": "string"},
        days={"type": "integer"},
        exact={"type": "boolean"},
        places={"type": "array"},
    ),
    tool("write", path={"type": "string"}, text={"type": "string"}),
)


@dataclass(frozen=True)
class Read:
    content: str
    reasoning: str
    calls: tuple[tuple[str, Any], ...]
    pieces: tuple[Piece, ...]


def parser_of(
    family: str, *, tools: Sequence[dict[str, Any]] = TOOLS, thinking_open: bool = False
) -> Parser:
    return FACTORIES[family].parser(
        call_id=lambda index: f"call_{index}", tools=tools, thinking_open=thinking_open
    )


def read(
    family: str,
    parts: str | Iterable[str],
    *,
    tools: Sequence[dict[str, Any]] = TOOLS,
    thinking_open: bool = False,
) -> Read:
    parser = parser_of(family, tools=tools, thinking_open=thinking_open)
    pieces: list[Piece] = []
    for part in [parts] if isinstance(parts, str) else parts:
        pieces += parser.feed(part)
    pieces += parser.finish()
    return gathered(pieces)


def gathered(pieces: Iterable[Piece]) -> Read:
    whole = coalesced(pieces)
    content, reasoning = "", ""
    names: list[str] = []
    arguments: list[str] = []
    for piece in whole:
        match piece:
            case ContentDelta(text):
                content += text
            case ReasoningDelta(text):
                reasoning += text
            case ToolCallStarted(index, _, name):
                assert index == len(names)
                names.append(name)
                arguments.append("")
            case ToolCallArguments(index, fragment):
                assert index == len(names) - 1
                arguments[index] += fragment
            case ToolCallEnded(index):
                assert index == len(names) - 1
    values = [json.loads(text) for text in arguments]
    assert all(isinstance(value, dict) for value in values)
    return Read(content, reasoning, tuple(zip(names, values, strict=True)), tuple(whole))
