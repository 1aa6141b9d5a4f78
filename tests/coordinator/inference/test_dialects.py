"""What a consumer reads in each dialect, whatever its provider says. Pure."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.coordinator.inference import dialects
from darkbloom_provider.coordinator.inference.dialects import Asked, Dialect
from darkbloom_provider.protocol.messages import InferenceComplete, Usage

USED = Usage(prompt_tokens=7, completion_tokens=3)
COMPLETE = InferenceComplete(request_id="job", usage=USED)
SIGNED = COMPLETE.model_copy(update={"se_signature": "sig", "response_hash": "hash"})
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)
FOREIGN: tuple[Dialect, ...] = ("completions", "messages", "responses")


def chunk(document: Any) -> str:
    return "data: " + json.dumps(document, separators=(",", ":"))


def delta(index: int = 0, reason: str | None = None, **said: Any) -> str:
    choice = {"index": index, "delta": said, "finish_reason": reason}
    return chunk({"object": "chat.completion.chunk", "choices": [choice]})


def streamed(dialect: Dialect, *chunks: str, completion: InferenceComplete = COMPLETE) -> list[str]:
    stream = dialects.stream(Asked(dialect, "m", 5), job_id="j-1", created=9)
    events = stream.begin()
    for text in chunks:
        events += stream.events(text)
    return [event.decode() for event in events + stream.end(completion)]


def whole(
    dialect: Dialect, *chunks: str, completion: InferenceComplete = COMPLETE
) -> dict[str, Any]:
    return dialects.whole(Asked(dialect, "m", 5), chunks, completion, job_id="j-1", created=9)


def documents(events: list[str]) -> list[dict[str, Any]]:
    texts = [event.rpartition("data: ")[2] for event in events]
    return [json.loads(text) for text in texts if text.strip() != "[DONE]"]


CALL: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{"}}
MORE = {"index": 0, "function": {"arguments": '"a":1}'}}
TALK = (
    delta(reasoning="hm"),
    delta(content="Hel"),
    delta(content="lo"),
    delta(tool_calls=[{"index": 0, **CALL}]),
    delta(tool_calls=[MORE]),
    delta(reason="tool_calls"),
    "data: [DONE]",
)


def test_a_chat_becomes_a_message_event_by_event() -> None:
    events = documents(streamed("messages", *TALK))
    assert [event["type"] for event in events] == [
        "message_start",
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", *["content_block_delta"] * 2, "content_block_stop"),
        *("content_block_start", *["content_block_delta"] * 2, "content_block_stop"),
        "message_delta",
        "message_stop",
    ]
    assert events[0]["message"]["usage"]["input_tokens"] == 5
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    assert events[-2]["usage"] == {"input_tokens": 7, "output_tokens": 3}


def test_a_chat_becomes_a_response_item_by_item() -> None:
    events = documents(streamed("responses", *TALK, completion=SIGNED))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    response = events[-1]["response"]
    assert response["output"] == done
    assert [item["id"] for item in done] == ["rs_j1_0", "msg_j1_1", "fc_j1_2"]
    assert done[2] == {
        "type": "function_call",
        "id": "fc_j1_2",
        "status": "completed",
        "call_id": "c1",
        "name": "f",
        "arguments": '{"a":1}',
    }
    assert (response["id"], response["status"]) == ("resp_j1", "completed")
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}
    assert (response["se_signature"], response["response_hash"]) == ("sig", "hash")
    assert whole("responses", *TALK, completion=SIGNED)["output"] == done


def test_a_chat_becomes_a_completion_choice_by_choice() -> None:
    told = documents(
        streamed("completions", delta(0, content="a"), delta(1, content="b"), delta(1, "length"))
    )
    choices = [choice for document in told for choice in document["choices"]]
    assert [(c["index"], c["text"], c["finish_reason"]) for c in choices] == [
        (0, "a", None),
        (1, "b", None),
        (1, "", "length"),
        (0, "", "stop"),
    ]


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_an_answer_that_was_cut_says_so(reason: str) -> None:
    chunks = (delta(content="Hel"), delta(reason=reason))
    reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
    response = whole("responses", *chunks)
    assert response["status"] == response["output"][0]["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": reasons[reason]}
    last = documents(streamed("responses", *chunks))[-1]
    assert (last["type"], last["response"]["status"]) == ("response.completed", "incomplete")
    stop = {"length": "max_tokens", "content_filter": "refusal"}[reason]
    assert whole("messages", *chunks)["stop_reason"] == stop


@pytest.mark.parametrize("dialect", FOREIGN)
def test_an_empty_answer_is_one_all_the_same(dialect: Dialect) -> None:
    assert whole(dialect)["usage"]
    assert streamed(dialect) or dialect == "completions"


def test_a_native_stream_passes_byte_for_byte() -> None:
    message = 'event: message_stop\ndata: {"type":"message_stop"}'
    assert streamed("messages", message) == [f"{message}\n\n"]
    text = chunk({"object": "text_completion", "choices": [{"text": "a"}]})
    assert streamed("completions", text) == [f"{text}\n\n", "data: [DONE]\n\n"]


def test_a_native_answer_passes_and_names_the_model_that_was_asked_for() -> None:
    message = {"type": "message", "model": "theirs", "content": [], "usage": {"input_tokens": 1}}
    assert whole("messages", chunk(message)) == message | {"model": "m"}
    text = {"object": "text_completion", "model": "theirs", "choices": [], "usage": {}}
    assert whole("completions", chunk(text)) == text | {"model": "m"}


def test_a_signature_follows_where_clients_do_not_stumble_over_it() -> None:
    assert streamed("messages", completion=SIGNED)[-1].startswith("data: {")
    assert "sig" in streamed("completions", completion=SIGNED)[-2]
    for dialect in DIALECTS:
        assert whole(dialect, completion=SIGNED)["response_hash"] == "hash"


def test_arguments_that_are_no_object_are_not_lost_in_a_message() -> None:
    call = CALL | {"function": {"name": "f", "arguments": "not json"}}
    message = {"content": "", "tool_calls": [call]}
    chat = {"object": "chat.completion", "choices": [{"message": message}]}
    (block,) = whole("messages", chunk(chat))["content"]
    assert block["input"] == {"arguments": "not json"}


WORDS = [
    *("choices", "delta", "message", "content", "tool_calls", "function", "index", "object"),
    *("text", "type", "usage", "logprobs", "top_logprobs", "token", "logprob", "bytes"),
    *("finish_reason", "reasoning", "arguments", "name", "id"),
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 300)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["chat.completion", "text_completion", "message", "stop", "length"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
    ),
)


@pytest.mark.parametrize("dialect", DIALECTS)
@given(st.lists(VALUES.map(chunk) | st.text(max_size=20), max_size=4))
def test_nothing_a_provider_says_breaks_a_dialect(dialect: Dialect, chunks: list[str]) -> None:
    for event in streamed(dialect, *chunks):
        assert event.endswith("\n\n")
    json.dumps(whole(dialect, *chunks))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_error_has_a_body_and_an_event(dialect: Dialect) -> None:
    document = dialects.error_document(dialect, 503, "model_not_available", "no")
    event = dialects.error_event(dialect, 503, "model_not_available", "no").decode()
    assert document["error"]["message"] == "no"
    assert document["error"]["type"] == (
        "overloaded_error" if dialect == "messages" else "model_not_available"
    )
    assert json.loads(event.rpartition("data: ")[2])["error"]["message"] == "no"
    assert event.startswith("event: error\n") == (dialect == "messages")
