"""The events of the three dialects, from the pieces of an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.coordinator.inference import relay
from darkbloom_provider.protocol.answers.answer import Answer, answer_to
from darkbloom_provider.protocol.answers.gathered import TokenLogprob
from darkbloom_provider.protocol.messages import InferenceComplete, Usage
from darkbloom_provider.protocol.output import (
    ContentDelta,
    Piece,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallEnded,
    ToolCallStarted,
)
from darkbloom_provider.protocol.requests.request import Dialect, TextRequest

USED = Usage(prompt_tokens=3, completion_tokens=5)
CALL: tuple[Piece, ...] = (
    ToolCallStarted(0, "call_0", "f"),
    ToolCallArguments(0, '{"a":'),
    ToolCallArguments(0, " 1}"),
    ToolCallEnded(0),
)
SAID: tuple[Piece, ...] = (ReasoningDelta("hm"), ContentDelta("Hé"), ContentDelta("llo"), *CALL)


def answer(dialect: Dialect, *, stream: bool, native: bool = False, usage: bool = False) -> Answer:
    request = TextRequest("m", dialect=dialect, stream=stream, include_usage=usage)
    return answer_to(request, request_id="r1", created=7, native=native)


def lines(made: Answer, *pieces: Piece, reason: Any = "stop") -> list[str]:
    events = made.start(3)
    for piece in pieces:
        events += made.pieces([piece])
    return [*events, *made.finish(reason), *made.end(USED)]


def documents(events: list[str]) -> list[dict[str, Any]]:
    return [json.loads(event.split("data: ", 1)[1]) for event in events]


def only(events: list[str]) -> dict[str, Any]:
    (document,) = documents(events)
    return document


# ---------------------------------------------------------------- chat


def test_a_streamed_chat_sends_the_role_once_and_the_reason_last() -> None:
    events = documents(lines(answer("chat", stream=True, usage=True), *SAID))
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert deltas[0] == {"role": "assistant", "reasoning": "hm"}
    assert [delta.get("content") for delta in deltas[1:3]] == ["Hé", "llo"]
    assert not any("role" in delta for delta in deltas[1:])
    assert [e["choices"][0]["finish_reason"] for e in events[:-1]][-2:] == [None, "tool_calls"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["total_tokens"] == 8


def test_fragments_of_a_call_add_up_to_its_arguments() -> None:
    events = documents(lines(answer("chat", stream=True), *CALL))
    fragments = [
        call for event in events for call in event["choices"][0]["delta"].get("tool_calls", [])
    ]
    assert fragments[0] == {
        "index": 0,
        "id": "call_0",
        "type": "function",
        "function": {"name": "f", "arguments": ""},
    }
    assert "".join(call["function"]["arguments"] for call in fragments) == '{"a": 1}'


def test_a_call_that_comes_at_once_is_one_event() -> None:
    made = answer("chat", stream=True)
    (event,) = documents(made.pieces(CALL))
    function = event["choices"][0]["delta"]["tool_calls"][0]["function"]
    assert function == {"name": "f", "arguments": '{"a": 1}'}


def test_an_empty_chat_stream_still_has_a_role_and_a_reason() -> None:
    first, last = documents(lines(answer("chat", stream=True), reason="length"))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["finish_reason"] == "length"


def test_a_whole_chat_is_one_event_with_everything() -> None:
    document = only(lines(answer("chat", stream=False), *SAID))
    call = {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert document["object"] == "chat.completion"
    assert document["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Héllo",
                "reasoning": "hm",
                "tool_calls": [call],
            },
            "finish_reason": "tool_calls",
        }
    ]


def test_a_call_in_an_answer_that_was_cut_short_does_not_hide_the_cut() -> None:
    document = only(lines(answer("chat", stream=False), *CALL, reason="length"))
    assert document["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [True, False])
def test_choices_are_told_apart(stream: bool) -> None:
    made = answer("chat", stream=stream)
    events = [
        *made.pieces([ContentDelta("a")], 0),
        *made.pieces([ContentDelta("b")], 1),
        *made.pieces(CALL, 1),
        *made.finish("length", 0),
        *made.finish("stop", 1),
        *made.end(USED),
    ]
    reasons = {
        choice["index"]: choice["finish_reason"]
        for document in documents(events)
        for choice in document["choices"]
        if choice["finish_reason"]
    }
    assert reasons == {0: "length", 1: "tool_calls"}


def test_log_probabilities_wait_for_their_text_and_none_is_lost() -> None:
    likely = TokenLogprob("H", -0.5, top=(TokenLogprob("H", -0.5), TokenLogprob("J", -2.0)))
    half = TokenLogprob("\ufffd", float("-inf"), data=b"\xc3")
    made = answer("chat", stream=True)
    assert made.pieces([], logprobs=[likely]) == []
    (event,) = documents(made.pieces([ContentDelta("H")], logprobs=[half]))
    first, second = event["choices"][0]["logprobs"]["content"]
    assert first["top_logprobs"][1] == {"token": "J", "logprob": -2.0, "bytes": [74]}
    assert second == {"token": "\ufffd", "logprob": -9999.0, "bytes": [195], "top_logprobs": []}
    assert made.pieces([], logprobs=[likely]) == []
    (end,) = documents(made.finish("stop"))
    assert len(end["choices"][0]["logprobs"]["content"]) == 1
    whole = answer("chat", stream=False)
    whole.pieces([ContentDelta("H")], logprobs=[likely])
    whole.finish("stop")
    assert len(only(whole.end(USED))["choices"][0]["logprobs"]["content"]) == 1


# ---------------------------------------------------------------- completions


def test_a_streamed_completion_is_in_its_own_shape() -> None:
    token = TokenLogprob("on", -1.0, top=(TokenLogprob("on", -1.0),))
    made = answer("completions", stream=True, usage=True)
    first = only(made.pieces([ContentDelta("on")], 1, [token]))
    assert first["object"] == "text_completion"
    assert first["choices"] == [
        {
            "index": 1,
            "text": "on",
            "logprobs": {
                "tokens": ["on"],
                "token_logprobs": [-1.0],
                "top_logprobs": [{"on": -1.0}],
                "text_offset": [0],
            },
            "finish_reason": None,
        }
    ]
    second = only(made.pieces([ContentDelta("on")], 1, [token]))
    assert second["choices"][0]["logprobs"]["text_offset"] == [2]
    assert only(made.finish("length", 1))["choices"][0]["finish_reason"] == "length"
    assert only(made.end(USED))["usage"]["prompt_tokens"] == 3


def test_a_whole_completion_is_native_where_that_is_understood() -> None:
    made = answer("completions", stream=False, native=True)
    document = only(lines(made, ContentDelta("once")))
    assert document["object"] == "text_completion"
    assert document["choices"] == [{"index": 0, "text": "once", "finish_reason": "stop"}]


# ---------------------------------------------------------------- Anthropic's messages


def test_a_message_stream_opens_and_closes_its_blocks() -> None:
    events = lines(answer("messages", stream=True), *SAID)
    assert all(event.startswith("event: ") and event.count("\n") == 1 for event in events)
    read = documents(events)
    assert [d["type"] for d in read] == [event.split("\n")[0][7:] for event in events]
    assert [(d["type"].removeprefix("content_block_"), d.get("index")) for d in read] == [
        ("message_start", None),
        ("start", 0),
        ("delta", 0),
        ("stop", 0),
        ("start", 1),
        ("delta", 1),
        ("delta", 1),
        ("stop", 1),
        ("start", 2),
        ("delta", 2),
        ("delta", 2),
        ("stop", 2),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert read[0]["message"]["usage"] == {"input_tokens": 3, "output_tokens": 0}
    starts = [d["content_block"]["type"] for d in read if d["type"] == "content_block_start"]
    assert starts == ["thinking", "text", "tool_use"]
    arguments = "".join(d["delta"].get("partial_json", "") for d in read if "delta" in d)
    assert json.loads(arguments) == {"a": 1}
    assert read[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert read[-2]["usage"]["output_tokens"] == 5


def test_two_calls_are_two_blocks() -> None:
    second = (ToolCallStarted(1, "call_1", "g"), ToolCallArguments(1, "{}"), ToolCallEnded(1))
    read = documents(lines(answer("messages", stream=True), *CALL, *second))
    names = [d["content_block"]["name"] for d in read if d["type"] == "content_block_start"]
    assert names == ["f", "g"]


def test_a_message_tells_which_stop_sequence_ended_it() -> None:
    for stream in (True, False):
        made = answer("messages", stream=stream, native=True)
        made.pieces([ContentDelta("a")])
        made.finish("stop", stop_sequence="END")
        document = documents(made.end(USED))[0]
        told = document["delta"] if stream else document
        assert (told["stop_reason"], told["stop_sequence"]) == ("stop_sequence", "END")


def test_a_whole_message_is_native_where_that_is_understood() -> None:
    document = only(lines(answer("messages", stream=False, native=True), *SAID))
    assert document["type"] == "message"
    assert "object" not in document
    assert document["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "Héllo"},
        {"type": "tool_use", "id": "call_0", "name": "f", "input": {"a": 1}},
    ]
    assert document["stop_reason"] == "tool_use"
    assert document["usage"] == {"input_tokens": 3, "output_tokens": 5}


# ---------------------------------------------------------------- through the network


@pytest.mark.parametrize("dialect", ["completions", "messages"])
def test_a_whole_answer_keeps_its_text_on_its_way_through_the_network(dialect: Dialect) -> None:
    chunks = lines(answer(dialect, stream=False), ContentDelta("Hello"))
    completion = InferenceComplete(request_id="r1", usage=USED)
    reply = relay.reply(chunks, model="m", job_id="j", created=7, completion=completion)
    assert reply["choices"][0]["message"]["content"] == "Hello"
    if dialect == "completions":
        assert reply["choices"][0]["text"] == "Hello"
    else:
        assert reply["content"] == [{"type": "text", "text": "Hello"}]
        assert reply["stop_reason"] == "end_turn"
        assert reply["usage"]["input_tokens"] == reply["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize("dialect", ["chat", "completions", "messages"])
def test_streams_pass_the_network_untouched(dialect: Dialect) -> None:
    for event in lines(answer(dialect, stream=True, usage=True), *SAID):
        assert relay.stream_event(event) == event.encode() + b"\n\n"


@given(
    dialect=st.sampled_from(["chat", "completions", "messages"]),
    texts=st.lists(st.text(), max_size=6),
)
def test_a_stream_and_a_whole_answer_say_the_same(dialect: Dialect, texts: list[str]) -> None:
    pieces = [ContentDelta(text) for text in texts]
    whole = only(lines(answer(dialect, stream=False), *pieces))
    streamed = ""
    for document in documents(lines(answer(dialect, stream=True), *pieces)):
        for choice in document.get("choices", ()):
            streamed += choice.get("text") or choice.get("delta", {}).get("content", "")
        streamed += document.get("delta", {}).get("text", "")
    assert streamed == whole["choices"][0]["message"]["content"] == "".join(texts)
