"""The money of a request is the same whatever dialect it is asked in, however it ends.

Prices: 50 000 in, 200 000 out. `usage=(1000, 2000)` costs 50 + 400 = 450. The books are audited at
the end of every test, by the network itself.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.coordinator.settings import Limits
from darkbloom_provider.protocol.answers.answer import Answer
from darkbloom_provider.protocol.answers.anthropic import StreamedMessage, WholeMessage
from darkbloom_provider.protocol.answers.chat import StreamedChat, Whole
from darkbloom_provider.protocol.answers.completions import StreamedCompletion, WholeCompletion
from darkbloom_provider.protocol.messages import Usage
from darkbloom_provider.protocol.output import ContentDelta
from support.network import Network, chat, network
from support.scripted_provider import MODEL, WALLET, Job, Script, scripted_provider

TURNS = [{"role": "user", "content": "hello"}]


@dataclass(frozen=True, eq=False)
class Way:
    """One dialect as a consumer asks in it."""

    path: str
    asked: dict[str, Any]

    def body(self, **more: Any) -> dict[str, Any]:
        return {"model": MODEL, "max_tokens": 4000} | self.asked | more

    async def ask(self, net: Network, **more: Any) -> Any:
        return await net.http.post(self.path, json=self.body(**more))


CHAT = Way("/v1/chat/completions", {"messages": TURNS})
COMPLETIONS = Way("/v1/completions", {"prompt": "hello"})
MESSAGES = Way("/v1/messages", {"messages": TURNS})
RESPONSES = Way("/v1/responses", {"input": "hello"})
every_dialect = pytest.mark.parametrize(
    "way", [CHAT, COMPLETIONS, MESSAGES, RESPONSES], ids=lambda way: way.path
)
both_providers = pytest.mark.parametrize("kind", ["ours", "chat only"])


def answer_of(job: Job, kind: str) -> Answer:
    """How a provider of this kind shapes its answer."""
    endpoint = job.body.get("endpoint") if kind == "ours" else None
    stream = bool(job.body.get("stream"))
    match endpoint, stream:
        case "/v1/completions", True:
            return StreamedCompletion("cmpl-1", 1, MODEL)
        case "/v1/completions", False:
            return WholeCompletion("cmpl-1", 1, MODEL, native=False)
        case "/v1/messages", True:
            return StreamedMessage("msg_1", MODEL)
        case "/v1/messages", False:
            return WholeMessage("msg_1", 1, MODEL, native=False)
        case _, True:
            return StreamedChat("chatcmpl-1", 1, MODEL)
        case _:
            return Whole("chatcmpl-1", 1, MODEL)


def says(kind: str, *words: str, ending: str = "complete") -> Script:
    """Says its words with running counts, 500 tokens each, then completes, fails or waits."""

    async def script(job: Job) -> None:
        await job.accept()
        answer = answer_of(job, kind)
        events = answer.start(1000)
        for number, word in enumerate(words, start=1):
            events += answer.pieces([ContentDelta(word)])
            for event in events:
                await job.chunk(event, usage=(1000, 500 * number))
            events = []
        match ending:
            case "fail":
                await job.fail("engine failed", 500)
            case "wait":
                await job.cancelled.wait()
                await job.complete(1000, 4000)
            case _:
                used = Usage(prompt_tokens=1000, completion_tokens=2000)
                for event in [*answer.finish("stop"), *answer.end(used)]:
                    await job.chunk(event, usage=(1000, 2000))
                await job.complete(1000, 2000)

    return script


def text_of(document: dict[str, Any]) -> str:
    """What a whole answer says, in the shape of its dialect and no other."""
    match document:
        case {"object": "chat.completion", "choices": [{"message": {"content": str(text)}}]}:
            return text
        case {"object": "text_completion", "choices": [{"text": str(text), **choice}]}:
            assert "message" not in choice
            return text
        case {"type": "message", "content": [{"type": "text", "text": str(text)}]}:
            assert not {"object", "choices", "created"} & set(document)
            return text
        case {"object": "response", "output": [{"content": [{"text": str(text)}]}]}:
            return text
    raise AssertionError(document)


def counted(document: dict[str, Any]) -> tuple[int, int]:
    """Tokens in and out, as the dialect calls them."""
    usage = document["usage"]
    if "input_tokens" in usage:
        assert "prompt_tokens" not in usage
        return usage["input_tokens"], usage["output_tokens"]
    return usage["prompt_tokens"], usage["completion_tokens"]


@every_dialect
@both_providers
async def test_a_whole_answer_has_the_shape_that_was_asked_for_and_costs_its_tokens(
    tmp_path: Path, way: Way, kind: str
) -> None:
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, says(kind, "Hel", "lo"), wallet_address=WALLET) as provider,
    ):
        reply = await way.ask(net)
        assert reply.status_code == 200, reply.text
        assert text_of(reply.json()) == "Hello"
        assert counted(reply.json()) == (1000, 2000)
        assert reply.json()["model"] == MODEL
        assert (await net.spent(), await net.balance(WALLET)) == (450, 450)
        assert reply.headers["x-inference-job-id"] in provider.jobs
        assert reply.headers["x-provider-trust-level"] == "none"
        assert reply.headers["x-provider-id"]
        assert reply.headers["x-request-id"]


@every_dialect
@both_providers
async def test_a_streamed_answer_costs_its_tokens(tmp_path: Path, way: Way, kind: str) -> None:
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, says(kind, "Hel", "lo"), wallet_address=WALLET),
    ):
        reply = await way.ask(net, stream=True)
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["x-inference-job-id"]
        assert reply.headers["x-provider-trust-level"] == "none"
        assert '"Hel"' in reply.text
        assert '"lo"' in reply.text
        assert reply.text.endswith("data: [DONE]\n\n") == (way in {CHAT, COMPLETIONS})
        last = {MESSAGES: "message_stop", RESPONSES: "response.completed"}.get(way, "[DONE]")
        assert last in reply.text.strip().split("\n\n")[-1]
        assert (await net.spent(), await net.balance(WALLET)) == (450, 450)


@every_dialect
async def test_leaving_mid_stream_charges_what_was_relayed(tmp_path: Path, way: Way) -> None:
    script = says("ours", "one", "two", "three", ending="wait")
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, script, wallet_address=WALLET) as provider,
    ):
        async with net.http.stream("POST", way.path, json=way.body(stream=True)) as response:
            text = ""
            async for piece in response.aiter_text():
                text += piece
                if "three" in text:
                    break
        await net.idle()
        # 1000 in (50) and 1500 out (300).
        assert (await net.spent(), await net.balance(WALLET)) == (350, 350)
        assert await net.job_states() == ["partial"]
        await net.until(lambda: provider.cancels == list(provider.jobs))


@every_dialect
async def test_leaving_before_the_first_word_costs_nothing(tmp_path: Path, way: Way) -> None:
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, says("ours", ending="wait")) as provider,
    ):
        request = asyncio.create_task(way.ask(net))
        await net.until(lambda: bool(provider.jobs))
        request.cancel()
        await net.idle()
        assert await net.spent() == 0
        await net.until(lambda: provider.cancels == list(provider.jobs))


@every_dialect
@pytest.mark.parametrize("stream", [True, False])
async def test_a_provider_that_fails_earns_nothing_and_the_consumer_is_told_in_its_shape(
    tmp_path: Path, way: Way, *, stream: bool
) -> None:
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, says("ours", "half", ending="fail"), wallet_address=WALLET),
    ):
        reply = await way.ask(net, stream=stream)
        assert (await net.spent(), await net.balance(WALLET)) == (0, 0)
        assert await net.job_states() == ["refunded"]
    assert reply.status_code == (200 if stream else 500)
    last = reply.text.strip().split("\n\n")[-1]
    error = json.loads(last.rpartition("data: ")[2])
    assert "[DONE]" not in reply.text
    if way is MESSAGES:
        assert last.startswith("event: error\n" if stream else "{")
        assert (error["type"], error["error"]["type"]) == ("error", "api_error")
    else:
        assert error["error"]["type"] == "provider_error"
        assert error.get("type") == ("error" if way is RESPONSES and stream else None)


@every_dialect
async def test_another_provider_is_tried_before_the_first_word(tmp_path: Path, way: Way) -> None:
    failed: list[Job] = []

    async def fail_once(job: Job) -> None:
        if failed:
            await says("ours", "Hello")(job)
        else:
            failed.append(job)
            await job.fail()

    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, fail_once),
        scripted_provider(net.ws_url, fail_once),
    ):
        await net.until(lambda: net.verified() == 2)
        reply = await way.ask(net)
        assert text_of(reply.json()) == "Hello"
        assert await net.spent() == 450
        assert await net.job_states() == ["settled"]


@every_dialect
async def test_what_cannot_be_paid_for_is_not_asked(tmp_path: Path, way: Way) -> None:
    async with (
        network(tmp_path, credit=799) as net,
        scripted_provider(net.ws_url, says("ours", "Hello")) as provider,
    ):
        reply = await way.ask(net)
        assert reply.status_code == 402
        expected = "billing_error" if way is MESSAGES else "insufficient_funds"
        assert reply.json()["error"]["type"] == expected
        assert await net.balance() == 799
        assert provider.jobs == {}


async def test_every_prompt_of_a_list_is_reserved_for(tmp_path: Path) -> None:
    async with network(tmp_path, credit=2399, limits=Limits(queue_per_model=0)) as net:
        assert (await COMPLETIONS.ask(net, prompt=["a", "b", "c"])).status_code == 402
        assert (await COMPLETIONS.ask(net, prompt=["a", "b"])).status_code == 503
        assert await net.balance() == 2399


async def test_a_chat_cannot_smuggle_in_another_endpoint(tmp_path: Path) -> None:
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, says("ours", "Hello")) as provider,
    ):
        await net.http.post("/v1/chat/completions", json=chat(endpoint="/v1/completions"))
        [job] = provider.jobs.values()
        assert "endpoint" not in job.body


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_what_is_asked_decides_between_chat_and_response(tmp_path: Path, path: str) -> None:
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, says("ours", "Hello")),
    ):
        chatted = await net.http.post(path, json=chat())
        responded = await net.http.post(path, json=RESPONSES.body(messages=[]))
    assert chatted.json()["object"] == "chat.completion"
    assert responded.json()["object"] == "response"
