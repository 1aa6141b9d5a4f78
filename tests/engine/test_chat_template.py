"""Templates render as they do in transformers, which they are written for."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from transformers.utils.chat_template_utils import render_jinja_template

from darkbloom_provider.engine.chat_template import compiled, render

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Wetter <heute> & morgen",
            "parameters": {"type": "object", "properties": {"stadt": {"type": "string"}}},
        },
    }
]
CALL = {"function": {"name": "weather", "arguments": {"stadt": "Köln", "tage": 2}}}
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "  Be brief.\n"},
    {"role": "user", "content": 'What is it "like" in Köln?'},
    {"role": "assistant", "content": "", "reasoning_content": "look\nit up", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "rain", "tool_call_id": "1"},
    {"role": "assistant", "content": "Rain.", "tool_calls": None, "thinking": "short"},
    {"role": "user", "content": "And tomorrow?", "name": None},
]


TEMPLATES = {
    file.stem: file.read_text() for file in Path(__file__).with_name("chat_templates").glob("*")
}


def theirs(source: str, messages: Any, tools: Any, *, add: bool, **variables: Any) -> str:
    both: Any = render_jinja_template(
        [[{k: v for k, v in message.items() if v is not None} for message in messages]],
        tools=tools,
        chat_template=source,
        add_generation_prompt=add,
        **variables,
    )
    return str(both[0][0])


def ours(source: str, messages: Any, tools: Any, *, add: bool, **variables: Any) -> str:
    return render(compiled(source), messages, tools, add_generation_prompt=add, variables=variables)


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no-tools", "tools"])
@pytest.mark.parametrize("family", ["chatml", "gemma", "llama", "harmony"])
@pytest.mark.parametrize(
    "variables", [{}, {"enable_thinking": False, "date_string": "1 May", "none_name": None}]
)
def test_a_conversation_reads_as_in_transformers(
    family: str, tools: Any, add: bool, variables: dict[str, Any]
) -> None:
    source = TEMPLATES[family]
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    expected = theirs(source, TALK, tools, add=add, **tokens, **variables)
    assert ours(source, TALK, tools, add=add, **tokens, **variables) == expected
    assert expected.strip()


def test_a_template_may_write_todays_date() -> None:
    noon = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
    template = compiled("{{ strftime_now('%d %b %Y') }}", now=lambda: noon)
    assert render(template, [], None, add_generation_prompt=True, variables={}) == "01 Mar 2026"


def test_a_template_may_refuse_a_conversation() -> None:
    with pytest.raises(TemplateError, match="no system"):
        ours("{{ raise_exception('no system') }}", TALK, None, add=True)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__ }}{{ cycler.__init__.__globals__ }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{% set ns = namespace(__class__=1) %}",
        "{{ dict.__class__.__base__ }}",
    ],
)
def test_a_template_does_not_get_out_of_its_sandbox(source: str) -> None:
    for rendering in (theirs, ours):
        with pytest.raises(SecurityError):
            rendering(source, TALK, None, add=True)


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError, match="JSON"):
        ours("{{ thing }}", TALK, None, add=True, thing=object())


def test_a_template_changes_nothing_of_the_request() -> None:
    class Frozen(dict[str, Any]):
        def __setitem__(self, name: str, value: Any) -> None:
            raise AssertionError(name)

    message: Mapping[str, Any] = Frozen(role="user", content="x", reasoning="y", parts=(1, [2]))
    shown = ours("{{ messages }}", [message], None, add=True)
    assert shown == theirs("{{ messages }}", [message], None, add=True)
