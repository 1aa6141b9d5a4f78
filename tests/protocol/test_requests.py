"""Requests of the three dialects as they reach a provider."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.protocol.requests.document import InvalidRequestError
from darkbloom_provider.protocol.requests.read import read_request, request_of
from darkbloom_provider.protocol.requests.request import (
    ALL_FEATURES,
    CHAT_FEATURES,
    ResponseFormat,
    TextRequest,
    ToolChoice,
)

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
COMPLETION = {"model": "m", "prompt": "Once", "endpoint": "/v1/completions"}
MESSAGE = {
    "model": "m",
    "endpoint": "/v1/messages",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "hello"}],
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}


def chat(**changes: Any) -> TextRequest:
    return request_of(CHAT | changes)


def completion(**changes: Any) -> TextRequest:
    return request_of(COMPLETION | changes)


def message(**changes: Any) -> TextRequest:
    return request_of(MESSAGE | changes)


# ---------------------------------------------------------------- chat


def test_every_parameter_of_a_chat_is_read() -> None:
    request = chat(
        n=2.0,
        logprobs=True,
        top_logprobs=3,
        presence_penalty=-2,
        frequency_penalty=0.5,
        logit_bias={"50": -100, "7": 1.5},
        tools=[TOOL],
        tool_choice="auto",
        parallel_tool_calls=False,
        ignore_eos=True,
        stream=True,
        stream_options={"include_usage": True},
        stop="END",
    )
    assert (request.n, request.choices, request.logprobs) == (2, 2, 3)
    assert (request.presence_penalty, request.frequency_penalty) == (-2.0, 0.5)
    assert request.logit_bias == ((7, 1.5), (50, -100.0))
    assert request.tools == (TOOL,)
    assert request.tool_choice == ToolChoice("auto")
    assert not request.parallel_tool_calls
    assert request.ignore_eos
    assert request.include_usage
    assert request.stop == ("END",)
    assert request.ignored == ()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("required", ToolChoice("required")),
        ({"type": "function", "function": {"name": "f"}}, ToolChoice("required", "f")),
        ({"type": "function", "name": "f"}, ToolChoice("required", "f")),
    ],
)
def test_a_call_can_be_asked_for(given: object, expected: ToolChoice) -> None:
    assert chat(tools=[TOOL], tool_choice=given).tool_choice == expected


def test_where_calls_are_forbidden_no_tools_are_offered() -> None:
    request = chat(tools=[TOOL], tool_choice="none")
    assert request.tools == ()


def test_a_schema_is_found_in_chats_spelling_and_in_that_of_responses() -> None:
    ours = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    theirs = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
    rewritten = {"type": "json_schema", "json_schema": theirs}
    assert chat(response_format=ours).response_format == ResponseFormat(SCHEMA)
    assert chat(response_format=rewritten).response_format == ResponseFormat(SCHEMA)
    assert chat(response_format={"type": "json_object"}).response_format == ResponseFormat()
    assert chat(response_format={"type": "text"}).response_format is None


def test_a_responses_request_as_the_network_rewrites_it_is_a_chat() -> None:
    body = (
        '{"instructions":"ins","max_tokens":77,"messages":[{"content":"q","role":"user"}],'
        '"model":"M","response_format":{"type":"json_object"},'
        '"tools":[{"function":{"name":"f","parameters":{}},"type":"function"}]}'
    )
    request = read_request(body.encode())
    assert request.messages == (
        {"role": "system", "content": "ins"},
        {"role": "user", "content": "q"},
    )
    assert request.max_tokens == 77
    assert request.response_format == ResponseFormat()
    assert request.tools[0]["function"]["parameters"] == {"type": "object", "properties": {}}


def test_instructions_join_a_system_message_that_is_there() -> None:
    messages = [{"role": "developer", "content": "be kind"}, {"role": "user", "content": "q"}]
    request = chat(messages=messages, instructions="be brief")
    assert request.messages[0] == {"role": "system", "content": "be brief\n\nbe kind"}
    assert len(request.messages) == 2


def test_calls_and_their_results_stay_in_the_conversation() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "7"}]},
    ]
    assert chat(messages=messages).messages[1:] == (
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "7", "tool_call_id": "c1", "name": "f"},
    )


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"reasoning_effort": "minimal"}, {"reasoning_effort": "low"}),
        ({"reasoning": {"effort": "high", "summary": "auto"}}, {"reasoning_effort": "high"}),
        ({"reasoning_effort": "none"}, {"enable_thinking": False}),
        ({"enable_thinking": True, "reasoning_effort": "none"}, {"enable_thinking": True}),
        (
            {"chat_template_kwargs": {"enable_thinking": False}, "enable_thinking": True},
            {"enable_thinking": False},
        ),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}", "tools": [], "tokenize": 0}}, {}),
    ],
)
def test_only_harmless_variables_reach_the_template(
    changes: dict[str, Any], options: dict[str, Any]
) -> None:
    assert chat(**changes).template_options == options


def test_unknown_parameters_are_ignored_and_told_by_plain_names() -> None:
    request = chat(store=False, made_up=1, **{"my secret prompt!": 1, "x" * 99: 2})
    assert request.ignored == ("?", "made_up", "store")


# ---------------------------------------------------------------- completions


def test_a_completion_takes_texts_as_they_stand() -> None:
    request = completion(prompt=["a", "b"], n=3, logprobs=0, stop=["\n"], stream=True)
    assert request.dialect == "completions"
    assert request.prompts == ("a", "b")
    assert (request.messages, request.choices) == ((), 6)
    assert request.logprobs == 0
    assert completion(logprobs=5).logprobs == 5
    assert completion(echo=False, suffix=None, best_of=1).logprobs is None


# ---------------------------------------------------------------- Anthropic's messages


def test_a_messages_request_becomes_a_chat() -> None:
    request = message(
        system=[{"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "7"},
                    {"type": "text", "text": "and?"},
                ],
            },
        ],
        tools=[{"name": "f", "description": "d", "input_schema": SCHEMA}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        stop_sequences=["END"],
        top_k=5,
        metadata={"user_id": "u"},
    )
    call = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert request.messages == (
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "q"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "hm",
            "tool_calls": [call],
        },
        {"role": "tool", "content": "7", "tool_call_id": "t1", "name": "f"},
        {"role": "user", "content": "and?"},
    )
    assert request.tools == (TOOL,)
    assert request.tool_choice == ToolChoice("required")
    assert not request.parallel_tool_calls
    assert (request.stop, request.top_k, request.max_tokens) == (("END",), 5, 9)
    assert (request.ignored, request.tenant) == ((), "u")


def test_a_model_thinks_for_anthropics_consumers_only_if_asked_to() -> None:
    assert message().template_options == {"enable_thinking": False}
    asked = message(thinking={"type": "enabled", "budget_tokens": 1024})
    assert asked.template_options == {"enable_thinking": True}


def test_an_output_format_is_a_response_format() -> None:
    form = {"type": "json_schema", "schema": SCHEMA}
    assert message(output_config={"format": form}).response_format == ResponseFormat(SCHEMA)
    assert message(output_format=form).response_format == ResponseFormat(SCHEMA)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("base", "changes", "param"),
    [
        (CHAT, {"n": 0}, "n"),
        (CHAT, {"n": 129}, "n"),
        (CHAT, {"n": True}, "n"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"logprobs": 1}, "logprobs"),
        (CHAT, {"presence_penalty": 2.1}, "presence_penalty"),
        (CHAT, {"frequency_penalty": "x"}, "frequency_penalty"),
        (CHAT, {"logit_bias": {"a": 1}}, "logit_bias"),
        (CHAT, {"logit_bias": {"1": 101}}, "logit_bias"),
        (CHAT, {"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        (CHAT, {"logit_bias": [1]}, "logit_bias"),
        (CHAT, {"tools": {}}, "tools"),
        (CHAT, {"tools": [{"type": "web_search"}]}, "tools"),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        (CHAT, {"tools": [TOOL, TOOL]}, "tools"),
        (CHAT, {"tool_choice": "required"}, "tool_choice"),
        (CHAT, {"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        (CHAT, {"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        (CHAT, {"response_format": {"type": "xml"}}, "response_format"),
        (CHAT, {"response_format": {"type": "json_schema"}}, "response_format"),
        (CHAT, {"response_format": "json"}, "response_format"),
        (CHAT, {"reasoning_effort": "much"}, "reasoning_effort"),
        (CHAT, {"reasoning": {"effort": 3}}, "reasoning"),
        (CHAT, {"chat_template_kwargs": {"enable_thinking": {}}}, "chat_template_kwargs"),
        (CHAT, {"enable_thinking": "yes"}, "enable_thinking"),
        (CHAT, {"instructions": ["x"]}, "instructions"),
        (CHAT, {"previous_response_id": "resp_1"}, "previous_response_id"),
        (CHAT, {"functions": [{}]}, "functions"),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages"),
        (
            CHAT,
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "f", "arguments": "[1"}}],
                    }
                ]
            },
            "messages",
        ),
        (COMPLETION, {"prompt": None}, "prompt"),
        (COMPLETION, {"prompt": []}, "prompt"),
        (COMPLETION, {"prompt": [1, 2]}, "prompt"),
        (COMPLETION, {"prompt": [""]}, "prompt"),
        (COMPLETION, {"echo": True}, "echo"),
        (COMPLETION, {"suffix": "x"}, "suffix"),
        (COMPLETION, {"best_of": 2}, "best_of"),
        (COMPLETION, {"logprobs": 6}, "logprobs"),
        (COMPLETION, {"tools": [TOOL]}, "tools"),
        (MESSAGE, {"messages": []}, "messages"),
        (MESSAGE, {"messages": [{"role": "system", "content": "x"}]}, "messages"),
        (MESSAGE, {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages"),
        (MESSAGE, {"system": 7}, "system"),
        (MESSAGE, {"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools"),
        (MESSAGE, {"tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
        (MESSAGE, {"tool_choice": "any"}, "tool_choice"),
        (MESSAGE, {"thinking": {"type": "deep"}}, "thinking"),
        (MESSAGE, {"output_format": {"type": "xml"}}, "output_config"),
        (MESSAGE, {"stop_sequences": [""]}, "stop_sequences"),
        (MESSAGE, {"n": 2}, "n"),
        (CHAT, {"endpoint": "/v1/embeddings"}, "endpoint"),
        (CHAT, {"endpoint": ["/v1/messages"]}, "endpoint"),
    ],
)
def test_what_cannot_be_served_right_is_a_400_with_the_parameters_name(
    base: dict[str, Any], changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request_of(base | changes)
    assert caught.value.param == param
    assert caught.value.status_code == 400


@pytest.mark.parametrize(
    ("base", "changes", "param"),
    [
        (CHAT, {"n": 2}, "n"),
        (CHAT, {"logprobs": True}, "logprobs"),
        (CHAT, {"presence_penalty": 1}, "presence_penalty"),
        (CHAT, {"logit_bias": {"1": 1}}, "logit_bias"),
        (CHAT, {"tools": [TOOL]}, "tools"),
        (CHAT, {"tools": [TOOL], "tool_choice": "required"}, "tools"),
        (CHAT, {"response_format": {"type": "json_object"}}, "response_format"),
        (CHAT, {"ignore_eos": True}, "ignore_eos"),
        (COMPLETION, {}, "endpoint"),
        (MESSAGE, {}, "endpoint"),
    ],
)
def test_a_provider_refuses_by_name_what_it_does_not_serve(
    base: dict[str, Any], changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request_of(base | changes, CHAT_FEATURES)
    assert caught.value.param == param


def test_forced_calls_can_be_left_out_where_tools_are_served() -> None:
    served = ALL_FEATURES - {"tool_choice"}
    assert request_of(CHAT | {"tools": [TOOL], "tool_choice": "auto"}, served).tools
    with pytest.raises(InvalidRequestError):
        request_of(CHAT | {"tools": [TOOL], "tool_choice": "required"}, served)


def test_neutral_values_of_what_is_not_served_pass() -> None:
    neutral = {"n": 1, "logprobs": False, "tools": [], "tool_choice": "auto", "logit_bias": {}}
    assert request_of(CHAT | neutral, CHAT_FEATURES).ignored == ()


def test_a_request_never_shows_its_content() -> None:
    canary = "canary-7f"
    schema = {"type": "object", "title": canary}
    request = chat(
        messages=[{"role": "user", "content": canary}],
        instructions=canary,
        stop=canary,
        tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}],
        response_format={"type": "json_schema", "json_schema": {"schema": schema}},
    )
    assert canary not in repr(request)
    assert canary not in repr(completion(prompt=canary))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role", "content", "text", "type", "function", "name", "arguments", "schema",
                    "tool_calls", "input", "id", "tool_use_id", "effort", "json_schema", "1",
                ]
            ),
            inner | st.sampled_from(["user", "assistant", "tool", "function", "tool_use",
                                     "tool_result", "json_schema", "text", "enabled"]),
        )
    ),
    max_leaves=12,
)  # fmt: skip
_NAMES = [
    "messages", "prompt", "system", "tools", "tool_choice", "response_format", "logit_bias", "n",
    "logprobs", "top_logprobs", "stop", "stop_sequences", "thinking", "reasoning", "seed",
    "reasoning_effort", "chat_template_kwargs", "instructions", "stream_options", "output_config",
    "output_format", "max_tokens", "best_of", "echo", "suffix", "anything",
]  # fmt: skip


@given(
    base=st.sampled_from([CHAT, COMPLETION, MESSAGE]),
    changes=st.dictionaries(st.sampled_from(_NAMES), _json, max_size=4),
)
def test_foreign_json_is_a_request_or_an_invalid_request(
    base: dict[str, Any], changes: dict[str, Any]
) -> None:
    with contextlib.suppress(InvalidRequestError):
        read_request(json.dumps(base | changes).encode())
