"""What a consumer's body means, what it may cost, and what the provider gets to read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.coordinator.inference.estimate import (
    most_prompt_tokens,
    output_tokens,
    prompt_tokens,
)
from darkbloom_provider.coordinator.inference.orders import Order, read_order
from darkbloom_provider.coordinator.rest.replies import ApiError
from darkbloom_provider.models.catalogue import Catalogue
from darkbloom_provider.protocol.money import cost
from darkbloom_provider.protocol.openai import InvalidRequestError
from support.network import chat
from support.scripted_provider import MODEL

CATALOGUE = Catalogue.builtin()


def order(**body: Any) -> Order:
    return read_order(json.dumps(chat(**body)).encode(), CATALOGUE)


def refused(body: bytes) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        read_order(body, CATALOGUE)
    return caught.value


def test_the_networks_own_reservation_example_holds() -> None:
    document = {"messages": [{"role": "user", "content": "hello"}]}
    qwen = CATALOGUE.price("qwen3.5-27b-claude-opus-8bit")
    assert prompt_tokens(document) == 8
    assert output_tokens(document) == 8192
    assert cost(8, 8192, qwen) == 6389


@pytest.mark.parametrize(
    ("document", "tokens"),
    [
        ({"prompt": ""}, 3),  # nothing asked: the whole body, 13 bytes
        ({"prompt": "abc"}, 1),
        ({"prompt": "\u00fc" * 4}, 2),
        ({"messages": ["<"]}, 2),  # ["<"] is 10 bytes with the escape
        ({"input": "12345678", "messages": [1]}, 3),
    ],
)
def test_a_quarter_of_the_bytes_is_the_estimate(document: dict[str, Any], tokens: int) -> None:
    assert prompt_tokens(document) == tokens


@given(contents=st.lists(st.text(), min_size=1), tools=st.lists(st.text()))
def test_a_reservation_covers_a_tokenizer_that_knows_bytes_only(
    contents: list[str], tools: list[str]
) -> None:
    messages = [{"role": "user", "content": content} for content in contents]
    rendered = "".join(f"<|im_start|>user\n{content}<|im_end|>\n" for content in contents)
    marks, default_system_prompt = 5 * len(contents), 200
    worst = len(rendered.encode()) - len(contents) * len("<|im_start|>user\n<|im_end|>\n")
    worst += marks + default_system_prompt + len("".join(tools).encode())
    bound = most_prompt_tokens({"model": "m", "messages": messages, "tools": tools})
    assert worst <= bound


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'{"model": NaN}',
        # No number of a double's range: it could not be passed on.
        b'{"metadata": {"a": -1e999}}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused(body: bytes) -> None:
    assert refused(body).status_code == 400


@pytest.mark.parametrize("limit", [0, -1, 0.5, "10", True, [], 10**30])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_a_limit_that_is_no_positive_number_is_refused_by_name(name: str, limit: Any) -> None:
    body = chat()
    del body["max_tokens"]
    error = refused(json.dumps(body | {name: limit}).encode())
    assert (error.status_code, error.param) == (400, name)
    assert name in error.what


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"stream": "yes"}, "stream"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"n": 1.5}, "n"),
        ({"provider_serial": ""}, "provider_serial"),
        ({"provider_serial": 5}, "provider_serial"),
        ({"provider_serials": []}, "provider_serials"),
        ({"provider_serials": ["A", 5]}, "provider_serials"),
    ],
)
def test_a_wrong_field_is_refused_by_name(changes: dict[str, Any], param: str) -> None:
    assert refused(json.dumps(chat(**changes)).encode()).param == param


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(ApiError) as caught:
        order(model="gpt-9")
    assert (caught.value.status, caught.value.type) == (404, "model_not_found")


def test_a_body_that_needs_no_change_reaches_the_provider_byte_for_byte() -> None:
    body = json.dumps(chat(content="\u00fc <b>", seed=2**60 + 1), indent=2).encode()
    assert read_order(body, CATALOGUE).body == body


def test_a_missing_limit_is_put_in() -> None:
    body = chat()
    del body["max_tokens"]
    read = read_order(json.dumps(body).encode(), CATALOGUE)
    assert json.loads(read.body) == body | {"max_tokens": 8192}
    assert read.demand.max_output_tokens == 8192


def test_a_null_limit_counts_as_missing() -> None:
    assert json.loads(order(max_tokens=None).body)["max_tokens"] == 8192


def test_another_spelling_of_the_limit_is_left_alone() -> None:
    body = chat(max_completion_tokens=9)
    del body["max_tokens"]
    read = read_order(json.dumps(body).encode(), CATALOGUE)
    assert json.loads(read.body) == body
    assert read.demand.max_output_tokens == 9


def test_more_choices_reserve_more() -> None:
    assert order(n=3).demand.max_output_tokens == 12_000


def test_routing_wishes_are_obeyed_and_taken_out() -> None:
    read = order(provider_serials=["A", "B"], provider_serial="C")
    assert read.demand.serials == {"A", "B", "C"}
    assert set(json.loads(read.body)) == {"model", "messages", "max_tokens"}


def test_an_order_does_not_show_its_content() -> None:
    assert "secret words" not in repr(order(content="secret words"))


# ---------------------------------------------------------------- other dialects


def elsewhere(endpoint: str, /, **body: Any) -> Order:
    document = {"model": MODEL, "max_tokens": 100} | body
    return read_order(json.dumps(document).encode(), CATALOGUE, endpoint)


@pytest.mark.parametrize(
    ("endpoint", "asked"),
    [
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/messages", {"messages": chat()["messages"], "system": "s"}),
    ],
)
def test_a_provider_is_told_which_dialect_is_asked(endpoint: str, asked: dict[str, Any]) -> None:
    read = elsewhere(endpoint, **asked, provider_serial="A", endpoint="/etc/passwd")
    assert json.loads(read.body) == {
        "model": MODEL,
        "max_tokens": 100,
        "endpoint": endpoint,
        **asked,
    }
    assert json.loads(elsewhere(endpoint, **asked, max_tokens=None).body)["max_tokens"] == 8192


def test_a_response_reaches_the_provider_as_a_chat() -> None:
    read = elsewhere("/v1/responses", input="hello", max_tokens=None, endpoint="/v1/messages")
    assert json.loads(read.body) == {
        "model": MODEL,
        "max_tokens": 8192,
        "messages": [{"role": "user", "content": "hello"}],
    }
    assert read.asked.dialect == "responses"


def test_every_prompt_of_a_list_may_have_an_answer_of_full_length() -> None:
    read = elsewhere("/v1/completions", prompt=["a", "b", "c"], n=2)
    assert read.demand.max_output_tokens == 600


@pytest.mark.parametrize(
    ("endpoint", "asked", "param"),
    [
        ("/v1/completions", {}, "prompt"),
        ("/v1/completions", {"prompt": ["a"] * 129}, "prompt"),
        ("/v1/messages", {}, "messages"),
        ("/v1/messages", {"messages": "hi"}, "messages"),
        ("/v1/responses", {}, "input"),
        ("/v1/responses", {"input": 5}, "input"),
        ("/v1/responses", {"messages": "hi"}, "messages"),
    ],
)
def test_what_is_missing_is_named(endpoint: str, asked: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        elsewhere(endpoint, **asked)
    assert caught.value.param == param
