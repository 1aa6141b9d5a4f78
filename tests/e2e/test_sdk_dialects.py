"""The vendors' own clients in completions, messages and responses, by each way that serves them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import anthropic
import openai
import pydantic
import pytest

from support.sdk import (
    CALL,
    PARAMETERS,
    WAYS,
    Open,
    Route,
    ScriptedEngine,
    read_all,
    route,
    user,
)

WEATHER: Any = {"name": "weather", "input_schema": PARAMETERS}
FUNCTION: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}


class Trip(pydantic.BaseModel):
    city: Literal["Rome", "Oslo"]
    sure: bool


@pytest.fixture(params=WAYS)
def opened(request: pytest.FixtureRequest, home_root: Path, tiny_model: Path) -> Open:
    """Opens each way to the tiny model."""
    return partial(route, request.param, home_root, tiny_model)


@asynccontextmanager
async def claude(one: Route, key: str | None = None) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """Anthropic's client, which sends its key as `x-api-key`."""
    async with anthropic.AsyncAnthropic(
        base_url=one.url, api_key=key or one.key, max_retries=0, timeout=30
    ) as client:
        yield client


# ---------------------------------------------------------------- completions


async def test_completions_continue_texts(opened: Open) -> None:
    async with opened() as one:
        ask: Any = partial(
            one.openai.completions.create, model=one.model, max_tokens=8, temperature=0
        )
        both = await ask(prompt=["the water", "a stone"], n=1)
        alone = await ask(prompt="a stone", logprobs=2)
        chunks = await read_all(
            await ask(prompt="a stone", stream=True, stream_options={"include_usage": True})
        )
        with pytest.raises(openai.BadRequestError, match="prompt"):
            await ask(prompt="")
        with pytest.raises(openai.BadRequestError, match="suffix"):
            await ask(prompt="a", suffix="b")
    assert [both.object, alone.object, chunks[0].object] == ["text_completion"] * 3
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[1].text == alone.choices[0].text
    assert "".join(c.text for chunk in chunks for c in chunk.choices) == alone.choices[0].text
    assert not hasattr(alone.choices[0], "message")
    assert len(alone.choices[0].logprobs.tokens) == 8
    assert both.usage.completion_tokens == 16
    assert chunks[-1].usage == alone.usage


# ---------------------------------------------------------------- messages


async def test_anthropics_client_talks_streams_and_calls_tools(opened: Open) -> None:
    engine = ScriptedEngine()
    engine.scripts = (("One moment.", CALL), ("One moment.", CALL), ("Sunny.",))
    async with opened(engine) as one, claude(one) as client:
        ask: dict[str, Any] = {
            "model": one.model,
            "max_tokens": 50,
            "system": "Be brief.",
            "messages": user("Weather in Rome?"),
            "tools": [WEATHER],
        }
        message = await client.messages.create(**ask)
        async with client.messages.stream(**ask) as stream:
            text = "".join([part async for part in stream.text_stream])
            streamed = await stream.get_final_message()
        call = message.content[1]
        assert isinstance(call, anthropic.types.ToolUseBlock)
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "22 degrees"}
        turns = [
            *user("Weather in Rome?"),
            {"role": "assistant", "content": [b.model_dump() for b in message.content]},
            {"role": "user", "content": [result]},
        ]
        last = await client.messages.create(**ask | {"messages": turns})
    assert message.stop_reason == streamed.stop_reason == "tool_use"
    assert [block.type for block in message.content] == ["text", "tool_use"]
    for told in (message, streamed):
        block = told.content[1]
        assert isinstance(block, anthropic.types.ToolUseBlock)
        assert (block.name, block.input) == ("weather", {"city": "Rome"})
    assert text == "One moment."
    assert message.usage.output_tokens == streamed.usage.output_tokens == 2
    assert set(message.model_dump(exclude_none=True)) <= {
        *("id", "type", "role", "model", "content", "stop_reason", "usage"),
    }
    assert isinstance(last.content[0], anthropic.types.TextBlock)
    assert last.content[0].text == "Sunny."
    roles = [turn["role"] for turn in engine.requests[-1].messages or ()]
    assert roles == ["system", "user", "assistant", "tool"]


async def test_a_message_says_why_it_ended(opened: Open) -> None:
    async with opened() as one, claude(one) as client:
        ask: Any = partial(
            client.messages.create,
            model=one.model,
            messages=user("Say something"),
            max_tokens=24,
            extra_body={"temperature": 0},
        )
        cut = await ask()
        text = cut.content[0].text
        stopped = await ask(stop_sequences=[text[10:14]])
        events = await read_all(await ask(stream=True))
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 24)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", text[10:14])
    assert text.startswith(stopped.content[0].text)
    assert [events[0].type, events[-1].type] == ["message_start", "message_stop"]
    assert events[0].message.usage.input_tokens == cut.usage.input_tokens


async def test_anthropics_client_raises_its_own_exceptions(opened: Open) -> None:
    async with opened() as one, claude(one) as client, claude(one, "wrong") as stranger:
        ask: dict[str, Any] = {"model": one.model, "max_tokens": 5, "messages": user("hi")}
        with pytest.raises(anthropic.BadRequestError, match="temperature") as wrong:
            await client.messages.create(**ask, extra_body={"temperature": 9})
        with pytest.raises(anthropic.NotFoundError) as unknown:
            await client.messages.create(**ask | {"model": "other"})
        with pytest.raises(anthropic.AuthenticationError) as foreign:
            await stranger.messages.create(**ask)
        bearer = anthropic.AsyncAnthropic(base_url=one.url, auth_token=one.key, max_retries=0)
        async with bearer:
            assert (await bearer.messages.create(**ask)).usage.output_tokens == 5
    assert [caught.value.type for caught in (wrong, unknown, foreign)] == [
        "invalid_request_error",
        "not_found_error",
        "authentication_error",
    ]


# ---------------------------------------------------------------- responses


async def test_a_response_whole_and_streamed_say_the_same(opened: Open) -> None:
    async with opened() as one:
        ask: Any = partial(
            one.openai.responses.create,
            model=one.model,
            instructions="Be brief.",
            input="What is light?",
            max_output_tokens=24,
            temperature=0,
        )
        whole = await ask(top_logprobs=2, include=["message.output_text.logprobs"])
        events = await read_all(await ask(stream=True))
        with pytest.raises(openai.BadRequestError, match="temperature"):
            await ask(temperature=9)
        with pytest.raises(openai.BadRequestError, match="previous_response_id"):
            await ask(previous_response_id="resp_1")
        with pytest.raises(openai.NotFoundError):
            await ask(model="other")
        chat = await one.openai.chat.completions.create(
            model=one.model,
            messages=[{"role": "system", "content": "Be brief."}, *user("What is light?")],
            max_tokens=24,
            temperature=0,
        )
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert whole.output_text == "".join(deltas) == chat.choices[0].message.content
    assert len(deltas) > 1
    tokens = whole.output[0].content[0].logprobs
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == whole.output_text
    assert {len(token.top_logprobs) for token in tokens} == {2}
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (whole.model, whole.instructions, whole.max_output_tokens) == (
        one.model,
        "Be brief.",
        24,
    )
    assert whole.usage == events[-1].response.usage
    assert whole.usage.output_tokens == 24
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]
    assert events[-1].response.output_text == whole.output_text


async def test_a_response_calls_tools_and_reads_their_results(opened: Open) -> None:
    engine = ScriptedEngine()
    said = ("<think>Rome.</think>One moment.", CALL)
    engine.scripts = (said, said, ("Sunny.",))
    async with opened(engine) as one:
        ask: Any = partial(one.openai.responses.create, model=one.model, tools=[FUNCTION])
        first = await ask(input="Weather in Rome?")
        async with one.openai.responses.stream(
            model=one.model, tools=[FUNCTION], input="Weather in Rome?"
        ) as stream:
            kinds = [event.type async for event in stream]
            streamed = await stream.get_final_response()
        call = first.output[-1]
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "22 degrees"}
        last = await ask(input=[*user("Weather in Rome?"), *first.output, result])
    both: list[Any] = [first, streamed]
    for told in both:
        assert [item.type for item in told.output] == ["reasoning", "message", "function_call"]
        assert told.output[0].summary[0].text == "Rome."
        assert told.output_text == "One moment."
        assert told.output[-1].name == "weather"
        assert json.loads(told.output[-1].arguments) == {"city": "Rome"}
        assert told.status == "completed"
    assert "response.reasoning_summary_text.delta" in kinds
    assert "response.function_call_arguments.done" in kinds
    assert last.output_text == "Sunny."
    roles = [turn["role"] for turn in engine.requests[-1].messages or ()]
    assert roles == ["user", "assistant", "assistant", "tool"]


async def test_the_clients_own_parsing_of_responses_gives_typed_answers(opened: Open) -> None:
    async with opened() as one:
        ask: dict[str, Any] = {
            "model": one.model,
            "input": user("Where to?"),
            "max_output_tokens": 600,
            "text_format": Trip,
        }
        parsed = await one.openai.responses.parse(**ask)
        async with one.openai.responses.stream(**ask) as stream:
            await stream.until_done()
            streamed = await stream.get_final_response()
    assert isinstance(parsed.output_parsed, Trip)
    assert isinstance(streamed.output_parsed, Trip)


# ---------------------------------------------------------------- leaving


async def test_a_client_that_stops_reading_stops_the_engine(opened: Open) -> None:
    async with opened() as one:
        stream = await one.openai.responses.create(
            model=one.model, input="Talk", max_output_tokens=900, temperature=0, stream=True
        )
        async for event in stream:
            if event.type == "response.output_text.delta":
                break
        await stream.close()
        await one.idle()
        jobs = one.supervisor.status().jobs
    assert (jobs.cancelled, jobs.served) == (1, 0)


async def test_a_client_that_reads_no_more_of_a_completion_stops_the_engine(opened: Open) -> None:
    async with opened() as one:
        stream = await one.openai.completions.create(
            model=one.model, prompt="a stone", max_tokens=900, temperature=0, stream=True
        )
        async for _ in stream:
            break
        await stream.close()
        await one.idle()
        jobs = one.supervisor.status().jobs
    assert (jobs.cancelled, jobs.served) == (1, 0)


async def test_anthropics_client_that_stops_reading_stops_the_engine(opened: Open) -> None:
    async with opened() as one, claude(one) as client:
        stream = await client.messages.create(
            model=one.model, messages=user("Talk"), max_tokens=900, stream=True
        )
        async for event in stream:
            if event.type == "content_block_delta":
                break
        await stream.close()
        await one.idle()
        jobs = one.supervisor.status().jobs
    assert (jobs.cancelled, jobs.served) == (1, 0)
