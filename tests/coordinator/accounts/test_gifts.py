"""Invites, referrals and what the operator gives: once each, and in the books."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.ledger.reservations import Settlement
from darkbloom_provider.coordinator.settings import Policy
from support.books import CONSUMER, OWNER, Shop
from support.desk import ADMIN_KEY, Desk, bearer, error_of, front_desk

ADMIN = bearer(ADMIN_KEY)
INVITES = "/v1/admin/invite-codes"


@pytest.fixture
async def desk(tmp_path: Path, place: Path | str) -> AsyncIterator[Desk]:
    async with front_desk(tmp_path, where=place) as desk:
        for name in ("ann", "ben"):
            await desk.user(name)
        yield desk
        assert await desk.services.db.read(audit) == []


async def invite(desk: Desk, **body: Any) -> httpx.Response:
    return await desk.client.post(INVITES, headers=ADMIN, json={"amount_usd": 5.0} | body)


async def redeem(desk: Desk, who: str, code: object) -> httpx.Response:
    return await desk.client.post(
        "/v1/invite/redeem", headers=desk.session(who), json={"code": code}
    )


async def post(desk: Desk, who: str, path: str, code: object) -> httpx.Response:
    return await desk.client.post(path, headers=desk.session(who), json={"code": code})


async def test_an_invite_is_credited_once_to_each_account_and_cannot_be_withdrawn(
    desk: Desk,
) -> None:
    made = await invite(desk, max_uses=2, expires_at="2026-06-01T00:00:00+02:00")
    assert made.status_code == 201
    document = made.json()
    code = document.pop("code")
    assert document == {
        "amount_usd": "5.00",
        "max_uses": 2,
        "expires_at": "2026-05-31T22:00:00Z",
    }
    assert code.startswith("INV-")
    assert len(code) == len("INV-") + 8

    got = await redeem(desk, "ann", f" {code.lower()} ")
    assert got.json() == {"credited_usd": "5.00", "balance_usd": "5.000000"}
    assert error_of(await redeem(desk, "ann", code)) == (400, "invalid_request_error")
    held = await desk.get("/v1/payments/balance", headers=desk.session("ann"))
    assert (held["balance_micro_usd"], held["withdrawable_micro_usd"]) == (5_000_000, 0)

    assert (await redeem(desk, "ben", code)).status_code == 200
    await desk.user("carl")
    assert error_of(await redeem(desk, "carl", code)) == (400, "invalid_request_error")
    [listed] = (await desk.get(INVITES, headers=ADMIN))["invite_codes"]
    assert (listed["used_count"], listed["active"]) == (2, True)


async def test_an_invite_that_is_unknown_over_or_withdrawn_gives_nothing(desk: Desk) -> None:
    await invite(desk, code="soon-over", expires_at="2026-05-01T13:00:00Z")
    await invite(desk, code="taken-back")
    gone = await desk.client.request("DELETE", INVITES, headers=ADMIN, json={"code": "taken-back"})
    assert gone.json() == {"status": "deactivated"}
    desk.clock.forward(timedelta(hours=1))
    bad = (400, "invalid_request_error")
    for code, wanted in (
        ("SOON-OVER", bad),
        ("TAKEN-BACK", bad),
        ("NOBODYS", (404, "not_found")),
        ("", bad),
        (5, bad),
    ):
        assert error_of(await redeem(desk, "ann", code)) == wanted
    unknown = await desk.client.request("DELETE", INVITES, headers=ADMIN, json={"code": "X-1"})
    assert error_of(unknown) == (404, "not_found")


@pytest.mark.parametrize(
    "body",
    [
        {"amount_usd": "5"},
        {"amount_usd": -1},
        {"amount_usd": 0},
        {"amount_usd": 0.0000001},
        {"amount_usd": 1e300},
        {"amount_usd": True},
        {"max_uses": 1.5},
        {"max_uses": 10**9},
        {"code": "no spaces"},
        {"code": "-x-"},
        {"code": "x" * 21},
        {"code": "straße"},
        {"expires_at": "yesterday"},
        {"expires_at": "2026-05-02T00:00:00"},
        {"expires_at": "2020-01-01T00:00:00Z"},
    ],
)
async def test_an_invite_that_makes_no_sense_is_refused(desk: Desk, body: dict[str, Any]) -> None:
    assert error_of(await invite(desk, **body)) == (400, "invalid_request_error")


async def test_a_code_is_the_operators_choice_and_taken_once(desk: Desk) -> None:
    assert (await invite(desk, code="spring", max_uses=-3)).json()["max_uses"] == 1
    assert error_of(await invite(desk, code="SPRING")) == (409, "conflict")


async def test_a_tenth_of_a_dollar_is_a_tenth(desk: Desk) -> None:
    await invite(desk, code="tenth", amount_usd=0.1)
    assert (await redeem(desk, "ann", "tenth")).json()["balance_usd"] == "0.100000"


async def test_a_referrer_keeps_one_code_and_an_account_is_referred_once(desk: Desk) -> None:
    register, apply = "/v1/referral/register", "/v1/referral/apply"
    first = await post(desk, "ann", register, " ann-1 ")
    assert (first.json()["code"], first.json()["share_percent"]) == ("ANN-1", 20)
    assert (await post(desk, "ann", register, "other")).json()["code"] == "ANN-1"
    refused = (400, "referral_error")
    assert error_of(await post(desk, "ann", register, "ann-1*")) == refused
    assert error_of(await post(desk, "ben", register, "ann-1")) == refused
    assert error_of(await post(desk, "ben", register, "a")) == refused
    assert error_of(await post(desk, "ben", register, "")) == (400, "invalid_request_error")
    assert error_of(await post(desk, "ann", apply, "ANN-1")) == refused
    assert error_of(await post(desk, "ben", apply, "NOBODY")) == refused
    applied = (await post(desk, "ben", apply, "ann-1")).json()
    assert (applied["status"], applied["code"]) == ("applied", "ANN-1")
    assert error_of(await post(desk, "ben", apply, "ANN-1")) == refused

    stats = await desk.get("/v1/referral/stats", headers=desk.session("ann"))
    assert stats == {
        "code": "ANN-1",
        "share_percent": 20,
        "total_referred": 1,
        "total_rewards_micro_usd": 0,
        "total_rewards_usd": "0.000000",
        "balance_micro_usd": 0,
        "balance_usd": "0.000000",
    }
    for path in ("/v1/referral/stats", "/v1/referral/info"):
        nobody = await desk.client.get(path, headers=desk.session("ben"))
        assert error_of(nobody) == (404, "referral_error")
    await post(desk, "ben", register, "BEN")
    info = await desk.get("/v1/referral/info", headers=desk.session("ben"))
    assert info == {"code": "BEN", "share_percent": 20, "referred_by": "ANN-1"}


async def test_a_referrer_gets_their_share_of_the_fee_and_the_owner_loses_nothing(
    tmp_path: Path, place: Path | str
) -> None:
    """The worked example of the network's money rules: 297 are 283, 12 and 2."""
    policy = Policy(fee_percent=5)
    async with front_desk(tmp_path, where=place, policy=policy) as desk:
        for name in ("ann", CONSUMER, OWNER):
            await desk.user(name)
        await post(desk, "ann", "/v1/referral/register", "ANN")
        await post(desk, CONSUMER, "/v1/referral/apply", "ANN")

        def trade(shop: Shop) -> Settlement:
            shop.deposit(5_000_000)
            shop.reserve("r", 6_389)
            return shop.settle("r", 12, 380)

        settled = await desk.books(trade)
        assert (settled.cost, settled.payout, settled.fee) == (297, 283, 14)
        held = {
            name: await desk.services.db.read(lambda c, name=name: books.balance_of(c, name))  # type: ignore[misc]  # mypy cannot infer a default's type
            for name in ("ann", OWNER, books.PLATFORM)
        }
        assert held["ann"] == books.Balance(2, 2)
        assert held[OWNER] == books.Balance(283, 283)
        assert held[books.PLATFORM].balance == 12
        stats = await desk.get("/v1/referral/stats", headers=desk.session("ann"))
        assert (stats["total_referred"], stats["total_rewards_micro_usd"]) == (1, 2)
        assert await desk.services.db.read(audit) == []


async def test_credit_is_to_spend_and_a_reward_is_to_keep(desk: Desk) -> None:
    async def give(what: str, **body: Any) -> httpx.Response:
        document = {"email": "ann@example.org", "amount_usd": "5"} | body
        return await desk.client.post(f"/v1/admin/{what}", headers=ADMIN, json=document)

    assert (await give("credit", note="hello")).json() == {
        "ok": True,
        "account_id": "ann",
        "email": "ann@example.org",
        "credited_usd": 5,
        "withdrawable": False,
        "balance_after": 5,
    }
    assert (await give("reward", amount_usd="2.5")).json() == {
        "ok": True,
        "account_id": "ann",
        "email": "ann@example.org",
        "rewarded_usd": 2.5,
        "withdrawable": True,
        "balance_after": 7.5,
        "withdrawable_after": 2.5,
    }
    assert error_of(await give("credit", email="x@example.org")) == (404, "not_found")
    for amount in ("", "x", "0", "-1", "NaN", "1e40", "0.0000001", 5):
        assert error_of(await give("credit", amount_usd=amount)) == (400, "invalid_request_error")
    assert error_of(await give("credit", note="x" * 201)) == (400, "invalid_request_error")


@pytest.mark.parametrize("what", ["credit", "reward"])
async def test_credit_asked_for_twice_under_one_key_is_given_once(desk: Desk, what: str) -> None:
    async def give(key: str, amount: str = "5") -> httpx.Response:
        return await desk.client.post(
            f"/v1/admin/{what}",
            headers=ADMIN | {"Idempotency-Key": key},
            json={"email": "ann@example.org", "amount_usd": amount},
        )

    first, again = await give("one"), await give("one")
    assert (first.status_code, first.text) == (again.status_code, again.text)
    assert error_of(await give("one", "6")) == (409, "conflict")
    assert error_of(await give("with blanks")) == (400, "invalid_request_error")
    assert (await give("two")).json()["balance_after"] == 10


async def test_a_code_that_was_denied_tells_the_machine_to_stop(desk: Desk) -> None:
    code = (await desk.client.post("/v1/device/code")).json()
    ann, user_code = desk.session("ann"), code["user_code"]
    shown = await desk.get(
        "/v1/device/pending", headers=ann, params={"user_code": user_code.replace("-", "").lower()}
    )
    assert shown == {
        "user_code": user_code,
        "created_at": "2026-05-01T12:00:00Z",
        "expires_at": "2026-05-01T12:15:00Z",
    }
    denied = await desk.client.post("/v1/device/deny", headers=ann, json={"user_code": user_code})
    assert denied.json() == {"status": "denied"}
    asked = await desk.client.post("/v1/device/token", json={"device_code": code["device_code"]})
    assert error_of(asked) == (410, "expired_token")
    for again in ("approve", "deny"):
        late = await desk.client.post(
            f"/v1/device/{again}", headers=ann, json={"user_code": user_code}
        )
        assert error_of(late) == (409, "already_used")


async def test_an_owner_sees_their_machines_and_takes_one_off(desk: Desk) -> None:
    machine, ann = await desk.device_token("ann"), desk.session("ann")
    [device] = (await desk.get("/v1/me/devices", headers=ann))["devices"]
    assert device["label"].startswith("device-")
    gone = await desk.client.request(
        "DELETE", "/v1/me/devices", headers=ann, json={"id": device["id"]}
    )
    assert gone.json() == {"status": "revoked"}
    assert len(desk.revoked) == 1
    assert (await desk.get("/v1/me/devices", headers=ann))["devices"] == []
    refused = await desk.client.get("/v1/payments/balance", headers=machine)
    assert error_of(refused) == (401, "authentication_error")


async def test_an_invite_redeemed_again_with_its_key_is_answered_as_at_first(desk: Desk) -> None:
    code = (await invite(desk)).json()["code"]
    headers = desk.session("ann") | {"Idempotency-Key": "k"}
    replies = [
        await desk.client.post("/v1/invite/redeem", headers=headers, json={"code": code})
        for _ in range(2)
    ]
    assert [reply.status_code for reply in replies] == [200, 200]
    assert replies[0].content == replies[1].content
    assert error_of(await redeem(desk, "ann", code)) == (400, "invalid_request_error")
