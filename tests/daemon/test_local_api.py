"""The local endpoint over real HTTP, the engine scripted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from darkbloom_provider.engine.errors import EngineClosedError, OverloadedError
from support.daemon_parts import MODEL, PROMPT_TOKENS, FakeEngine, chat
from support.local_endpoint import KEY, Endpoint, local_endpoint
from support.manual_time import settle
from support.processes import until

CHAT = "/v1/chat/completions"
MESSAGE = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


def events(text: str) -> list[str]:
    """The `data:` payloads of an event stream."""
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


async def raw(one: Endpoint, path: str, *headers: tuple[str, str]) -> httpx.Response:
    """A GET with exactly these headers besides the host."""
    async with httpx.AsyncClient(base_url=one.url) as http:
        return await http.get(path, headers=list(headers))


# ---------------------------------------------------------------- who is let in


async def test_without_the_key_nothing_but_health_is_answered() -> None:
    async with local_endpoint() as one:
        assert (await raw(one, "/health")).json() == {"status": "ok"}
        strangers: list[list[tuple[str, str]]] = [
            [],
            [("Authorization", "Bearer wrong")],
            [("x-api-key", "")],
        ]
        for headers in strangers:
            refused = await raw(one, "/v1/models", *headers)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
        for header in [("Authorization", f"Bearer {KEY}"), ("x-api-key", KEY)]:
            assert (await raw(one, "/v1/models", header)).status_code == 200
        assert (await raw(one, CHAT)).status_code == 401
        assert one.engine.requests == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Origin", "https://evil.example"),
        ("Origin", "null"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Host", "evil.example"),
        ("Host", "127.0.0.1.evil.example:8000"),
    ],
)
async def test_a_web_page_is_refused_even_with_the_key(name: str, value: str) -> None:
    async with local_endpoint() as one:
        refused = await one.http.post(CHAT, json=chat(), headers={name: value})
        preflight = await one.http.options(CHAT, headers={name: value})
    assert refused.status_code == preflight.status_code == 403
    assert not any(header.startswith("access-control") for header in preflight.headers)
    assert one.engine.requests == []


async def test_the_models_are_listed_and_told_one_by_one() -> None:
    async with local_endpoint() as one:
        (model,) = (await one.http.get("/v1/models")).json()["data"]
        assert (model["id"], model["object"]) == (MODEL, "model")
        assert (await one.http.get(f"/v1/models/{MODEL}")).json() == model
        assert (await one.http.get("/v1/models/other")).status_code == 404
        assert (await one.http.get("/v1/nothing")).status_code == 404
        assert (await one.http.post("/v1/v1/chat/completions")).status_code == 404
        assert (await one.http.post("/v1/models")).status_code == 405
        assert (await one.http.get(CHAT)).status_code == 405


# ---------------------------------------------------------------- answers


class Patient(FakeEngine):
    """Waits after every word until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = asyncio.Event()

    def submit(self, request: Any) -> Any:
        generation = super().submit(request)
        words = generation._deltas

        async def deltas() -> AsyncIterator[Any]:
            async for delta in words():
                yield delta
                await self.may_go_on.wait()

        generation._deltas = deltas  # type: ignore[method-assign] # only for this one
        return generation


async def test_the_first_words_leave_before_the_next_are_generated() -> None:
    engine = Patient()
    async with (
        local_endpoint(engine) as one,
        one.http.stream("POST", CHAT, json=chat(stream=True)) as response,
    ):
        parts = response.aiter_text()
        first = json.loads(events(await anext(parts))[0])
        assert first["choices"][0]["delta"]["content"] == "Hel"
        engine.may_go_on.set()
        rest = "".join([part async for part in parts])
    assert events(rest)[-1] == "[DONE]"
    assert response.headers["content-type"] == "text/event-stream"
    assert first["id"] == f"chatcmpl-{response.headers['x-request-id']}"


async def test_every_dialect_is_answered_whole_in_its_own_shape() -> None:
    async with local_endpoint() as one:
        said = (await one.http.post(CHAT, json=chat())).json()
        asked = {"model": MODEL, "prompt": "hi"}
        completion = (await one.http.post("/v1/completions", json=asked)).json()
        message = (await one.http.post("/v1/messages", json=MESSAGE)).json()
        counts = one.api.counts()
    assert said["choices"][0]["message"]["content"] == "Hello"
    assert said["usage"]["prompt_tokens"] == PROMPT_TOKENS
    assert completion["object"] == "text_completion"
    assert completion["choices"][0]["text"] == "Hello"
    assert (message["type"], message["content"]) == ("message", [{"type": "text", "text": "Hello"}])
    assert "choices" not in message
    assert (counts.served, counts.completion_tokens, counts.in_flight) == (3, 6, 0)


async def test_a_stream_of_anthropics_ends_without_a_foreign_mark() -> None:
    async with local_endpoint() as one:
        response = await one.http.post("/v1/messages", json=MESSAGE | {"stream": True})
    kinds = [json.loads(data)["type"] for data in events(response.text)]
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"


async def test_a_consumers_own_endpoint_field_does_not_change_the_dialect() -> None:
    async with local_endpoint() as one:
        answer = await one.http.post(CHAT, json=chat(endpoint="/v1/messages"))
    assert answer.json()["object"] == "chat.completion"


# ---------------------------------------------------------------- callers who leave


@pytest.mark.parametrize("stream", [True, False])
async def test_a_caller_who_hangs_up_stops_the_engine(stream: bool) -> None:
    engine = FakeEngine(gate=asyncio.Event())
    async with local_endpoint(engine) as one:
        asking = asyncio.create_task(one.http.post(CHAT, json=chat(n=2, stream=stream)))
        await until(lambda: len(engine.generations) == 2, "the request to run")
        assert one.api.in_flight() == {MODEL: 1}
        asking.cancel()
        await one.until_idle()
        assert all(generation.cancelled for generation in engine.generations)
        counts = one.api.counts()
    assert (counts.cancelled, counts.failed, counts.served) == (1, 0, 0)


async def test_a_caller_who_reads_nothing_holds_up_nobody() -> None:
    engine = FakeEngine(*["x" * 100_000] * 200)
    async with local_endpoint(engine) as one:
        async with one.http.stream("POST", CHAT, json=chat(stream=True)) as unread:
            assert unread.status_code == 200
            engine.pieces = ("quick",)
            quick = await one.http.post(CHAT, json=chat())
            assert quick.json()["choices"][0]["message"]["content"] == "quick"
            assert one.api.counts().in_flight == 1
        await one.until_idle()
        assert one.api.counts().cancelled == 1


# ---------------------------------------------------------------- refusals and failures


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"not json", 400, None),
        (chat(temperature=9), 400, "temperature"),
        (chat(tool_choice={"type": "function"}), 400, "tool_choice"),
        (chat(n=33), 400, "n"),
        (chat(model="other"), 404, None),
    ],
)
async def test_a_bad_request_is_refused_by_its_parameters_name(
    body: Any, status: int, param: str | None
) -> None:
    async with local_endpoint() as one:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        refused = await one.http.post(CHAT, content=content)
    assert refused.status_code == status
    error = refused.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert one.api.counts().failed == 1


async def test_a_body_too_large_is_refused_while_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkbloom_provider.daemon.local_caller.MAX_BODY_BYTES", 1000)
    async with local_endpoint() as one:
        refused = await one.http.post(CHAT, content=b"x" * 5000)
        assert refused.status_code == 413
        assert (await one.http.post(CHAT, json=chat())).status_code == 200


async def test_a_full_engine_says_try_again_in_every_dialect() -> None:
    engine = FakeEngine()
    engine.refuse = OverloadedError(MODEL, 32)
    async with local_endpoint(engine) as one:
        refused = await one.http.post(CHAT, json=chat(stream=True))
        message = await one.http.post("/v1/messages", json=MESSAGE)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["error"]["type"] == "server_error"
    assert message.json()["error"]["type"] == "overloaded_error"


async def test_a_stream_that_fails_ends_with_an_error_and_no_done() -> None:
    async with local_endpoint(FakeEngine("Hel", ValueError("SECRET"))) as one:
        response = await one.http.post(CHAT, json=chat(stream=True))
        message = await one.http.post("/v1/messages", json=MESSAGE | {"stream": True})
        assert one.api.counts().failed == 2
    last = json.loads(events(response.text)[-1])
    assert last["error"]["message"] == "the request could not be served"
    assert "[DONE]" not in response.text
    assert json.loads(events(message.text)[-1])["type"] == "error"
    assert "SECRET" not in response.text + message.text


async def test_one_request_too_many_is_refused_and_the_rest_go_on() -> None:
    gate = asyncio.Event()
    engine = FakeEngine(gate=gate)
    async with local_endpoint(engine, max_jobs=1) as one:
        first = asyncio.create_task(one.http.post(CHAT, json=chat()))
        await until(lambda: engine.generations, "the first")
        assert (await one.http.post(CHAT, json=chat())).status_code == 503
        gate.set()
        assert (await first).status_code == 200


# ---------------------------------------------------------------- stopping


async def test_a_drain_lets_answers_finish_and_refuses_new_ones() -> None:
    gate = asyncio.Event()
    engine = FakeEngine(gate=gate)
    async with local_endpoint(engine) as one:
        running = asyncio.create_task(one.http.post(CHAT, json=chat(stream=True)))
        await until(lambda: engine.generations, "the request")
        one.api.close("shutting down")
        draining = asyncio.create_task(one.server.drain(10))
        await settle()
        assert (await one.http.post(CHAT, json=chat())).status_code == 503
        assert not draining.done()
        gate.set()
        await draining
        assert events((await running).text)[-1] == "[DONE]"


async def test_what_runs_at_the_deadline_is_cut_and_told_so() -> None:
    engine = FakeEngine(gate=asyncio.Event())
    async with local_endpoint(engine) as one:
        running = asyncio.create_task(one.http.post(CHAT, json=chat(stream=True)))
        await until(lambda: engine.generations, "the request")
        one.api.close("shutting down")
        await one.server.drain(0)
        cut = await running
    assert cut.status_code == 500
    assert engine.generations[0].cancelled


async def test_an_engine_that_died_ends_the_endpoint_after_its_caller_was_told() -> None:
    engine = FakeEngine()
    engine.refuse = EngineClosedError()
    answer = None
    with pytest.RaisesGroup(EngineClosedError, flatten_subgroups=True):
        async with local_endpoint(engine) as one:
            answer = await one.http.post(CHAT, json=chat())
            await asyncio.Event().wait()
    assert answer is not None
    assert answer.status_code == 503
