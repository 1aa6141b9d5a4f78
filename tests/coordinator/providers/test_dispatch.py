"""Who is served when: the queue of a model, the tries before the first chunk, and none after it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from darkbloom_provider.coordinator.settings import Limits, Policy, Timing
from support.network import QUICK, Network, chat, network
from support.scripted_provider import MODEL, WALLET, Job, ScriptedProvider, scripted_provider

ONE_AT_A_TIME = Policy(max_requests=1)


async def answer(job: Job) -> None:
    await job.accept()
    await job.answer("Hello", usage=(1000, 2000))
    await job.complete(1000, 2000)


async def idle(job: Job) -> None:
    del job


async def until_cancelled(job: Job) -> None:
    await job.accept()
    await job.cancelled.wait()


@contextlib.asynccontextmanager
async def failing(net: Network, count: int) -> AsyncIterator[list[ScriptedProvider]]:
    """So many providers that accept and then fail, each with its own message."""

    async def fail(job: Job) -> None:
        await job.accept()
        await job.fail("engine failed", 500)

    async with contextlib.AsyncExitStack() as stack:
        providers = [
            await stack.enter_async_context(scripted_provider(net.ws_url, fail))
            for _ in range(count)
        ]
        await net.until(lambda: net.verified() == count)
        yield providers


def waiting(net: Network, count: int) -> bool:
    return net.coordinator.hub.waiting(MODEL) == count


async def queued(net: Network, content: str) -> asyncio.Task[httpx.Response]:
    """A request that waits for a provider."""
    before = net.coordinator.hub.waiting(MODEL)
    request = asyncio.create_task(net.ask(content=content))
    await net.until(lambda: waiting(net, before + 1))
    return request


def contents(provider: ScriptedProvider) -> list[str]:
    return [job.body["messages"][0]["content"] for job in provider.jobs.values()]


# ---------------------------------------------------------------- the queue


def test_the_networks_own_figures_are_the_defaults() -> None:
    timing, limits = Timing(), Limits()
    assert (limits.queue_per_model, timing.queue_wait) == (10, 120)
    assert (limits.attempts, timing.accept, timing.idle) == (3, 10, 600)
    assert (timing.challenge_interval, timing.challenge_answer) == (300, 30)
    assert (timing.challenge_fresh, limits.challenge_failures) == (360, 3)
    assert (timing.eviction_age, timing.eviction_scan) == (90, 30)
    assert (timing.write_challenge, timing.write_cancel) == (5, 2)


async def test_those_who_wait_are_served_in_the_order_they_came(tmp_path: Path) -> None:
    async with network(tmp_path, policy=ONE_AT_A_TIME) as net:
        requests = [await queued(net, content) for content in "abc"]
        async with scripted_provider(net.ws_url, answer) as provider:
            replies = await asyncio.gather(*requests)
            assert [reply.status_code for reply in replies] == [200, 200, 200]
            assert contents(provider) == ["a", "b", "c"]


async def test_nobody_who_comes_later_goes_first(tmp_path: Path) -> None:
    async with (
        network(tmp_path, policy=ONE_AT_A_TIME) as net,
        scripted_provider(net.ws_url, answer) as provider,
    ):
        await net.until(lambda: net.verified() == 1)
        [session] = net.coordinator.hub.registry
        session.metrics = session.metrics.model_copy(update={"thermal_state": "critical"})
        first = await queued(net, "first")
        # It has cooled, and nobody has noticed yet.
        session.metrics = session.metrics.model_copy(update={"thermal_state": "nominal"})
        second = asyncio.create_task(net.ask(content="second"))
        await asyncio.gather(first, second)
        assert contents(provider) == ["first", "second"]


async def test_the_request_that_finds_the_queue_full_is_refused_at_once(tmp_path: Path) -> None:
    timing = replace(QUICK, queue_wait=60)
    async with network(tmp_path, timing=timing, limits=Limits(queue_per_model=2)) as net:
        requests = [await queued(net, content) for content in "ab"]
        refused = await net.ask(content="c")
        assert refused.status_code == 503
        assert refused.json()["error"]["type"] == "model_not_available"
        assert waiting(net, 2)
        for request in requests:
            request.cancel()
        await net.idle()


async def test_one_who_stops_waiting_leaves_the_queue_and_its_place(tmp_path: Path) -> None:
    async with network(tmp_path, limits=Limits(queue_per_model=1)) as net:
        first = await queued(net, "gone")
        first.cancel()
        await net.until(lambda: waiting(net, 0))
        second = await queued(net, "stays")
        async with scripted_provider(net.ws_url, answer) as provider:
            assert (await second).status_code == 200
            assert contents(provider) == ["stays"]
        assert sorted(await net.job_states()) == ["refunded", "settled"]


async def test_a_request_that_waited_to_the_deadline_is_told_and_leaves(tmp_path: Path) -> None:
    async with network(tmp_path, timing=replace(QUICK, queue_wait=0.02)) as net:
        reply = await net.ask()
        assert (reply.status_code, reply.json()["error"]["type"]) == (503, "model_not_available")
        assert "queue timeout" in reply.json()["error"]["message"]
        assert waiting(net, 0)
        assert await net.spent() == 0


async def test_a_wish_that_cannot_be_met_holds_up_nobody_behind_it(tmp_path: Path) -> None:
    async with network(tmp_path) as net, scripted_provider(net.ws_url, answer):
        await net.until(lambda: net.verified() == 1)
        pinned = asyncio.create_task(
            net.http.post("/v1/chat/completions", json=chat(provider_serial="NOBODYS"))
        )
        await net.until(lambda: waiting(net, 1))
        assert (await net.ask()).status_code == 200
        pinned.cancel()
        await net.idle()


async def test_one_model_s_queue_is_not_the_others(tmp_path: Path) -> None:
    other = "qwen3.5-27b-claude-opus-8bit"
    async with (
        network(tmp_path, limits=Limits(queue_per_model=1)) as net,
        scripted_provider(net.ws_url, answer),
    ):
        await net.until(lambda: net.verified() == 1)
        elsewhere = asyncio.create_task(net.ask(model=other))
        await net.until(lambda: net.coordinator.hub.waiting(other) == 1)
        assert (await net.ask()).status_code == 200
        elsewhere.cancel()
        await net.idle()


# ---------------------------------------------------------------- tries


async def test_three_providers_are_tried_each_once_on_one_reservation(tmp_path: Path) -> None:
    async with network(tmp_path) as net, failing(net, 4) as providers:
        reply = await net.ask()
        assert (reply.status_code, reply.json()["error"]["type"]) == (500, "provider_error")
        assert sorted(len(provider.jobs) for provider in providers) == [0, 1, 1, 1]
        assert await net.job_states() == ["refunded"]
        assert await net.spent() == 0
        ids = [job_id for provider in providers for job_id in provider.jobs]
        assert len(set(ids)) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_after_the_first_chunk_nobody_else_is_asked(tmp_path: Path, *, stream: bool) -> None:
    async def fail_late(job: Job) -> None:
        await job.say("Hel")
        await job.fail()

    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, fail_late, wallet_address=WALLET) as one,
        scripted_provider(net.ws_url, fail_late, wallet_address=WALLET) as two,
    ):
        await net.until(lambda: net.verified() == 2)
        await net.ask(stream=stream)
        await net.idle()
        assert len(one.jobs) + len(two.jobs) == 1
        assert (await net.spent(), await net.balance(WALLET)) == (0, 0)


async def test_a_provider_that_is_cut_off_before_the_first_chunk_is_replaced(
    tmp_path: Path,
) -> None:
    async def hang_up(job: Job) -> None:
        await job.accept()
        await job.provider.connection.close()

    async with network(tmp_path) as net:
        async with scripted_provider(net.ws_url, hang_up, decode_tps=400.0):
            await net.until(lambda: net.verified() == 1)
            async with scripted_provider(net.ws_url, answer, decode_tps=10.0) as other:
                await net.until(lambda: net.verified() == 2)
                assert (await net.ask()).status_code == 200
                assert len(other.jobs) == 1
        assert await net.job_states() == ["settled"]


# ---------------------------------------------------------------- the consumer leaves


@pytest.mark.parametrize("chunks", [0, 1, 2])
async def test_when_the_consumer_leaves_the_provider_is_told_before_and_after_the_first_chunk(
    tmp_path: Path, chunks: int
) -> None:
    async def some(job: Job) -> None:
        await job.accept()
        for _ in range(chunks):
            await job.say("word ")
        await job.cancelled.wait()

    async with network(tmp_path) as net, scripted_provider(net.ws_url, some) as provider:
        await net.until(lambda: net.verified() == 1)

        async def leave() -> None:
            async with net.http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as r:
                seen = 0
                async for text in r.aiter_text():
                    seen += text.count("data: ")
                    if seen >= chunks:
                        return

        request = asyncio.create_task(leave())
        await net.until(lambda: bool(provider.jobs))
        if chunks:
            await request
        else:
            request.cancel()
        await net.until(lambda: provider.cancels == list(provider.jobs))
        await net.idle()
        [session] = net.coordinator.hub.registry
        assert session.attempts == {}


async def test_a_consumer_that_leaves_while_waiting_never_reaches_a_provider(
    tmp_path: Path,
) -> None:
    async with (
        network(tmp_path, policy=ONE_AT_A_TIME) as net,
        scripted_provider(net.ws_url, until_cancelled) as provider,
    ):
        await net.until(lambda: net.verified() == 1)
        running = asyncio.create_task(net.ask(content="running"))
        await net.until(lambda: bool(provider.jobs))
        left = await queued(net, "left")
        left.cancel()
        await net.until(lambda: waiting(net, 0))
        running.cancel()
        await net.idle()
        assert contents(provider) == ["running"]
        assert await net.spent() == 0
