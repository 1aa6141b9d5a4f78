"""What requests of all dialects become, seen from the coordinator's end of the wire."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from darkbloom_provider.engine.requests import Delta, LoadedModel, TokenChoice, TokenLogprob
from darkbloom_provider.protocol.messages import Usage
from darkbloom_provider.protocol.requests.request import ALL_FEATURES
from darkbloom_provider.protocol.signed import response_hash
from support.daemon_parts import MODEL, PROMPT_TOKENS, FakeEngine, FakeReply, chat, desk
from support.manual_time import settle

QWEN = LoadedModel(
    MODEL, 1024, 10, 0.0, "<tool_call> <think> </think>", frozenset({"<think>", "</think>"})
)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def thinker(*pieces: str) -> FakeEngine:
    """An engine whose model thinks and calls tools as Qwen does."""
    engine = FakeEngine(*pieces)
    engine.model = QWEN
    return engine


def texts_of(reply: FakeReply, choice: int) -> str:
    """The text of one choice of a streamed answer."""
    deltas = [c for e in reply.events for c in e["choices"] if c["index"] == choice]
    return "".join(c["delta"].get("content", "") for c in deltas)


# ---------------------------------------------------------------- several answers


@pytest.mark.parametrize("stream", [True, False])
async def test_n_answers_are_generated_apart_and_the_prompt_counts_once(stream: bool) -> None:
    engine = FakeEngine()
    engine.scripts = (("A", "lpha"), ("Be", "ta", "!"), ("Gamma",))
    async with desk(engine) as d:
        reply = d.send(chat(n=3, stream=stream))
        await reply.over.wait()
    if stream:
        assert [texts_of(reply, index) for index in range(3)] == ["Alpha", "Beta!", "Gamma"]
        ends = [c for e in reply.events for c in e["choices"] if c["finish_reason"]]
        assert sorted(end["index"] for end in ends) == [0, 1, 2]
    else:
        (event,) = reply.events
        said = [choice["message"]["content"] for choice in event["choices"]]
        assert said == ["Alpha", "Beta!", "Gamma"]
        assert event["usage"]["completion_tokens"] == 6
    usage = Usage(prompt_tokens=PROMPT_TOKENS, completion_tokens=6)
    assert reply.completions == [(usage, response_hash("job-1", 6, "".join(reply.texts)))]
    assert reply.usages[-1] == usage
    counts = [told.completion_tokens for told in reply.usages]
    assert counts == sorted(counts)
    assert d.books.records[0].completion_tokens == 6


async def test_the_answers_of_a_seeded_request_have_seeds_of_their_own() -> None:
    async with desk() as d:
        for name in ("first", "again"):
            reply = d.send(chat(n=3, seed=7), name)
            await reply.over.wait()
        reply = d.send(chat(n=2), "unseeded")
        await reply.over.wait()
    seeds = [request.seed for request in d.engine.requests]
    assert seeds[0] == 7
    assert len(set(seeds[:3])) == 3
    assert seeds[3:6] == seeds[:3]
    assert seeds[6:] == [None, None]


async def test_a_list_of_prompts_is_answered_in_order_and_every_prompt_counts() -> None:
    engine = FakeEngine()
    engine.scripts = (("one",), ("uno",), ("two",), ("due",))
    async with desk(engine) as d:
        body = {"model": MODEL, "prompt": ["1", "2"], "n": 2, "endpoint": "/v1/completions"}
        reply = d.send(body)
        await reply.over.wait()
    (event,) = reply.events
    assert [choice["text"] for choice in event["choices"]] == ["one", "uno", "two", "due"]
    assert [request.prompt for request in engine.requests] == ["1", "1", "2", "2"]
    assert all(request.messages is None for request in engine.requests)
    assert event["usage"]["prompt_tokens"] == 2 * PROMPT_TOKENS


async def test_one_answer_that_fails_ends_the_request_and_stops_the_others() -> None:
    engine = FakeEngine()
    engine.scripts = (("fine", " so far"), (ValueError("broken"),))
    async with desk(engine) as d:
        reply = d.send(chat(n=2))
        await reply.over.wait()
        await d.runner.idle()
    assert reply.errors == [("the request could not be served", 500)]
    assert reply.completions == []
    assert d.books.records == []


async def test_a_cancelled_request_stops_all_its_answers() -> None:
    engine = FakeEngine(gate=asyncio.Event())
    async with desk(engine) as d:
        reply = d.send(chat(n=3))
        await settle()
        d.runner.cancel("job-1")
        await d.runner.idle()
        await settle()
        assert [generation.cancelled for generation in engine.generations] == [True] * 3
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("choice")]
    assert reply.texts == []


async def test_an_answer_that_the_engine_refuses_takes_those_before_it_along() -> None:
    class Full(FakeEngine):
        def submit(self, request: Any) -> Any:
            if len(self.requests) == 2:
                raise RuntimeError
            return super().submit(request)

    engine = Full(gate=asyncio.Event())
    async with desk(engine) as d:
        reply = d.send(chat(n=3))
        await reply.over.wait()
    assert all(generation.cancelled for generation in engine.generations)


# ---------------------------------------------------------------- thoughts, calls, stops


async def test_thoughts_and_calls_are_told_from_the_answer() -> None:
    engine = thinker("<think>Rome, ", "then.</think>", "Looking", CALL[:9], CALL[9:])
    async with desk(engine) as d:
        reply = d.send(chat(stream=True, tools=TOOLS))
        await reply.over.wait()
    deltas = [event["choices"][0]["delta"] for event in reply.events]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "Rome, then."
    assert "".join(delta.get("content", "") for delta in deltas) == "Looking"
    (call,) = [c for delta in deltas for c in delta.get("tool_calls", [])]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}
    assert call["id"].startswith("call_")
    assert reply.events[-1]["choices"][0]["finish_reason"] == "tool_calls"
    offered = engine.requests[0].tools or ()
    assert [tool["function"]["name"] for tool in offered] == ["weather"]


async def test_thoughts_that_the_prompt_opened_are_thoughts() -> None:
    engine = thinker("Let me see.</think>Yes.")
    engine.prompt_end = "<|im_start|>assistant\n<think>\n"
    async with desk(engine) as d:
        reply = d.send(chat())
        await reply.over.wait()
    message = reply.events[0]["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("Let me see.", "Yes.")


async def test_a_model_that_was_loaded_anew_is_read_as_it_writes_now() -> None:
    engine = thinker("<think>a</think>b")
    async with desk(engine) as d:
        first = d.send(chat(), "first")
        await first.over.wait()
        engine.model = replace(QWEN, chat_template=None, special_tokens=frozenset())
        second = d.send(chat(), "second")
        await second.over.wait()
    assert first.events[0]["choices"][0]["message"]["content"] == "b"
    assert second.events[0]["choices"][0]["message"]["content"] == "<think>a</think>b"


async def test_call_ids_are_unique_over_answers_and_requests() -> None:
    ids = []
    async with desk(thinker(CALL + CALL)) as d:
        for name in ("first", "second"):
            reply = d.send(chat(n=2, tools=TOOLS), name)
            await reply.over.wait()
            choices = reply.events[0]["choices"]
            ids += [call["id"] for c in choices for call in c["message"]["tool_calls"]]
    assert len(ids) == len(set(ids)) == 8


async def test_a_parser_that_fails_ends_its_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def feed(self, text: str) -> list[Any]:
            raise KeyError(text)

    async with desk() as d:
        with monkeypatch.context() as patched:
            module = "darkbloom_provider.engine.parsers.choice.ParserFactory.parser"
            patched.setattr(module, lambda *args, **kwargs: Broken())
            bad = d.send(chat(), "bad")
            await bad.over.wait()
        good = d.send(chat(), "good")
        await good.over.wait()
    assert bad.errors == [("the request could not be served", 500)]
    assert len(good.completions) == 1


async def test_a_message_of_anthropics_is_streamed_in_its_own_shape() -> None:
    engine = thinker("Hel", "lo")
    engine.stop_sequence = "\n\nHuman:"
    async with desk(engine) as d:
        body = {
            "model": MODEL,
            "endpoint": "/v1/messages",
            "max_tokens": 9,
            "system": "Be brief.",
            "messages": [{"role": "user", "content": "hi"}],
            "stop_sequences": ["\n\nHuman:"],
            "stream": True,
        }
        reply = d.send(body)
        await reply.over.wait()
    names = [text.splitlines()[0].removeprefix("event: ") for text in reply.texts]
    events = [json.loads(text.split("data: ", 1)[1]) for text in reply.texts]
    assert names[0] == "message_start"
    assert events[0]["message"]["usage"]["input_tokens"] == PROMPT_TOKENS
    assert names[-2:] == ["message_delta", "message_stop"]
    assert events[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "\n\nHuman:"}
    assert engine.requests[0].messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
    )
    assert engine.requests[0].stop == ("\n\nHuman:",)
    assert engine.requests[0].chat_template_kwargs == {"enable_thinking": False}


async def test_a_call_that_was_forced_is_read_from_what_the_schema_let_through() -> None:
    engine = thinker('{"city": ', '"Rome"}')
    async with desk(engine) as d:
        named = {"type": "function", "function": {"name": "weather"}}
        reply = d.send(chat(tools=TOOLS, tool_choice=named))
        await reply.over.wait()
    (choice,) = reply.events[0]["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    structure = engine.requests[0].structure
    assert structure is not None
    assert structure.source == "tools"
    assert json.loads(structure.schema) == TOOLS[0]["function"]["parameters"]


@pytest.mark.parametrize("stream", [True, False])
async def test_one_call_at_a_time_ends_the_answer_at_the_first(stream: bool) -> None:
    engine = thinker("Well.", CALL, CALL, "never read")
    async with desk(engine) as d:
        body = chat(tools=TOOLS, parallel_tool_calls=False, stream=stream)
        reply = d.send(body)
        await reply.over.wait()
    message = "delta" if stream else "message"
    said = [choice[message] for event in reply.events for choice in event["choices"]]
    assert len([call for part in said for call in part.get("tool_calls", ())]) == 1
    assert "".join(part.get("content", "") for part in said) == "Well."
    assert engine.generations[0].cancelled
    ((usage, _),) = reply.completions
    assert usage.completion_tokens == 2


async def test_the_users_of_one_consumer_are_kept_apart() -> None:
    async with desk() as d:
        for number, who in enumerate([{"user": "a"}, {"safety_identifier": "b"}, {}]):
            reply = d.send(chat(**who), f"job-{number}")
            await reply.over.wait()
    assert [request.tenant for request in d.engine.requests] == ["a", "b", None]
    assert "tenant" not in repr(d.engine.requests)


# ---------------------------------------------------------------- parameters


async def test_what_changes_how_tokens_are_chosen_reaches_the_engine() -> None:
    token = TokenLogprob(
        TokenChoice(b"Hi", -0.5), (TokenChoice(b"Hi", -0.5), TokenChoice(b"\xe2", -2))
    )
    engine = FakeEngine(Delta("Hi", 1, (token,)))
    async with desk(engine, served=ALL_FEATURES) as d:
        reply = d.send(
            chat(
                presence_penalty=1,
                frequency_penalty=-1,
                logit_bias={"5": 2},
                logprobs=True,
                top_logprobs=2,
                ignore_eos=True,
                response_format={
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": "object"}},
                },
                chat_template_kwargs={"enable_thinking": False},
            )
        )
        await reply.over.wait()
    (request,) = engine.requests
    assert (request.presence_penalty, request.frequency_penalty) == (1, -1)
    assert (request.logit_bias, request.logprobs, request.ignore_eos) == (((5, 2.0),), 2, True)
    assert request.structure is not None
    assert json.loads(request.structure.schema) == {"type": "object"}
    assert request.chat_template_kwargs == {"enable_thinking": False}
    (told,) = reply.events[0]["choices"][0]["logprobs"]["content"]
    assert (told["token"], told["logprob"], told["bytes"]) == ("Hi", -0.5, [72, 105])
    assert [other["bytes"] for other in told["top_logprobs"]] == [[72, 105], [0xE2]]


async def test_a_parameter_that_is_not_served_is_refused_by_its_name() -> None:
    async with desk(served=ALL_FEATURES - {"tool_choice"}) as d:
        reply = d.send(chat(tools=TOOLS, tool_choice="required"))
        await reply.over.wait()
    assert reply.errors == [("tool_choice is not served by this provider", 400)]


async def test_parameters_nobody_knows_are_counted_by_name_within_a_bound() -> None:
    async with desk() as d:
        for number in range(8):
            names = {f"wish_{number}_{i}": 1 for i in range(30)}
            reply = d.send(chat(verbosity="low", **names), f"job-{number}")
            await reply.over.wait()
        told = d.runner.counts().ignored_parameters
    assert told["verbosity"] == 8
    assert len(told) <= 65
    assert sum(told.values()) == 8 * 31
