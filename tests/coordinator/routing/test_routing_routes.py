"""`GET /v1/admin/routing`: the choice of a moment, and every figure behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.protocol.messages import Hardware, SystemMetrics
from support.credentials import bearer
from support.network import QUICK, Network, network
from support.scripted_provider import MODEL, Job, scripted_provider

ADMIN_KEY = "the-operators-own-key"
OTHER = "qwen3.5-27b-claude-opus-8bit"


async def idle(job: Job) -> None:
    del job


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Network]:
    async with network(tmp_path, admin_key=ADMIN_KEY) as net:
        yield net


async def asked(net: Network, **query: Any) -> dict[str, Any]:
    reply = await net.http.get(
        "/v1/admin/routing", params={"model": MODEL} | query, headers=bearer(ADMIN_KEY)
    )
    assert reply.status_code == 200, reply.text
    document: dict[str, Any] = reply.json()
    return document


async def refused(net: Network, **query: Any) -> tuple[int, dict[str, str]]:
    reply = await net.http.get("/v1/admin/routing", params=query, headers=bearer(ADMIN_KEY))
    return reply.status_code, reply.json()["error"]


async def test_the_chosen_comes_first_with_a_cost_that_is_the_sum_of_its_terms(
    net: Network,
) -> None:
    async with (
        scripted_provider(net.ws_url, idle, decode_tps=20.0),
        scripted_provider(net.ws_url, idle, decode_tps=200.0, prefill_tps=1000.0) as fast,
    ):
        await net.until(lambda: net.verified() == 2)
        document = await asked(net, prompt_tokens=1000, max_tokens=400)
        first, second = document["providers"]
        key = fast.keys.public_text
        chosen = next(s.id for s in net.coordinator.hub.registry if s.public_key == key)
        assert (first["provider_id"], first["chosen"], second["chosen"]) == (chosen, True, False)
        assert second["eligible"]
        assert document["summary"] == "One provider would get it"
        assert first["cost_terms_ms"]["prompt"] == 1000
        assert first["cost_terms_ms"]["answer"] == 2000
        assert first["cost_terms_ms"]["slot"] == 2500
        for provider in document["providers"]:
            terms = provider["cost_terms_ms"].values()
            assert provider["cost_ms"] == pytest.approx(sum(terms), abs=0.01)


async def test_the_explanation_and_the_next_request_agree(net: Network) -> None:
    async with (
        scripted_provider(net.ws_url, idle, decode_tps=20.0) as slow,
        scripted_provider(net.ws_url, idle, decode_tps=200.0) as fast,
    ):
        await net.until(lambda: net.verified() == 2)
        document = await asked(net, max_tokens=4000)
        request = asyncio.create_task(net.ask())
        await net.until(lambda: bool(fast.jobs or slow.jobs))
        [attempt] = [s for s in net.coordinator.hub.registry if s.attempts]
        assert attempt.id == document["providers"][0]["provider_id"]
        request.cancel()


async def test_every_reason_why_not_is_named_with_what_to_do(net: Network) -> None:
    hot = SystemMetrics(thermal_state="critical")
    async with scripted_provider(
        net.ws_url, idle, encrypted_response_chunks=False, answers=lambda _: None
    ) as provider:
        await provider.heartbeat(system_metrics=hot)
        hub = net.coordinator.hub
        await net.until(lambda: any(s.metrics == hot for s in hub.registry))
        [shown] = (await asked(net))["providers"]
        assert [reason["code"] for reason in shown["reasons"]] == [
            "challenge",
            "plain_chunks",
            "sip",
            "heat",
        ]
        assert all(reason["next_step"] for reason in shown["reasons"])
        assert not shown["eligible"]
        assert not shown["chosen"]


async def test_equals_are_told_as_such(net: Network) -> None:
    async with scripted_provider(net.ws_url, idle), scripted_provider(net.ws_url, idle):
        await net.until(lambda: net.verified() == 2)
        document = await asked(net)
        assert [provider["chosen"] for provider in document["providers"]] == [True, True]
        assert "Chance would decide among 2" in document["summary"]


async def test_with_nobody_connected_it_says_how_to_connect_one(net: Network) -> None:
    document = await asked(net)
    assert document["providers"] == []
    assert document["summary"] == "No provider is connected"
    assert "darkbloom serve --coordinator" in document["next_step"]


async def test_a_model_that_nobody_serves_is_told_apart(net: Network) -> None:
    async with scripted_provider(net.ws_url, idle):
        await net.until(lambda: net.verified() == 1)
        document = await asked(net, model=OTHER)
        assert document["summary"] == "No connected provider serves this model"
        assert f"--model {OTHER}" in document["next_step"]


async def test_those_who_wait_are_counted_while_everybody_is_busy(tmp_path: Path) -> None:
    policy = Policy(max_requests=1)
    async with (
        network(tmp_path, admin_key=ADMIN_KEY, policy=policy) as net,
        scripted_provider(net.ws_url, idle) as provider,
    ):
        await net.until(lambda: net.verified() == 1)
        running = asyncio.create_task(net.ask())
        await net.until(lambda: bool(provider.jobs))
        waiting = [asyncio.create_task(net.ask()) for _ in range(2)]
        await net.until(lambda: net.coordinator.hub.waiting(MODEL) == 2)
        document = await asked(net)
        assert (document["waiting"], document["waiting_limit"]) == (2, 10)
        assert document["summary"].startswith("Every provider of this model is busy")
        [shown] = document["providers"]
        assert (shown["in_flight"], shown["max_in_flight"], shown["queue"]) == (1, 1, 1)
        for request in (running, *waiting):
            request.cancel()
        await net.idle()


async def test_when_nobody_may_serve_it_the_summary_says_so(tmp_path: Path) -> None:
    async with (
        network(tmp_path, admin_key=ADMIN_KEY, policy=Policy(min_trust="hardware")) as net,
        scripted_provider(net.ws_url, idle, hardware=Hardware(memory_gb=64)),
    ):
        await net.until(lambda: net.verified() == 1)
        document = await asked(net)
        assert document["summary"] == "No provider may serve it now"
        assert document["providers"][0]["reasons"][0]["code"] == "low_trust"


async def test_a_model_that_is_not_known_is_refused_with_those_that_are(net: Network) -> None:
    status, error = await refused(net, model="unheard-of")
    assert (status, error["type"]) == (404, "model_not_found")
    assert MODEL in error["message"]


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"model": ""},
        {"model": MODEL, "prompt_tokens": "-1"},
        {"model": MODEL, "max_tokens": "lots"},
        {"model": MODEL, "max_tokens": "10000001"},
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(
    net: Network, query: dict[str, str]
) -> None:
    status, error = await refused(net, **query)
    assert (status, error["type"]) == (400, "invalid_request_error")


async def test_asking_changes_nothing(tmp_path: Path) -> None:
    timing = replace(QUICK, queue_wait=0.05)
    async with (
        network(tmp_path, admin_key=ADMIN_KEY, timing=timing) as net,
        scripted_provider(net.ws_url, idle) as provider,
    ):
        await net.until(lambda: net.verified() == 1)
        before = await asked(net)
        assert await asked(net) == before
        assert provider.jobs == {}
