from __future__ import annotations

import json

import llguidance
import pytest

from darkbloom_provider.engine.parsers.forced import ForcedCallParser, forced_schema
from darkbloom_provider.protocol.output import ContentDelta
from support.answers_read import TOOLS, gathered, tool

NESTED = {
    "type": "function",
    "function": {
        "name": "nested",
        "parameters": {
            "properties": {"place": {"$ref": "#/$defs/Place"}, "next": {"$ref": "#"}},
            "$defs": {"Place": {"type": "object", "properties": {"x": {"type": "integer"}}}},
        },
    },
}


def _read(text: str, name: str | None = None) -> ForcedCallParser:
    parser = ForcedCallParser(TOOLS, name, lambda index: f"call_{index}")
    for character in text:
        assert parser.feed(character) == []
    return parser


def test_the_text_of_a_named_tool_is_its_arguments() -> None:
    read = gathered(_read('{"city": "Rome"}', "weather").finish())
    assert read.calls == (("weather", {"city": "Rome"}),)
    assert forced_schema(TOOLS, "weather")["properties"]["city"] == {"type": "string"}


def test_one_of_several_tools_says_which_it_is() -> None:
    text = '{"name": "write", "arguments": {"path": "a"}}'
    assert gathered(_read(text).finish()).calls == (("write", {"path": "a"}),)


@pytest.mark.parametrize("text", ['{"city": "Ro', '{"name": "write"}', "[1]", "[" * 100_000, ""])
def test_what_the_limit_cut_is_told_as_text(text: str) -> None:
    pieces = _read(text).finish()
    assert "".join(piece.text for piece in pieces if isinstance(piece, ContentDelta)) == text


@pytest.mark.parametrize("tools", [(NESTED,), (*TOOLS, NESTED), (tool("plain"), tool("other"))])
def test_schemas_can_be_enforced_and_their_references_lead_somewhere(
    tools: tuple[object, ...],
) -> None:
    schema = json.dumps(forced_schema(tools, None))  # type: ignore[arg-type]  # tools as they come
    grammar = llguidance.LLMatcher.grammar_from_json_schema(schema)
    assert not llguidance.LLMatcher.validate_grammar(grammar)
