"""`/v1/stats`: the network in numbers, as documented; and what is kept for how long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.coordinator.public.kept import MAX_KEPT, Kept
from darkbloom_provider.coordinator.public.stats import stats
from darkbloom_provider.coordinator.public.traffic import Traffic, traffic
from darkbloom_provider.protocol.messages import Heartbeat, HeartbeatStats
from support.books import CONSUMER, NOON, OWNER, Clock
from support.desk import Desk, front_desk
from support.network import network
from support.scripted_provider import MODEL, Job, scripted_provider

EMPTY = Traffic(0, 0, 0, [])


@pytest.fixture
async def desk(tmp_path: Path, place: Path | str) -> AsyncIterator[Desk]:
    async with front_desk(tmp_path, where=place) as desk:
        for name in (OWNER, CONSUMER):
            await desk.user(name)
        await desk.books(lambda shop: shop.deposit(10_000_000))
        yield desk


async def work(desk: Desk, name: str) -> None:
    await desk.books(lambda shop: shop.reserve(name, 1_000))
    await desk.books(lambda shop: shop.settle(name, 120, 380))


async def test_traffic_is_told_by_the_minute_and_the_rest_is_left_out(desk: Desk) -> None:
    await work(desk, "long ago")
    desk.clock.forward(timedelta(hours=1))
    await desk.books(lambda shop: shop.reserve("refunded", 50))
    await desk.books(lambda shop: shop.refund("refunded"))
    for name, after in (("a", 10), ("b", 40), ("c", 20), ("d", 180)):
        desk.clock.forward(timedelta(seconds=after))
        await work(desk, name)
    since = desk.clock() - timedelta(minutes=30)
    found = await desk.services.db.read(lambda c: traffic(c, since=since))
    assert (found.requests, found.prompt_tokens, found.completion_tokens) == (5, 600, 1900)
    hour = NOON + timedelta(hours=1)
    assert [(m.timestamp, m.requests, m.total_tokens) for m in found.minutes] == [
        (hour, 2, 1_000),
        (hour + timedelta(minutes=1), 1, 500),
        (hour + timedelta(minutes=4), 1, 500),
    ]


async def test_an_empty_network_has_numbers_too() -> None:
    numbers = stats(EMPTY, [])
    assert numbers["avg_tokens_per_request"] == 0
    assert (numbers["providers"], numbers["models"], numbers["time_series"]) == ([], [], [])


async def test_the_network_is_described_as_documented_for_a_minute(tmp_path: Path) -> None:
    async def answer(job: Job) -> None:
        await job.say("hi")
        await job.complete(100, 50)

    async with network(tmp_path) as net:
        async with scripted_provider(net.ws_url, answer) as provider:
            assert (await net.ask()).status_code == 200
            told = HeartbeatStats(requests_served=812, tokens_generated=300_123)
            await provider.send(Heartbeat(status="idle", active_model=MODEL, stats=told))
            (session,) = net.coordinator.hub.registry
            await net.until(lambda: session.stats == told)
            numbers = (await net.http.get("/v1/stats")).json()
        assert {k: v for k, v in numbers.items() if not isinstance(v, list)} == {
            "total_requests": 812,
            "total_prompt_tokens": 100,
            "total_completion_tokens": 300_123,
            "total_tokens": 300_223,
            "avg_tokens_per_request": 369.73,
            "active_providers": 1,
            "total_gpu_cores": 0,
            "total_cpu_cores": 16,
            "total_memory_gb": 64,
            "total_bandwidth_gbs": numbers["providers"][0]["memory_bandwidth_gbs"],
            "network_capacity_tps": 0,
        }
        (shown,) = numbers["providers"]
        assert set(shown) == {
            *("id", "chip", "chip_family", "chip_tier", "machine_model", "memory_gb"),
            *("gpu_cores", "cpu_cores", "memory_bandwidth_gbs", "status", "trust_level"),
            *("decode_tps", "requests_served", "tokens_generated", "models", "current_model"),
        }
        assert shown["cpu_cores"] == {"total": 16, "performance": 12, "efficiency": 4}
        assert (shown["current_model"], shown["models"]) == (MODEL, [MODEL])
        assert numbers["models"] == [{"id": MODEL, "providers": 1}]
        (minute,) = numbers["time_series"]
        assert (minute["requests"], minute["total_tokens"]) == (1, 150)
        # The provider has gone, and the answer of a moment ago still stands.
        assert (await net.http.get("/v1/stats")).json() == numbers


# ---------------------------------------------------------------- kept for a while


async def test_the_leaderboard_stands_for_five_minutes_and_totals_for_one(desk: Desk) -> None:
    async def jobs() -> tuple[Any, Any]:
        board, totals = await desk.get("/v1/leaderboard"), await desk.get("/v1/network/totals")
        return sum(row["jobs"] for row in board["entries"]), totals["jobs"]

    assert await jobs() == (0, 0)
    await work(desk, "one")
    assert await jobs() == (0, 0)
    desk.clock.forward(timedelta(seconds=59))
    assert await jobs() == (0, 0)
    desk.clock.forward(timedelta(seconds=1))
    assert await jobs() == (0, 1)
    desk.clock.forward(timedelta(minutes=4))
    assert await jobs() == (1, 1)
    # Another question has an answer of its own.
    await work(desk, "two")
    other = await desk.get("/v1/leaderboard?metric=jobs")
    assert other["entries"][0]["jobs"] == 2


async def test_a_failure_is_not_kept() -> None:
    kept: Kept[int] = Kept(timedelta(minutes=1), Clock().monotonic)

    async def fail() -> int:
        raise RuntimeError("no")

    async def one() -> int:
        return 1

    with pytest.raises(RuntimeError):
        await kept.get("k", fail)
    assert await kept.get("k", one) == 1
    assert await kept.get("k", fail) == 1


async def test_what_was_begun_before_everything_was_dropped_is_not_kept() -> None:
    kept: Kept[int] = Kept(timedelta(minutes=1), Clock().monotonic)

    async def overtaken() -> int:
        kept.drop()
        return 1

    async def two() -> int:
        return 2

    assert await kept.get("k", overtaken) == 1
    assert await kept.get("k", two) == 2


async def test_no_number_of_questions_fills_the_memory() -> None:
    kept: Kept[int] = Kept(timedelta(minutes=1), Clock().monotonic)
    made = 0

    async def make() -> int:
        nonlocal made
        made += 1
        return made

    for key in range(2 * MAX_KEPT):
        await kept.get(key, make)
    assert len(kept._values) == MAX_KEPT
    assert await kept.get(0, make) == 2 * MAX_KEPT + 1
