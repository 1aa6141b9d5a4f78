"""Our replies against the existing coordinator's own, recorded for the same two jobs."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.coordinator.ledger import reservations
from darkbloom_provider.coordinator.ledger.reservations import Serving
from darkbloom_provider.coordinator.settings import Policy
from support.books import CONSUMER, Shop
from support.desk import Desk, front_desk
from support.recordings import recording

OWNER = "c9b880b3-86a4-482c-b21f-edcb990e3875"
GEMMA = "mlx-community/gemma-4-26b-a4b-it-8bit"
KEY = "Gp/thl8nH6MQSXUNNutfhhwXBVxZGtiLvDzKpslQSi4="
SESSION = "41a7a665-88da-4f0a-803e-de9c2745c99a"
LINKED = Serving(SESSION, KEY, account_id=OWNER, wallet_address="0x" + "ab" * 20)
UNLINKED = Serving("another", "key", wallet_address="0x" + "cd" * 20)

WORK = [
    ("65cc073a-3402-4195-839f-ab89157093ed", LINKED, "2026-11-23T09:21:05.103457Z"),
    ("73e74f26-141b-4f4b-9067-f9d6385dc92d", LINKED, "2026-11-23T09:21:05.151406Z"),
    ("c0a67401-7009-4cc6-b720-fa9df6f64dff", UNLINKED, "2026-11-23T09:21:06.099202Z"),
]

_FRACTION = re.compile(r"(\.\d{6})\d+Z")


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """The same books as in the recording: fee 5 %, minimum 100, two linked jobs of 11/5 tokens."""
    policy = Policy(fee_percent=5, minimum_charge_micro_usd=100)
    async with front_desk(tmp_path, policy=policy) as desk:
        await desk.user(OWNER)
        await desk.user(CONSUMER)
        await desk.books(lambda shop: shop.deposit(100_000))
        for job_id, serving, at in WORK[:2]:
            await serve(desk, job_id, serving, at)
        yield desk


async def serve(desk: Desk, job_id: str, serving: Serving, at: str) -> None:
    desk.clock.now = datetime.fromisoformat(at)

    def work(shop: Shop) -> None:
        shop.price = desk.services.catalogue.price(GEMMA)
        reservations.Reserve(
            reservation_id=f"r-{job_id}",
            account_id=CONSUMER,
            model=GEMMA,
            amount=1_000,
            now=shop.clock(),
        )(shop.connection)
        shop.settle(f"r-{job_id}", 11, 5, serving=serving, job_id=job_id)

    await desk.books(work)


def golden(path: str, note: str = "") -> Any:
    line = next(
        line
        for line in recording("http-endpoints")
        if line["path"].startswith(path) and line["note"].startswith(note)
    )
    return json.loads(_FRACTION.sub(r"\1Z", line["response_body"]))


def without(document: Any, *names: str) -> Any:
    """A reply without fields that are ours to choose, at any depth."""
    if isinstance(document, dict):
        return {k: without(v, *names) for k, v in document.items() if k not in names}
    if isinstance(document, list):
        return [without(item, *names) for item in document]
    return document


async def test_account_earnings(desk: Desk) -> None:
    ours = await desk.get("/v1/provider/account-earnings", headers=desk.session(OWNER))
    assert ours == golden("/v1/provider/account-earnings")


async def test_node_earnings_as_their_owner_sees_them(desk: Desk) -> None:
    path = "/v1/provider/node-earnings"
    ours = await desk.get(path, params={"provider_key": KEY}, headers=desk.session(OWNER))
    assert ours == golden(path)


async def test_node_earnings_do_not_tell_strangers_whose_they_are(desk: Desk) -> None:
    path = "/v1/provider/node-earnings"
    await desk.user("somebody-else")
    for headers in ({}, desk.session("somebody-else"), {"Authorization": "Bearer nonsense"}):
        ours = await desk.get(path, params={"provider_key": KEY}, headers=headers)
        assert {row["account_id"] for row in ours["earnings"]} == {""}
        assert without(ours, "account_id") == without(golden(path), "account_id")


async def test_an_unknown_wallet_reads_as_zero(desk: Desk) -> None:
    path = "/v1/provider/earnings?wallet=0xabababababababababababababababababababab"
    assert await desk.get(path) == golden(path)


async def test_wallet_earnings(desk: Desk) -> None:
    await serve(desk, *WORK[2])
    path = "/v1/provider/earnings?wallet=0xcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"
    ours = await desk.get(path)
    assert without(ours, "id") == without(golden(path), "id")
    assert (
        await desk.get("/v1/provider/earnings", headers={"X-Provider-Wallet": path[-42:]}) == ours
    )


async def test_leaderboard(desk: Desk) -> None:
    ours, theirs = await desk.get("/v1/leaderboard"), golden("/v1/leaderboard")
    assert without(ours, "pseudonym") == without(theirs, "pseudonym")
    assert re.fullmatch(r"[a-z0-9]+-[a-z0-9]+-[0-9]{4}", ours["entries"][0]["pseudonym"])
    # The number comes from the account id alone, so it is the recorded one.
    assert ours["entries"][0]["pseudonym"][-4:] == theirs["entries"][0]["pseudonym"][-4:]


async def test_network_totals(desk: Desk) -> None:
    assert await desk.get("/v1/network/totals") == golden("/v1/network/totals")


async def test_usage(desk: Desk) -> None:
    ours = await desk.get("/v1/payments/usage", headers=await desk.api_key(CONSUMER))
    assert without(ours, "timestamp") == without(golden("/v1/payments/usage"), "timestamp")


async def test_pricing_has_the_networks_prices(desk: Desk) -> None:
    ours, theirs = (await desk.get("/v1/pricing"))["prices"], golden("/v1/pricing")["prices"]
    by_model = {row["model"]: row for row in ours}
    assert {row["model"]: by_model[row["model"]] for row in theirs} == {
        row["model"]: row for row in theirs
    }


async def test_the_catalogue_has_the_networks_models_in_its_order(desk: Desk) -> None:
    theirs = golden("/v1/models/catalog")["models"]
    known = {row["id"] for row in theirs}
    ours = (await desk.get("/v1/models/catalog"))["models"]
    assert [row for row in ours if row["id"] in known] == theirs
    assert await desk.get("/v1/models/catalog?type=text") == {"models": ours}
    assert await desk.get("/v1/models/catalog?type=image") == {"models": []}


async def test_device_login(desk: Desk) -> None:
    started = (await desk.client.post("/v1/device/code")).json()
    theirs = golden("/v1/device/code")
    assert set(started) == set(theirs)
    assert (started["expires_in"], started["interval"]) == (900, 5)
    for name in ("device_code", "user_code"):
        shape = re.sub(r"[0-9a-fA-Z]", "x", theirs[name])
        assert re.sub(r"[0-9a-fA-Z]", "x", started[name]) == shape

    body = {"device_code": started["device_code"]}
    pending = await desk.client.post("/v1/device/token", json=body)
    assert pending.json() == golden("/v1/device/token", "POST /v1/device/token pending")

    approved = await desk.client.post(
        "/v1/device/approve", json={"user_code": started["user_code"]}, headers=desk.session(OWNER)
    )
    assert set(approved.json()) == set(golden("/v1/device/approve"))
    token = (await desk.client.post("/v1/device/token", json=body)).json()
    theirs = golden("/v1/device/token", "POST /v1/device/token approved")
    assert without(token, "token") == without(theirs, "token")
    assert re.fullmatch(r"eigeninference-pt-[0-9a-f]{64}", token["token"])
