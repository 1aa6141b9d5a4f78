"""Metrics: what they count, that they name nobody, and who may read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from darkbloom_provider.coordinator.app import build_app
from darkbloom_provider.coordinator.providers.registration import Registrar
from darkbloom_provider.coordinator.store.database import Database, LedgerUnavailableError
from support.credentials import bearer
from support.house import ADMIN_KEY, House, furnished
from support.network import network
from support.scripted_provider import Job, scripted_provider

ELSEWHERE = "192.0.2.7"


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of a scrape, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: dict[Any, float], name: str, **labels: str) -> float:
    return found.get((f"darkbloom_{name}", frozenset(labels.items())), 0.0)


async def answer(job: Job) -> None:
    await job.say("hi")
    await job.complete(100_000, 50_000)


async def fail(job: Job) -> None:
    await job.fail("broken", 400)


async def test_a_scrape_tells_what_happened(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        async with scripted_provider(net.ws_url, answer) as provider:
            assert (await net.ask(max_tokens=60_000)).status_code == 200
            provider.script = fail
            assert (await net.ask()).status_code >= 400
            await net.idle()
            reply = await net.http.get("/metrics")
        assert reply.headers["content-type"].startswith("text/plain; version=")
        found = samples(reply.text)
        assert value(found, "requests_total", outcome="settled") == 1
        assert value(found, "requests_total", outcome="refunded") == 1
        assert value(found, "tokens_total", kind="prompt") == 100_000
        assert value(found, "tokens_total", kind="completion") == 50_000
        spent = await net.spent()
        assert value(found, "job_money_micro_usd_total", movement="charge") == spent > 0
        assert value(found, "job_money_micro_usd_total", movement="payout") == spent
        assert value(found, "providers", status="online", trust="none") == 1
        assert value(found, "queue_length") == value(found, "requests_in_flight") == 0
        assert value(found, "routing_decision_seconds_count") >= 2
        assert value(found, "settlement_failures_total") == 0
        assert value(found, "ledger_up") == 1
        assert not [name for name, _ in found if name.endswith("_created")]
        assert value(found, "ledger_micro_usd", account="granted") == 5_000_000
        chat = {"method": "POST", "route": "/v1/chat/completions", "status": "2xx"}
        assert value(found, "http_response_start_seconds_count", **chat) == 1


async def test_a_book_that_cannot_be_closed_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with network(tmp_path) as net:
        write = Database.write
        broken = True

        async def unwilling(self: Database, operation: Any) -> Any:
            if broken and net.coordinator.hub.requests.count:
                raise LedgerUnavailableError("gone")
            return await write(self, operation)

        async def answer_and_break(job: Job) -> None:
            monkeypatch.setattr(Database, "write", unwilling)
            await job.say("hi")
            await job.complete(1, 1)

        async with scripted_provider(net.ws_url, answer_and_break):
            assert (await net.ask()).status_code == 503
            broken = False
            found = samples((await net.http.get("/metrics")).text)
            assert value(found, "settlement_failures_total") >= 1
            await net.coordinator.books.close_leftovers()


async def test_nobody_is_named(tmp_path: Path) -> None:
    async with furnished(tmp_path) as house:
        for path in ("/v1/payments/balance", "/nowhere/" + house.user.account_id):
            await house.call(("GET", path), bearer(house.user.api_key))
        await house.call(("MKCOL", "/health"), {})
        text = (await house.call(("GET", "/metrics"), {})).text
        for person in (house.user, house.other, house.admin):
            assert person.account_id not in text
            assert person.email not in text
        assert "nowhere" not in text
        assert "MKCOL" not in text
        assert value(
            samples(text),
            "http_response_start_seconds_count",
            method="other",
            route="other",
            status="4xx",
        )


async def test_the_operator_gets_the_same_as_json_or_text(tmp_path: Path) -> None:
    async with furnished(tmp_path) as house:
        operator = bearer(ADMIN_KEY)
        document = (await house.call(("GET", "/v1/admin/metrics"), operator)).json()
        named = {family["name"]: family for family in document["metrics"]}
        assert named["darkbloom_ledger_up"]["samples"] == [
            {"name": "darkbloom_ledger_up", "labels": {}, "value": 1.0}
        ]
        assert named["darkbloom_http_response_start_seconds"]["type"] == "histogram"
        prom = await house.call(("GET", "/v1/admin/metrics?format=prom"), operator)
        assert {family.name for family in text_string_to_metric_families(prom.text)} >= set(named)


async def scrape_from(house: House, host: str, address: str, **headers: str) -> int:
    """Whoever asks from an address, without a socket between."""
    coordinator = house.net.coordinator
    services, hub = coordinator.services, coordinator.hub
    registrar = Registrar(services.db, services.offer, services.policy, hub.sources)
    app = build_app(services, hub, registrar, coordinator.books)
    transport = httpx.ASGITransport(app, client=(address, 5000))
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
        return (await client.get("/metrics", headers=headers)).status_code


async def test_others_need_the_operators_key(tmp_path: Path) -> None:
    async with furnished(tmp_path) as house:
        assert await scrape_from(house, "127.0.0.1:8080", "127.0.0.1") == 200
        assert await scrape_from(house, "[::1]:8080", "::1") == 200
        assert await scrape_from(house, "192.0.2.1:8080", ELSEWHERE) == 401
        # A web page in a browser on this machine, and a proxy on it that serves strangers.
        assert await scrape_from(house, "rebound.example:8080", "127.0.0.1") == 401
        for header in ("X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"):
            found = await scrape_from(house, "localhost", "127.0.0.1", **{header: ELSEWHERE})
            assert found == 401
        for key, status in (
            ("nonsense", 401),
            (house.user.api_key, 403),
            (house.admin.device_token, 403),
            (house.admin.api_key, 200),
            (ADMIN_KEY, 200),
        ):
            headers = bearer(key)
            assert await scrape_from(house, "192.0.2.1", ELSEWHERE, **headers) == status


async def test_a_ledger_that_does_not_answer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(_self: Database, _operation: Any) -> None:
        raise LedgerUnavailableError("gone")

    async with furnished(tmp_path) as house:
        with monkeypatch.context() as patched:
            patched.setattr(Database, "read", gone)
            found = samples((await house.call(("GET", "/metrics"), {})).text)
        assert found[("darkbloom_ledger_up", frozenset())] == 0
