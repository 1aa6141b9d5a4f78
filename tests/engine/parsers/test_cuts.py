"""Properties of every parser, whatever a model writes and wherever it is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.protocol.output import ContentDelta
from support.answers_read import FACTORIES, parser_of, read

_FRAGMENTS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "weather", ',
    '"arguments": {"city": "Köln"}}', '"parameters": {}}', "<function=weather>", "</function>",
    "<parameter=city>", "</parameter>", "\nParis\n", "<minimax:tool_call>", "</minimax:tool_call>",
    '<invoke name="weather">', "</invoke>", '<parameter name="days">', "3", "<|tool_call>",
    "<tool_call|>", "call:weather{", '<|"|>', "city:", "}", "{", "<escape>", "<|channel>thought",
    "<channel|>", "<start_function_call>", "<end_function_call>", "```tool_code", "```",
    "print(weather(city='x'))", "weather(", ")", "<|python_tag|>", "<|channel|>", "analysis",
    "final", "commentary to=functions.weather", "<|message|>", "<|end|>", "<|start|>assistant",
    "<|call|>", "<|return|>", "<|tool_call_start|>", "<|tool_call_end|>", "[", "]", '"', "'", "\\",
    "<", "|", " ", "\n", "\n\n", "so", ";", ",", "😀",
)  # fmt: skip
_texts = st.lists(
    st.sampled_from(_FRAGMENTS) | st.text(max_size=3).filter(str.isprintable), max_size=24
).map("".join)
_families = st.sampled_from(sorted(FACTORIES))

_ANSWERS = {
    "qwen": '<think>\nhm\n</think>\n\nHi.\n<tool_call>\n{"name": "weather", "arguments": '
    '{"city": "a</tool_call>b"}}\n</tool_call>\n<tool_call>\n<function=weather>\n<parameter=days>'
    "\n3\n</parameter>\n</function>\n</tool_call>",
    "minimax": '<think>hm</think>Hi.<minimax:tool_call>\n<invoke name="weather">\n'
    '<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>',
    "gemma4": "<|channel>thought\nhm<channel|>Hi.<|tool_call>call:weather{city:"
    '<|"|>a<tool_call|>{b<|"|>,days:3}<tool_call|>',
    "function_gemma": "Hi.<start_function_call>call:weather{city:<escape>a}b<escape>}"
    "<end_function_call>",
    "gemma3": "Hi.\n```tool_code\nprint(weather(city='a```b', days=3))\n```\nDone.",
    "llama": 'Hi.<|python_tag|>{"name": "weather", "parameters": {"days": 3}}',
    "lfm": "<|tool_call_start|>[weather(days=3), weather(city='x')]<|tool_call_end|>Hi.",
    "harmony": "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary "
    'to=functions.weather <|constrain|>json<|message|>{"days":3}<|call|>',
}


@given(family=_families, text=_texts, tools=st.booleans(), opened=st.booleans(), data=st.data())
def test_the_result_does_not_depend_on_how_the_text_is_cut(
    family: str, text: str, tools: bool, opened: bool, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=10)))
    parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    offered = {} if tools else {"tools": ()}
    whole = read(family, text, thinking_open=opened, **offered)
    assert read(family, parts, thinking_open=opened, **offered) == whole
    assert read(family, list(text), thinking_open=opened, **offered) == whole


@pytest.mark.parametrize("family", sorted(_ANSWERS))
def test_every_single_cut_of_a_usual_answer_gives_the_same(family: str) -> None:
    text = _ANSWERS[family]
    whole = read(family, text)
    assert whole.calls
    for at in range(len(text)):
        assert read(family, [text[:at], text[at:]]) == whole


@given(family=_families, text=st.text().filter(lambda text: not set(text) & set("<`{|")))
def test_a_text_without_markers_comes_through_as_it_is(family: str, text: str) -> None:
    assert read(family, text).content == text


@given(family=_families, text=_texts)
def test_without_tools_nothing_is_a_call(family: str, text: str) -> None:
    assert read(family, text, tools=()).calls == ()


@pytest.mark.parametrize("family", sorted(set(FACTORIES) - {"harmony"}))
def test_words_are_given_out_as_they_come(family: str) -> None:
    parser = parser_of(family)
    assert parser.feed("Hello") == [ContentDelta("Hello")]
    assert parser.feed(" there") == [ContentDelta(" there")]


@pytest.mark.parametrize("family", sorted(_ANSWERS))
def test_a_long_answer_that_never_closes_what_it_opens_is_read_in_reasonable_time(
    family: str,
) -> None:
    text = _ANSWERS[family]
    assert read(family, [text[: len(text) * 2 // 3]] * 200 + ["x"] * 2000).pieces
