from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.protocol import openai
from darkbloom_provider.protocol.requests.document import MAX_VALUES

HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def read(**changes: Any) -> openai.ChatRequest:
    return openai.parse_chat_request(json.dumps(HELLO | changes).encode())


def test_a_plain_request_takes_the_networks_defaults() -> None:
    request = read()
    assert request.max_tokens == 8192
    assert (request.temperature, request.top_p) == (0.7, 0.9)
    assert not request.stream
    assert request.messages == ({"role": "user", "content": "hello"},)


def test_numbers_respelled_by_the_network_are_read() -> None:
    assert read(max_tokens=8192.0).max_tokens == 8192
    assert read(seed=1.8446744073709552e19).seed == 0


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_every_spelling_of_the_bound_is_honoured(name: str) -> None:
    assert read(**{name: 5}).max_tokens == 5


@pytest.mark.parametrize("value", [0, -1, -1.5, 1.5, "7", True, [], 2**40, float("1e300")])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_bound_that_is_no_bound_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(openai.InvalidRequestError) as caught:
        read(**{name: value})
    assert caught.value.param == name
    assert caught.value.status_code == 400


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"stream": 1}, "stream"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"seed": 0.5}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"endpoint": "/v1/messages"}, "endpoint"),
        ({"endpoint": "http://elsewhere/"}, "endpoint"),
    ],
)
def test_what_cannot_be_served_right_is_refused_by_name(
    changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.InvalidRequestError) as caught:
        read(**changes)
    assert caught.value.param == param


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"NaN", b'{"model":NaN}', b"[" * 9999])
def test_a_body_that_is_not_a_json_object_is_a_400(body: bytes) -> None:
    with pytest.raises(openai.InvalidRequestError) as caught:
        openai.parse_object(body)
    assert caught.value.status_code == 400


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(openai.InvalidRequestError):
        openai.parse_object(b'{"model":"\\ud800"}')


def test_a_body_over_the_limit_is_a_413() -> None:
    with pytest.raises(openai.InvalidRequestError) as caught:
        openai.parse_object(b" " * (openai.MAX_BODY_BYTES + 1))
    assert caught.value.status_code == 413


def test_a_body_that_would_keep_the_parser_busy_for_seconds_is_a_413() -> None:
    body = b'{"x":[' + b"[]," * MAX_VALUES + b"0]}"
    with pytest.raises(openai.InvalidRequestError) as caught:
        openai.parse_object(body)
    assert caught.value.status_code == 413


def test_text_parts_are_joined_and_a_developer_is_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = read(messages=[{"role": "developer", "content": parts}])
    assert request.messages == ({"role": "system", "content": "a\nb"},)


def test_a_prompt_never_shows_in_a_representation() -> None:
    request = read(stop=["stop-canary"], messages=[{"role": "user", "content": "canary"}])
    assert "canary" not in repr(request)


@given(
    st.dictionaries(
        st.sampled_from(["model", "messages", "stop", "seed", "stream", "n", "stream_options"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["role", "content", "text"]), inner)
            ),
            max_leaves=8,
        ),
    )
)
def test_foreign_json_is_a_request_or_an_invalid_request(document: dict[str, Any]) -> None:
    with contextlib.suppress(openai.InvalidRequestError):
        openai.parse_chat_request(json.dumps(document).encode())


def test_events_are_compact_single_lines() -> None:
    text = openai.chunk_event(
        id="chatcmpl-1", created=7, model="m", delta={"content": "Hé\n"}, finish_reason=None
    )
    assert text == (
        'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m",'
        '"choices":[{"index":0,"delta":{"content":"Hé\\n"},"finish_reason":null}]}'
    )


def test_a_whole_answer_carries_its_usage() -> None:
    text = openai.completion_event(
        id="chatcmpl-1",
        created=7,
        model="m",
        content="Hi",
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=2,
    )
    document = json.loads(text.removeprefix("data: "))
    assert document["object"] == "chat.completion"
    assert document["usage"]["total_tokens"] == 5
    assert document["choices"][0]["message"] == {"role": "assistant", "content": "Hi"}


def test_the_usage_event_has_no_choices() -> None:
    text = openai.usage_event(
        id="chatcmpl-1", created=7, model="m", prompt_tokens=3, completion_tokens=2
    )
    assert json.loads(text.removeprefix("data: "))["choices"] == []
