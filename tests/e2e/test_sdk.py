"""OpenAI's own client library in a chat, by both ways to a provider."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest

from support.sdk import (
    CALL,
    PARAMETERS,
    WAYS,
    Open,
    ScriptedEngine,
    read_all,
    route,
    said,
    user,
)

TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}

BIAS = {"3": 11, "4": 10}
"""Makes a model of random numbers open its thoughts and close them, sooner or later."""


@pytest.fixture(params=WAYS)
def opened(request: pytest.FixtureRequest, home_root: Path, tiny_model: Path) -> Open:
    """Opens each way to the tiny model; with an engine given, to what that one says."""
    return partial(route, request.param, home_root, tiny_model)


@pytest.fixture(params=WAYS)
def thinking(request: pytest.FixtureRequest, home_root: Path, thinking_model: Path) -> Open:
    """Opens each way to the tiny model whose template and vocabulary know thoughts."""
    return partial(route, request.param, home_root, thinking_model)


def _thought(chunks: list[Any]) -> str:
    found = [choice.delta for chunk in chunks for choice in chunk.choices]
    return "".join(getattr(delta, "reasoning", None) or "" for delta in found)


# ---------------------------------------------------------------- chat


async def test_chat_whole_and_streamed_say_the_same(opened: Open) -> None:
    async with opened() as one:
        ask: Any = partial(
            one.openai.chat.completions.create,
            model=one.model,
            messages=user("What is light?"),
            max_tokens=24,
            temperature=0,
        )
        whole = await ask()
        chunks = await read_all(await ask(stream=True, stream_options={"include_usage": True}))
    assert whole.choices[0].finish_reason == "length"
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].message.content
    assert said(chunks) == whole.choices[0].message.content
    assert len([chunk for chunk in chunks if said([chunk])]) > 1
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == [
        "length"
    ]
    assert chunks[-1].usage == whole.usage
    assert (whole.usage.completion_tokens, whole.model) == (24, one.model)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 24


async def test_models_are_listed(opened: Open) -> None:
    async with opened() as one:
        assert [model.id async for model in one.openai.models.list()] == [one.model]


async def test_a_stop_string_ends_the_answer_before_it(opened: Open) -> None:
    async with opened() as one:
        ask: Any = partial(
            one.openai.chat.completions.create,
            model=one.model,
            messages=user("Say something"),
            max_tokens=24,
            temperature=0,
        )
        text = (await ask()).choices[0].message.content
        stop = text[10:14]
        stopped = (await ask(stop=[stop, "never said"])).choices[0]
        streamed = await read_all(await ask(stop=stop, stream=True))
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == text[: text.index(stop)]
    assert said(streamed) == stopped.message.content
    assert [c.finish_reason for chunk in streamed for c in chunk.choices if c.finish_reason] == [
        "stop"
    ]


async def test_n_answers_are_different_and_a_seed_brings_them_back(opened: Open) -> None:
    async with opened() as one:
        ask: Any = partial(
            one.openai.chat.completions.create,
            model=one.model,
            messages=user("Say something"),
            max_tokens=16,
            temperature=1,
            seed=11,
        )
        first, again = await ask(n=3), await ask(n=3)
        alone = await ask()
        chunks = await read_all(await ask(n=3, stream=True))
    texts = [choice.message.content for choice in first.choices]
    assert len(set(texts)) == 3
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert texts == [choice.message.content for choice in again.choices]
    assert texts == [said(chunks, index) for index in range(3)]
    assert texts[0] == alone.choices[0].message.content
    assert first.usage.completion_tokens == 48
    assert first.usage.prompt_tokens == alone.usage.prompt_tokens


async def test_many_conversations_at_once_all_get_their_own_answer(opened: Open) -> None:
    async with opened() as one:

        async def ask(number: int) -> str | None:
            answer = await one.openai.chat.completions.create(
                model=one.model,
                messages=user(f"Count to {number}"),
                max_tokens=16,
                temperature=0,
            )
            return answer.choices[0].message.content

        alone = [await ask(number) for number in range(6)]
        together = await asyncio.gather(*(ask(number) for number in range(6)))
    assert together == alone


async def test_log_probabilities_tell_every_token_and_its_likeliest_rivals(opened: Open) -> None:
    async with opened() as one:
        ask: Any = partial(
            one.openai.chat.completions.create,
            model=one.model,
            messages=user("Say something"),
            max_tokens=8,
            temperature=0,
            logprobs=True,
            top_logprobs=3,
        )
        choice = (await ask()).choices[0]
        chunks = await read_all(await ask(stream=True))
    tokens = choice.logprobs.content
    assert len(tokens) == 8
    assert b"".join(bytes(t.bytes) for t in tokens).decode() == choice.message.content
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob <= 0
    streamed = [t for c in chunks for d in c.choices if d.logprobs for t in d.logprobs.content]
    assert [t.token for t in streamed] == [t.token for t in tokens]


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}


async def test_an_answer_obeys_the_schema_it_was_asked_for(opened: Open) -> None:
    async with opened() as one:
        ask: Any = partial(
            one.openai.chat.completions.create,
            model=one.model,
            messages=user("Where to?"),
            max_tokens=600,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True},
            },
        )
        whole = [(await ask(seed=seed)).choices[0] for seed in range(3)]
        chunks = await read_all(await ask(stream=True, seed=1))
        with pytest.raises(openai.BadRequestError):
            await ask(response_format={"type": "json_schema", "json_schema": {}})
    for text in [*(choice.message.content for choice in whole), said(chunks)]:
        trip = json.loads(text)
        assert set(trip) == {"city", "days"}
        assert trip["city"] in {"Rome", "Oslo"}
        assert 1 <= trip["days"] <= 9
    assert {choice.finish_reason for choice in whole} == {"stop"}


async def test_an_answer_can_be_any_object(opened: Open) -> None:
    async with opened() as one:
        answer = await one.openai.chat.completions.create(
            model=one.model,
            messages=user("Where to?"),
            max_tokens=40,
            temperature=0,
            response_format={"type": "json_object"},
        )
    choice = answer.choices[0]
    assert (choice.message.content or "").lstrip().startswith("{")
    # A model of random numbers does not find an object's end by itself.
    assert choice.finish_reason == "length"


class Trip(pydantic.BaseModel):
    city: Literal["Rome", "Oslo"]
    sure: bool


async def test_the_clients_own_parsing_gives_typed_answers_whole_and_streamed(
    opened: Open,
) -> None:
    async with opened() as one:
        chat = one.openai.chat.completions
        ask: dict[str, Any] = {
            "model": one.model,
            "messages": user("Where to?"),
            "max_tokens": 600,
            "seed": 4,
            "response_format": Trip,
        }
        parsed = (await chat.parse(**ask)).choices[0].message.parsed
        async with chat.stream(**ask) as stream:
            kinds = {event.type async for event in stream}
            streamed = (await stream.get_final_completion()).choices[0].message.parsed
    assert isinstance(parsed, Trip)
    assert isinstance(streamed, Trip)
    assert {"chunk", "content.delta", "content.done"} <= kinds


async def test_a_thinking_model_thinks_first_and_then_obeys_the_schema(thinking: Open) -> None:
    async with thinking() as one:
        ask: Any = partial(
            one.openai.chat.completions.create,
            model=one.model,
            messages=user("Where to?"),
            max_tokens=600,
            temperature=1,
            seed=2,
            logit_bias=BIAS,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True},
            },
        )
        bodies: list[dict[str, Any]] = [
            {},
            {"chat_template_kwargs": {"enable_thinking": True, "opens_thoughts": True}},
            {"chat_template_kwargs": {"enable_thinking": False}},
        ]
        whole = [(await ask(extra_body=body)).choices[0] for body in bodies]
        streamed = [await read_all(await ask(extra_body=body, stream=True)) for body in bodies]
    for choice, chunks in zip(whole, streamed, strict=True):
        assert json.loads(choice.message.content)["city"] in {"Rome", "Oslo"}
        assert said(chunks) == choice.message.content
        assert choice.finish_reason == "stop"
    thoughts = [getattr(choice.message, "reasoning", None) for choice in whole]
    assert thoughts[0]
    assert thoughts[1]
    assert not thoughts[2]
    for told, chunks in zip(thoughts, streamed, strict=True):
        assert _thought(chunks) == (told or "")


async def test_a_thinking_model_thinks_before_a_call_it_has_to_make(thinking: Open) -> None:
    async with thinking() as one:
        ask: Any = partial(
            one.openai.chat.completions.create,
            model=one.model,
            messages=user("Where to?"),
            max_tokens=600,
            temperature=1,
            seed=2,
            logit_bias=BIAS,
            tools=[{"type": "function", "function": {"name": "book", "parameters": SCHEMA}}],
            tool_choice="required",
        )
        whole = (await ask()).choices[0]
        chunks = await read_all(await ask(stream=True))
    (call,) = whole.message.tool_calls
    assert json.loads(call.function.arguments)["city"] in {"Rome", "Oslo"}
    assert whole.finish_reason == "tool_calls"
    assert not whole.message.content
    assert whole.message.reasoning == _thought(chunks) != ""
    fragments = [t for c in chunks for d in c.choices for t in d.delta.tool_calls or []]
    assert "".join(f.function.arguments or "" for f in fragments) == call.function.arguments


async def test_penalties_and_biases_change_what_is_said(opened: Open) -> None:
    async with opened() as one:
        ask: Any = partial(
            one.openai.chat.completions.create,
            model=one.model,
            messages=user("Say something"),
            max_tokens=24,
            temperature=0,
        )
        plain = (await ask()).choices[0].message.content
        biased = (await ask(logit_bias={"200": 100})).choices[0].message.content
        penalized = (await ask(presence_penalty=2, frequency_penalty=2)).choices[0].message.content
    assert len({plain, biased, penalized}) == 3


# ---------------------------------------------------------------- tools, thoughts


async def test_tools_are_called_and_their_resultsread_all(opened: Open) -> None:
    engine = ScriptedEngine()
    engine.scripts = (
        ("<think>Rome.", "</think>", "One moment.", CALL[:20], CALL[20:]),
        ("<think>Rome.</think>One moment.", CALL),
        ("Sunny.",),
    )
    async with opened(engine) as one:
        ask: Any = partial(one.openai.chat.completions.create, model=one.model, tools=[TOOL])
        question = user("Weather in Rome?")
        chunks = await read_all(await ask(messages=question, stream=True))
        answer = (await ask(messages=question)).choices[0]
        (call,) = answer.message.tool_calls
        result = {"role": "tool", "tool_call_id": call.id, "content": "22 degrees, clear"}
        last = await ask(messages=[*question, answer.message.model_dump(), result])
    assert answer.finish_reason == "tool_calls"
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "weather",
        {"city": "Rome"},
    )
    assert answer.message.content == "One moment."
    assert answer.message.reasoning == "Rome."
    fragments = [t for c in chunks for d in c.choices for t in d.delta.tool_calls or []]
    assert fragments[0].function.name == "weather"
    text = "".join(fragment.function.arguments or "" for fragment in fragments)
    assert json.loads(text) == {"city": "Rome"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert said(chunks) == "One moment."
    assert last.choices[0].message.content == "Sunny."
    roles = [message["role"] for message in engine.requests[-1].messages or ()]
    assert roles == ["user", "assistant", "tool"]


async def test_a_model_can_be_made_to_call_a_tool(opened: Open) -> None:
    async with opened() as one:
        ask: Any = partial(
            one.openai.chat.completions.create,
            model=one.model,
            messages=user("Where to?"),
            max_tokens=600,
            temperature=1,
            seed=11,
            tools=[
                {"type": "function", "function": {"name": "book", "parameters": SCHEMA}},
                {"type": "function", "function": {"name": "sell", "parameters": SCHEMA}},
            ],
        )
        named = await ask(tool_choice={"type": "function", "function": {"name": "sell"}})
        any_of_them = await ask(tool_choice="required")
        chunks = await read_all(await ask(tool_choice="required", stream=True))
    (call,) = named.choices[0].message.tool_calls
    assert call.function.name == "sell"
    (other,) = any_of_them.choices[0].message.tool_calls
    assert other.function.name in {"book", "sell"}
    (streamed,) = [t for c in chunks for d in c.choices for t in d.delta.tool_calls or []]
    for told in (call, other, streamed):
        assert json.loads(told.function.arguments)["city"] in {"Rome", "Oslo"}
    assert any_of_them.choices[0].finish_reason == "tool_calls"


# ---------------------------------------------------------------- errors, leaving


async def test_errors_arrive_as_the_clients_own_exceptions(opened: Open) -> None:
    async with opened() as one:
        ask: Any = partial(one.openai.chat.completions.create, messages=user("hi"))
        with pytest.raises(openai.BadRequestError, match="temperature"):
            await ask(model=one.model, temperature=9)
        with pytest.raises(openai.NotFoundError):
            await ask(model="no-such-model")
        with pytest.raises(openai.AuthenticationError):
            await one.openai.with_options(api_key="wrong").models.list()
        with pytest.raises(openai.BadRequestError, match="n "):
            await ask(model=one.model, n=1000)


async def test_a_client_that_stops_reading_stops_the_engine(opened: Open) -> None:
    async with opened() as one:
        stream = await one.openai.chat.completions.create(
            model=one.model, messages=user("Talk"), max_tokens=900, temperature=0, stream=True
        )
        async for chunk in stream:
            if chunk.choices:
                break
        await stream.close()
        await one.idle()
        jobs = one.supervisor.status().jobs
    assert (jobs.cancelled, jobs.served) == (1, 0)
