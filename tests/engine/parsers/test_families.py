"""What each family's markers mean."""

from __future__ import annotations

from typing import Any

import pytest
from mlx_lm.tool_parsers import (
    function_gemma,
    gemma4,
    json_tools,
    minimax_m2,
    pythonic,
    qwen3_coder,
)

from support.answers_read import TOOLS, read, tool

WEATHER = ("weather", {"city": "Köln", "days": 3})


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("qwen", '<tool_call>{"name":"weather","arguments":{"city":"Köln","days":3}}</tool_call>'),
        (
            "qwen",
            (
                '<tool_call>{"name":"weather","arguments":"{\\"city\\":\\"Köln\\",\\"days\\":3}"}'
                "</tool_call>"
            ),
        ),
        (
            "qwen",
            (
                "<tool_call>\n<function=weather>\n<parameter=city>\nKöln\n</parameter>\n"
                "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
            ),
        ),
        (
            "minimax",
            (
                '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Köln'
                '</parameter>\n<parameter name="days">3</parameter>\n</invoke>\n'
                "</minimax:tool_call>"
            ),
        ),
        ("gemma4", '<|tool_call>call:weather{city:<|"|>Köln<|"|>,days:3}<tool_call|>'),
        (
            "function_gemma",
            (
                "<start_function_call>call:weather{city:<escape>Köln<escape>,days:3}"
                "<end_function_call>"
            ),
        ),
        ("gemma3", "```tool_code\nprint(default_api.weather(city='Köln', days=3))\n```"),
        ("gemma3", '```tool_code\nweather(city="Köln", days=3)\n```'),
        ("llama", '{"name": "weather", "parameters": {"city": "Köln", "days": 3}}'),
        ("llama", '<|python_tag|>{"name":"weather","parameters":{"city":"K\\u00f6ln","days":3}}'),
        (
            "llama",
            (
                '{"type":"function","function":{"name":"weather","parameters":'
                '{"city":"Köln","days":3}}}'
            ),
        ),
        ("lfm", "<|tool_call_start|>[weather(city='Köln', days=3)]<|tool_call_end|>"),
        (
            "harmony",
            (
                "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
                '{"city":"Köln","days":3}<|call|>'
            ),
        ),
        (
            "harmony",
            (
                "<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>"
                '{"city":"Köln","days":3}'
            ),
        ),
    ],
)
def test_a_call_is_read(family: str, text: str) -> None:
    result = read(family, text)
    assert result.calls == (WEATHER,)
    assert (result.content, result.reasoning) == ("", "")


@pytest.mark.parametrize(
    ("family", "opens", "closes"),
    [
        ("qwen", "<think>\n", "\n</think>\n\n"),
        ("minimax", "<think>", "</think>"),
        ("deepseek", "<think>\n", "\n</think>\n"),
        ("gemma4", "<|channel>thought\n", "<channel|>"),
        (
            "harmony",
            "<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
    ],
)
def test_thoughts_are_kept_apart_from_the_answer(family: str, opens: str, closes: str) -> None:
    result = read(family, f"{opens}Let me see.{closes}It rains.")
    assert (result.reasoning, result.content) == ("Let me see.", "It rains.")


def test_thoughts_that_the_prompt_opened_are_thoughts() -> None:
    result = read("deepseek", "hm\n</think>\n\nYes.", thinking_open=True)
    assert (result.reasoning, result.content) == ("hm", "Yes.")


def test_thoughts_that_never_end_stay_thoughts() -> None:
    result = read("qwen", "<think>and then </thi")
    assert (result.reasoning, result.content) == ("and then </thi", "")


def test_an_answer_may_speak_of_the_markers_of_thoughts() -> None:
    text = "Models write <think> and </think> around thoughts."
    assert read("qwen", text).content == text


def test_a_call_considered_in_thoughts_is_not_made() -> None:
    result = read("qwen", '<think><tool_call>{"name":"weather"}</tool_call></think>No.')
    assert result.calls == ()
    assert result.content == "No."


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("qwen", 'Well, <tool_call>{"name": "weather", "arguments": {</tool_call> so.'),
        ("qwen", "<tool_call>no call</tool_call>"),
        ("qwen", '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
        ("qwen", '<tool_call>{"name": "weather", "arguments": {"days": NaN}}</tool_call>'),
        ("qwen", '<tool_call>{"name": 7, "arguments": {}}</tool_call>'),
        ("qwen", '<tool_call>{"name": "weather", "arguments": {"city": "K'),
        ("qwen", "<tool_call>" + "[" * 5000 + "</tool_call>"),
        ("qwen", "<tool_call><function=weather><parameter=city>Rome</parameter></tool_call>"),
        ("qwen", "<tool_call><function=weather><parameter=city>Rome</function></tool_call>"),
        ("minimax", "<minimax:tool_call>nothing</minimax:tool_call>"),
        ("gemma4", "<|tool_call>call:weather{city:<tool_call|>"),
        ("gemma4", "<|tool_call>call:weather{a:" + "{a:" * 5000 + "<tool_call|>"),
        ("gemma3", "```tool_code\nimport os\nos.remove('x')\n```"),
        ("gemma3", "```tool_code\nremove(path='x')\n```"),
        ("gemma3", "```tool_code\nprint(print(print(weather())))\n```"),
        ("gemma3", "```tool_code\nweather('Rome')\n```"),
        ("llama", '{"name": "Ada", "born": 1815}'),
        ("llama", '{"answer": 42}'),
        ("llama", '{"name": "Ada", "parameters": {}} is no call'),
        ("llama", "<|python_tag|>print(1)"),
        ("harmony", "<|channel|>commentary to=functions.weather<|message|>{no<|call|>"),
    ],
)
def test_what_is_no_call_is_content_and_nothing_is_lost(family: str, text: str) -> None:
    result = read(family, text)
    assert result.calls == ()
    assert result.content == text


def test_a_good_call_after_a_broken_one_is_still_made() -> None:
    good = '<tool_call>{"name": "weather", "arguments": {"days": 1}}</tool_call>'
    broken = '<tool_call>{"name": "weather}</tool_call>'
    result = read("qwen", broken + good)
    assert result.content == broken
    assert result.calls == (("weather", {"days": 1}),)


def test_a_closing_marker_within_an_argument_closes_nothing() -> None:
    text = '<tool_call>{"name":"write","arguments":{"text":"a \\"</tool_call>\\" b"}}</tool_call>'
    assert read("qwen", text).calls == (("write", {"text": 'a "</tool_call>" b'}),)
    tags = (
        "<tool_call><function=write><parameter=text>\n</parameter></tool_call>\n</parameter>"
        "</function></tool_call>"
    )
    assert read("qwen", tags).content == tags  # Where both markers are quoted, it is not guessed.


def test_white_space_between_parts_of_an_answer_stays_and_at_markers_goes() -> None:
    call = '<tool_call>{"name": "weather"}</tool_call>'
    assert read("qwen", f"\n{call}\n{call}\n").content == ""
    assert read("qwen", f"I look.\n{call}\nThere.\n").content == "I look.\n\nThere.\n"


def test_several_calls_are_numbered_in_their_order() -> None:
    calls = (
        '<minimax:tool_call><invoke name="weather"><parameter name="days">1</parameter></invoke>'
        '<invoke name="write"></invoke></minimax:tool_call>'
    )
    assert read("minimax", calls).calls == (("weather", {"days": 1}), ("write", {}))
    llama = '{"name":"weather","parameters":{"days":1}}; {"name":"write","parameters":{}}'
    assert read("llama", llama).calls == (("weather", {"days": 1}), ("write", {}))


def test_a_preamble_to_the_user_is_content() -> None:
    text = (
        "<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant<|channel|>"
        'commentary to=functions.weather<|message|>{"days":1}<|call|>'
    )
    result = read("harmony", text)
    assert (result.content, result.calls) == ("I will look.", (("weather", {"days": 1}),))


def test_a_header_that_was_cut_short_says_nothing() -> None:
    assert read("harmony", "<|channel|>analysis<|message|>hm<|end|><|start|>assis").content == ""


# ---------------------------------------------------------------- the same as mlx-lm

_TYPED = (
    tool(
        "f",
        text={"type": "string"},
        whole={"type": "integer"},
        real={"type": "number"},
        yes={"type": "boolean"},
        many={"type": "array", "items": {"type": "integer"}},
        deep={"type": "object"},
        loose={"description": "anything"},
        maybe={"anyOf": [{"type": "integer"}, {"type": "null"}]},
    ),
)
_VALUES = {
    "text": ["Rome", "12", "true", "a\nb", '{"a": 1}', "", "é<b>"],
    "whole": ["12", "-3", "12.0"],
    "real": ["1.5", "2.0", "-7"],
    "yes": ["true", "False"],
    "many": ["[1, 2]", "[]"],
    "deep": ['{"a": {"b": null}}', "{'a': True}"],
    "loose": ['{"a": 1}', "[1]", "7", "x"],
    "unknown": ["7", "x"],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in _VALUES.items() for v in vs])
def test_qwens_tags_give_the_arguments_that_mlx_lm_gives(key: str, value: str) -> None:
    body = f"\n<function=f>\n<parameter={key}>\n{value}\n</parameter>\n</function>\n"
    theirs = qwen3_coder.parse_tool_call(body.strip(), list(_TYPED))
    ours = read("qwen", f"<tool_call>{body}</tool_call>", tools=_TYPED)
    assert ours.calls == ((theirs["name"], theirs["arguments"]),)


@pytest.mark.parametrize(
    ("key", "value"),
    [(k, v) for k, vs in _VALUES.items() if k not in {"loose", "whole"} for v in vs]
    + [("whole", "12"), ("maybe", "null"), ("maybe", "5"), ("yes", "on"), ("text", "null")],
)
def test_minimaxs_tags_give_the_arguments_that_mlx_lm_gives(key: str, value: str) -> None:
    body = f'\n<invoke name="f">\n<parameter name="{key}">{value}</parameter>\n</invoke>\n'
    theirs: Any = minimax_m2.parse_tool_call(body, list(_TYPED))
    ours = read("minimax", f"<minimax:tool_call>{body}</minimax:tool_call>", tools=_TYPED)
    assert ours.calls == ((theirs["name"], theirs["arguments"]),)


@pytest.mark.parametrize(
    "body",
    [
        "call:weather{}",
        'call:weather{city:<|"|>a, {b} "c"<|"|>,days:-3}',
        'call:weather{places:[<|"|>x<|"|>,{n:1.5,on:true,off:null}]}',
        'call:weather{days:1}call:write{text:<|"|>\n<|"|>}',
    ],
)
def test_gemmas_calls_give_the_arguments_that_mlx_lm_gives(body: str) -> None:
    theirs: Any = gemma4.parse_tool_call(body)
    expected = theirs if isinstance(theirs, list) else [theirs]
    ours = read("gemma4", f"<|tool_call>{body}<tool_call|>")
    assert ours.calls == tuple((call["name"], call["arguments"]) for call in expected)


@pytest.mark.parametrize(
    "body",
    ["call:weather{days:3,exact:true,city:<escape>a, b<escape>}", "call:weather{city:Paris}"],
)
def test_function_gemmas_calls_give_the_arguments_that_mlx_lm_gives(body: str) -> None:
    theirs = function_gemma.parse_tool_call(body)
    ours = read("function_gemma", f"<start_function_call>{body}<end_function_call>")
    assert ours.calls == ((theirs["name"], theirs["arguments"]),)


@pytest.mark.parametrize(
    "body",
    [
        "[weather(city='it\\'s', days=3)]",
        '[weather(places=[{"a": true}], days=-1.5)]',
        '[weather(), write(path="a\\n\\u00e9", text=None)]',
    ],
)
def test_pythonic_calls_give_the_arguments_that_mlx_lm_gives(body: str) -> None:
    theirs: Any = pythonic.parse_tool_call(body)
    expected = theirs if isinstance(theirs, list) else [theirs]
    ours = read("lfm", f"<|tool_call_start|>{body}<|tool_call_end|>")
    assert ours.calls == tuple((call["name"], call["arguments"]) for call in expected)


def test_hermess_json_gives_the_arguments_that_mlx_lm_gives() -> None:
    body = '\n{"name": "weather", "arguments": {"city": "\\ud83d\\ude00", "places": [1.0, null]}}\n'
    theirs = json_tools.parse_tool_call(body)
    ours = read("qwen", f"<tool_call>{body}</tool_call>", tools=TOOLS)
    assert ours.calls == ((theirs["name"], theirs["arguments"]),)
