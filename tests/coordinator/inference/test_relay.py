"""What a consumer gets to see of a provider's answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.coordinator.inference import relay
from darkbloom_provider.protocol.messages import InferenceComplete, Usage

COMPLETE = InferenceComplete(request_id="job", usage=Usage(prompt_tokens=7, completion_tokens=3))


def event(chunk: str) -> Any:
    data = relay.stream_event(chunk)
    assert data is not None
    text = data.decode()
    assert text.startswith("data: ")
    assert text.endswith("\n\n")
    return json.loads(text[6:])


def whole(*chunks: str, completion: InferenceComplete = COMPLETE) -> dict[str, Any]:
    return relay.reply(chunks, model="m", job_id="job", created=5, completion=completion)


def completion(message: dict[str, Any], **more: Any) -> str:
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {"object": "chat.completion", "model": "theirs", "choices": [choice]} | more
    return "data: " + json.dumps(body)


def test_a_chunk_that_needs_no_repair_passes_byte_for_byte() -> None:
    chunk = 'data: {"choices":[{"delta":{"content":"<b> \u00fc"}}],"b":1,"a":2}'
    assert relay.stream_event(chunk) == chunk.encode() + b"\n\n"


def test_trailing_newlines_do_not_become_extra_events() -> None:
    assert relay.stream_event('data: {"a":1}\n\n') == b'data: {"a":1}\n\n'


@pytest.mark.parametrize("chunk", ["data: [DONE]", "[DONE]", "", "\n", "data: [DONE]\n\n"])
def test_a_providers_own_end_mark_is_not_relayed(chunk: str) -> None:
    assert relay.stream_event(chunk) is None


def test_a_chunk_without_the_prefix_becomes_a_valid_event() -> None:
    assert event('{"a":1}') == {"a": 1}


def test_nulls_are_repaired_as_the_network_repairs_them() -> None:
    chunk = (
        'data: {"usage":null,"system_fingerprint":null,"choices":[{"delta":{"content":null,'
        '"tool_calls":null,"refusal":null,"reasoning":null},"finish_reason":null}]}'
    )
    delta = {"content": "", "tool_calls": [], "refusal": "", "reasoning": ""}
    assert event(chunk) == {"choices": [{"delta": delta, "finish_reason": None}]}


def test_reasoning_has_one_name() -> None:
    assert event('data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}') == {
        "choices": [{"delta": {"reasoning": "hm"}}]
    }
    both = 'data: {"choices":[{"delta":{"reasoning_content":"hm","reasoning":"so"}}]}'
    assert event(both) == {"choices": [{"delta": {"reasoning": "so"}}]}


@given(st.text())
def test_no_chunk_breaks_the_relay(chunk: str) -> None:
    data = relay.stream_event(chunk)
    assert data is None or data.endswith(b"\n\n")
    whole(chunk)
    whole(chunk, chunk)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "choices",
                        "delta",
                        "message",
                        "content",
                        "tool_calls",
                        "function",
                        "index",
                        "object",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_no_json_breaks_the_relay(value: Any) -> None:
    chunk = "data: " + json.dumps(value, separators=(",", ":"))
    relay.stream_event(chunk)
    json.dumps(whole(chunk))
    json.dumps(whole(chunk, chunk))


def test_half_a_surrogate_pair_does_not_break_the_stream() -> None:
    assert relay.stream_event('{"usage":null,"x":"\\ud800"}') == b'data: {"x":"?"}\n\n'


def test_a_whole_answer_passes_with_the_requested_model() -> None:
    reply = whole(completion({"role": "assistant", "content": "Hi"}, usage={"total_tokens": 9}))
    assert reply["model"] == "m"
    assert reply["usage"] == {"total_tokens": 9}
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": "Hi"}


def test_thoughts_leave_the_content_of_a_whole_answer() -> None:
    message = {"content": "<think>hm</think>Hi <THINK>open", "tool_calls": None, "refusal": None}
    reply = whole(completion(message))
    assert reply["choices"][0]["message"] == {"content": "Hi", "reasoning": "hm\nopen"}


def test_an_absent_content_becomes_empty_text() -> None:
    reply = whole(completion({"reasoning_content": "hm", "content": None}))
    assert reply["choices"][0]["message"] == {"content": "", "reasoning": "hm"}


def test_pieces_are_put_together_with_the_billed_usage() -> None:
    def piece(delta: dict[str, Any], finish: str | None = None) -> str:
        return "data: " + json.dumps({"choices": [{"delta": delta, "finish_reason": finish}]})

    reply = whole(
        piece({"role": "assistant", "content": "He"}),
        piece({"content": "llo", "reasoning": "hm"}),
        piece({}, "length"),
        "data: [DONE]",
    )
    assert reply == {
        "id": "chatcmpl-job",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "reasoning": "hm"},
                "finish_reason": "length",
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }


def test_tool_calls_are_put_together_by_index() -> None:
    def piece(call: dict[str, Any]) -> str:
        return "data: " + json.dumps({"choices": [{"delta": {"tool_calls": [call]}}]})

    reply = whole(
        piece({"index": 0, "id": "c1", "function": {"name": "f", "arguments": '{"a":'}}),
        piece({"index": 0, "function": {"arguments": "1}"}}),
        # A gap in the indexes is dropped, as the network drops it.
        piece({"index": 5, "function": {"name": "g"}}),
    )
    choice = reply["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    ]


def test_a_signature_is_passed_on_and_a_bare_hash_is_not() -> None:
    signed = COMPLETE.model_copy(update={"se_signature": "sig", "response_hash": "hash"})
    assert relay.receipt_event(signed) == (
        b'data: {"choices":[],"response_hash":"hash","se_signature":"sig"}\n\n'
    )
    assert whole(completion({"content": "x"}), completion=signed)["response_hash"] == "hash"
    bare = COMPLETE.model_copy(update={"response_hash": "hash"})
    assert relay.receipt_event(bare) is None
    assert "response_hash" not in whole(completion({"content": "x"}), completion=bare)
