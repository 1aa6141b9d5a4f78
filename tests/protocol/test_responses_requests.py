"""Responses requests as providers get to read them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.protocol.requests.document import InvalidRequestError
from darkbloom_provider.protocol.requests.read import request_of
from darkbloom_provider.protocol.requests.responses import responses_as_chat


def chat(**document: Any) -> dict[str, Any]:
    return responses_as_chat({"model": "m"} | document)


def messages(*items: Any) -> Any:
    return chat(input=list(items))["messages"]


def test_the_networks_own_example_holds() -> None:
    given = {
        "model": "M",
        "input": "q",
        "instructions": "ins",
        "tools": [{"type": "function", "name": "f", "parameters": {}}],
        "max_output_tokens": 77,
        "text": {"format": {"type": "json_object"}},
    }
    assert responses_as_chat(given) == {
        "instructions": "ins",
        "max_tokens": 77,
        "messages": [{"content": "q", "role": "user"}],
        "model": "M",
        "response_format": {"type": "json_object"},
        "tools": [{"function": {"name": "f", "parameters": {}}, "type": "function"}],
    }


def test_items_become_messages() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":1}'}
    assert messages(
        {"role": "developer", "content": "rule"},
        {"type": "message", "content": ["a", {"type": "input_text", "text": "b"}]},
        {"role": "user", "content": [{"type": "input_image"}, {"type": "input_file"}]},
        {"type": "reasoning", "summary": []},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        call,
        {"type": "function_call_output", "call_id": "c", "output": "22"},
    ) == [
        {"role": "system", "content": "rule"},
        {"role": "user", "content": "a\nb"},
        {"role": "user", "content": "[input_image omitted]\n[input_file omitted]"},
        {"role": "assistant", "content": "no"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "c",
                    "type": "function",
                    "function": {"name": "f", "arguments": '{"a":1}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": "22"},
    ]


def test_the_rest_is_brought_into_a_chats_form() -> None:
    form = {"type": "json_schema", "name": "trip", "schema": {"type": "object"}, "strict": True}
    nested = {"type": "function", "function": {"name": "g"}}
    read = chat(
        input="hi",
        text={"format": form},
        tools=[{"type": "function", "name": "f", "strict": True}, nested],
        tool_choice={"type": "function", "name": "f"},
        include=["message.output_text.logprobs"],
        metadata={"a": "b"},
        endpoint="/v1/completions",
    )
    assert read["response_format"] == {"type": "json_schema", "json_schema": form}
    assert read["tools"] == [{"type": "function", "function": {"name": "f"}}, nested]
    assert read["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert read["logprobs"] is True
    assert read["metadata"] == {"a": "b"}
    assert not {"input", "endpoint", "text"} & set(read)
    assert request_of(read).response_format is not None


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["hi"]}, "input"),
        ({"input": [{}]}, "input"),
        ({"input": [{"type": "computer_call"}]}, "input"),
        ({"input": [{"type": "reasoning"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": {}}, "tools"),
        ({"text": "json"}, "text"),
        ({"text": {"format": {"type": "grammar"}}}, "text"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"n": 2}, "n"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat(**{"input": "hi"} | changes)
    assert caught.value.param == param
    assert caught.value.what.startswith(param)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "function", "name", "format"]),
            inner,
            max_size=3,
        )
    ),
)


@given(
    st.dictionaries(
        st.sampled_from(["input", "tools", "tool_choice", "text", "include", "n", "background"]),
        JSON,
    )
)
def test_any_json_is_read_or_refused(document: dict[str, Any]) -> None:
    try:
        assert chat(**document)["messages"]
    except InvalidRequestError as error:
        assert error.param  # noqa: PT017 - either is fine
