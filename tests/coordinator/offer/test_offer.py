"""Models and prices that the operator changes while the network runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.coordinator.accounts import people
from darkbloom_provider.coordinator.ledger import reservations
from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.ledger.reservations import Serving
from darkbloom_provider.coordinator.offer import listing, prices
from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.models.catalogue import Catalogue
from darkbloom_provider.protocol.money import DEFAULT_PRICE, Price
from support.books import CONSUMER, OWNER, QWEN, QWEN_PRICE
from support.credentials import bearer, person
from support.desk import Desk, error_of, front_desk
from support.network import chat, network
from support.scripted_provider import MODEL, Job, scripted_provider

ADMIN = "admin-account"
TWICE = Price(2 * QWEN_PRICE.input_price, 2 * QWEN_PRICE.output_price)
NEW = {"id": "home/new-model", "display_name": "New", "size_gb": 1.5, "min_ram_gb": 4}


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with front_desk(tmp_path) as desk:
        for name in (ADMIN, OWNER, CONSUMER):
            await desk.user(name)
        await desk.write(lambda c: people.set_admin(c, ADMIN, is_admin=True))
        yield desk


async def listed_ids(desk: Desk) -> set[str]:
    return {model["id"] for model in (await desk.get("/v1/models/catalog"))["models"]}


async def price_of(desk: Desk, model: str) -> tuple[int, int] | None:
    rows = (await desk.get("/v1/pricing"))["prices"]
    found = [(r["input_price"], r["output_price"]) for r in rows if r["model"] == model]
    return found[0] if found else None


def priced(model: str, price: Price) -> dict[str, Any]:
    return {"model": model, "input_price": price.input_price, "output_price": price.output_price}


async def test_a_price_of_the_operator_holds_for_everybody_at_once(desk: Desk) -> None:
    reply = await desk.client.put(
        "/v1/admin/pricing", headers=desk.session(ADMIN), json=priced(QWEN, TWICE)
    )
    assert reply.json() == {
        "status": "platform_default_updated",
        **priced(QWEN, TWICE),
        "input_usd": "$0.2000 per 1M tokens",
        "output_usd": "$1.5600 per 1M tokens",
    }
    assert await price_of(desk, QWEN) == (TWICE.input_price, TWICE.output_price)
    assert desk.services.catalogue.price(QWEN) == TWICE


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"model": QWEN},
        priced(QWEN, Price(0, 5)),
        priced(QWEN, Price(5, -1)),
        priced(QWEN, Price(10**12 + 1, 5)),
        priced("x" * 201, QWEN_PRICE),
        priced(QWEN, QWEN_PRICE) | {"input_price": 1.5},
        priced(QWEN, QWEN_PRICE) | {"input_price": True},
    ],
)
async def test_a_price_that_is_none_is_refused(desk: Desk, wrong: dict[str, Any]) -> None:
    for path, who in (("/v1/admin/pricing", ADMIN), ("/v1/pricing", OWNER)):
        reply = await desk.client.put(path, headers=desk.session(who), json=wrong)
        assert error_of(reply) == (400, "invalid_request_error")
    assert await price_of(desk, QWEN) == (QWEN_PRICE.input_price, QWEN_PRICE.output_price)


async def test_models_come_change_and_go(desk: Desk) -> None:
    admin = desk.session(ADMIN)
    saved = await desk.client.post("/v1/admin/models", headers=admin, json=NEW)
    assert saved.json()["status"] == "model_saved"
    assert saved.json()["model"] | NEW == saved.json()["model"]
    assert NEW["id"] in await listed_ids(desk)
    assert await price_of(desk, "home/new-model") == (50_000, 200_000)
    # Its price survives a change of it, and so does a built-in model's.
    await desk.client.put("/v1/admin/pricing", headers=admin, json=priced("home/new-model", TWICE))
    for model in (NEW | {"active": False}, {"id": QWEN, "display_name": "Ours", "active": False}):
        assert (await desk.client.post("/v1/admin/models", headers=admin, json=model)).is_success
        assert model["id"] not in await listed_ids(desk)
    assert desk.services.catalogue.price("home/new-model") == TWICE
    assert desk.services.catalogue.price(QWEN) == QWEN_PRICE
    everything = (await desk.get("/v1/admin/models", headers=admin))["models"]
    assert {QWEN, "home/new-model"} <= {model["id"] for model in everything}

    for name in (QWEN, "home/new-model"):
        gone = await desk.client.request(
            "DELETE", "/v1/admin/models", headers=admin, json={"id": name}
        )
        assert gone.json() == {"status": "model_deleted", "model_id": name}
        again = await desk.client.request(
            "DELETE", "/v1/admin/models", headers=admin, json={"id": name}
        )
        assert error_of(again) == (404, "not_found")
        assert desk.services.catalogue.get(name) is None


@pytest.mark.parametrize(
    "wrong",
    [
        NEW | {"id": "two words"},
        NEW | {"id": "a\nline"},
        {"id": "x"},
        {"display_name": "x"},
        NEW | {"size_gb": -1},
        NEW | {"size_gb": "big"},
        NEW | {"min_ram_gb": 1.5},
        NEW | {"active": "yes"},
        NEW | {"weight_hash": "abc"},
        NEW | {"id": "x" * 201},
        NEW | {"description": "x" * 2001},
    ],
)
async def test_a_model_that_makes_no_sense_is_refused(desk: Desk, wrong: dict[str, Any]) -> None:
    reply = await desk.client.post("/v1/admin/models", headers=desk.session(ADMIN), json=wrong)
    assert error_of(reply) == (400, "invalid_request_error")


async def test_the_admin_key_alone_changes_neither_models_nor_prices(desk: Desk) -> None:
    key = {"Authorization": "Bearer the-operators-key"}
    for method, path in (
        ("PUT", "/v1/admin/pricing"),
        ("GET", "/v1/admin/models"),
        ("POST", "/v1/admin/models"),
        ("DELETE", "/v1/admin/models"),
    ):
        reply = await desk.client.request(method, path, headers=key, json={})
        assert error_of(reply) == (403, "forbidden")


async def test_a_restarted_coordinator_offers_the_same(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        operator = net.coordinator.operator
        await operator.set_price(MODEL, TWICE)
        await operator.remove_model(QWEN, Catalogue.builtin())
    async with network(tmp_path) as net:
        rows = (await net.http.get("/v1/pricing")).json()["prices"]
        found = {row["model"]: Price(row["input_price"], row["output_price"]) for row in rows}
        assert found[MODEL] == TWICE
        assert QWEN not in found


def test_names_that_the_network_retired_are_not_shown() -> None:
    qwen = Catalogue.builtin().entries[0]
    for name in ("Cohere Command", "x/FLUX.1-dev", "my_coherelabs-7b"):
        assert listing.retired(replace(qwen, display_name=name))
    for name in ("Incoherent", "Influx", "Reflux 2"):
        assert not listing.retired(replace(qwen, display_name=name))


# ---------------------------------------------------------------- prices of one's own


async def test_a_price_of_ones_own_is_set_and_taken_back(desk: Desk) -> None:
    mine = desk.session(OWNER)
    reply = await desk.client.put("/v1/pricing", headers=mine, json=priced(QWEN, TWICE))
    assert reply.json() == {
        "status": "updated",
        **priced(QWEN, TWICE),
        "input_usd": "$0.2000 per 1M tokens",
        "output_usd": "$1.5600 per 1M tokens",
    }
    # Nobody else sees or pays it.
    assert await price_of(desk, QWEN) == (QWEN_PRICE.input_price, QWEN_PRICE.output_price)
    for expected in (200, 404):
        gone = await desk.client.request(
            "DELETE", "/v1/pricing", headers=mine, json={"model": QWEN}
        )
        assert gone.status_code == expected, gone.text


async def serve(desk: Desk, name: str, *, policy: Policy, change: Price | None = None) -> int:
    """One job of 1000 in and 1000 out; its owner may change the price while it runs."""
    now = desk.clock()

    await desk.write(
        reservations.Reserve(
            reservation_id=name, account_id=CONSUMER, model=QWEN, amount=10_000, now=now
        )
    )
    desk.clock.forward(timedelta(seconds=1))
    later = desk.clock()
    if change is not None:
        await desk.write(lambda c: prices.set_price(c, OWNER, QWEN, change, now=later))
    settled = await desk.write(
        reservations.Settle(
            reservation_id=name,
            job_id=name,
            serving=Serving("session", "key", account_id=OWNER),
            prompt_tokens=1000,
            completion_tokens=1000,
            price=QWEN_PRICE,
            policy=policy,
            now=later,
        )
    )
    return settled.cost


async def test_an_owners_price_counts_only_where_the_operator_allows_it(desk: Desk) -> None:
    await desk.books(lambda shop: shop.deposit(100_000))
    own = Policy(personal_prices=True)
    assert await serve(desk, "before", policy=own) == 880
    # Set while the job ran: the job costs what it cost when it was accepted.
    assert await serve(desk, "during", policy=own, change=Price(10_000, 10_000)) == 880
    assert await serve(desk, "after", policy=own) == 20
    assert await serve(desk, "not allowed", policy=Policy()) == 880
    # Dearer than what was reserved is clamped to it.
    await serve(desk, "dearer soon", policy=own, change=Price(10**9, 10**9))
    assert await serve(desk, "dearer", policy=own) == 10_000
    assert await desk.services.db.read(audit) == []


# ---------------------------------------------------------------- in a running network


async def test_a_price_change_does_not_change_a_running_job(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        operator = net.coordinator.operator
        admin = await person(net, "admin", admin=True)

        async def answer(job: Job) -> None:
            reply = await net.http.put(
                "/v1/admin/pricing", headers=bearer(admin.api_key), json=priced(MODEL, expensive)
            )
            assert reply.status_code == 200, reply.text
            await job.say("hi")
            await job.complete(1_000, 1_000)

        expensive = Price(10 * DEFAULT_PRICE.input_price, 10 * DEFAULT_PRICE.output_price)
        async with scripted_provider(net.ws_url, answer):
            assert (await net.ask()).status_code == 200
            assert await net.spent() == 250
            # The next one is reserved and settled at the new price.
            assert (await net.ask()).status_code == 200
            assert await net.spent() == 250 + 2_500
        assert (await operator.balance(net.account)).balance == 5_000_000 - 2_750


async def test_a_model_that_is_listed_later_is_served_without_a_new_connection(
    tmp_path: Path,
) -> None:
    async def answer(job: Job) -> None:
        await job.say("hi")
        await job.complete(1, 1)

    async with network(tmp_path) as net:
        operator, offer = net.coordinator.operator, net.coordinator.services.offer
        model = Catalogue.builtin().get(MODEL)
        assert model is not None
        await operator.remove_model(MODEL, Catalogue.builtin())
        await offer.refresh()
        async with scripted_provider(net.ws_url, answer):
            gone = await net.ask()
            assert error_of(gone) == (404, "model_not_found")
            assert (await net.http.get("/v1/models")).json()["data"] == []
            # As the command line does it: this coordinator looks by itself.
            await operator.save_model(model)
            await net.until(lambda: offer.catalogue.get(MODEL) is not None)
            reply = await net.http.post("/v1/chat/completions", json=chat())
            assert reply.status_code == 200, reply.text
