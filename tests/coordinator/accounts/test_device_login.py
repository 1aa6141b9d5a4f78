"""Linking a machine: every situation has its own status, and a code yields one token."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from darkbloom_provider.coordinator.accounts import device_login, people
from darkbloom_provider.coordinator.store.schema import device_codes, device_tokens
from support.books import OWNER
from support.desk import Desk, bearer, counted_hex, error_of, front_desk

TYPE = "application/json"


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with front_desk(tmp_path) as desk:
        await desk.user(OWNER)
        yield desk


async def start(desk: Desk) -> dict[str, Any]:
    reply = await desk.client.post("/v1/device/code", content=b"whatever", headers={"x": "y"})
    assert reply.status_code == 200
    document: dict[str, Any] = reply.json()
    return document


async def poll(desk: Desk, code: dict[str, Any]) -> httpx.Response:
    return await desk.client.post("/v1/device/token", json={"device_code": code["device_code"]})


async def approve(desk: Desk, user_code: object) -> httpx.Response:
    return await desk.client.post(
        "/v1/device/approve", json={"user_code": user_code}, headers=desk.session(OWNER)
    )


async def test_decision_7_an_approved_code_yields_its_token_once(desk: Desk) -> None:
    code = await start(desk)
    assert (await poll(desk, code)).json() == {"status": "authorization_pending"}
    assert (await approve(desk, code["user_code"])).status_code == 200

    first = await poll(desk, code)
    assert first.status_code == 200
    assert (first.json()["status"], first.json()["account_id"]) == ("authorized", OWNER)
    assert error_of(await poll(desk, code)) == (410, "expired_token")
    linked = await desk.services.db.read(
        lambda c: people.account_for_device_token(c, first.json()["token"])
    )
    assert linked == OWNER


async def test_codes_and_tokens_are_stored_as_hashes_only(desk: Desk) -> None:
    code = await start(desk)
    await approve(desk, code["user_code"])
    token = (await poll(desk, code)).json()["token"]
    stored = await desk.services.db.read(
        lambda c: str([*c.execute(select(device_codes)), *c.execute(select(device_tokens))])
    )
    assert token not in stored
    assert code["device_code"] not in stored
    assert people.digest(token) in stored
    assert f"device-{code['user_code']}" in stored


@pytest.mark.parametrize("spell", [str.lower, lambda c: f"  {c}\n", lambda c: c.replace("-", "")])
async def test_a_code_may_be_typed_carelessly(desk: Desk, spell: Any) -> None:
    code = await start(desk)
    assert (await approve(desk, spell(code["user_code"]))).status_code == 200


async def test_approving_says_what_is_wrong(desk: Desk) -> None:
    code = await start(desk)
    for missing in ("", "   ", None, 5, ["A"], "\x00"):
        assert error_of(await approve(desk, missing)) == (400, "invalid_request")
    for unknown in ("AAAA-AAAA", "nonsense", "x" * 5000, "ÄÄÄÄ-ÄÄÄÄ"):
        assert error_of(await approve(desk, unknown)) == (404, "invalid_code")
    assert (await approve(desk, code["user_code"])).status_code == 200
    assert error_of(await approve(desk, code["user_code"])) == (409, "already_used")
    await poll(desk, code)
    assert error_of(await approve(desk, code["user_code"])) == (409, "already_used")
    late = await start(desk)
    desk.clock.forward(timedelta(seconds=900))
    assert error_of(await approve(desk, late["user_code"])) == (410, "expired_code")


async def test_polling_says_what_is_wrong(desk: Desk) -> None:
    post = desk.client.post
    for junk in (b"", b"{", b"[]", b"{}", b'{"device_code":""}', b'{"device_code":7}', b"\xff"):
        reply = await post("/v1/device/token", content=junk)
        assert error_of(reply) == (400, "invalid_request"), junk
    assert error_of(await poll(desk, {"device_code": "0" * 64})) == (404, "invalid_grant")
    code = await start(desk)
    await approve(desk, code["user_code"])
    desk.clock.forward(timedelta(seconds=900))
    assert error_of(await poll(desk, code)) == (410, "expired_token")


async def test_a_code_lives_until_its_last_second(desk: Desk) -> None:
    code = await start(desk)
    desk.clock.forward(timedelta(seconds=899.999))
    assert (await poll(desk, code)).json() == {"status": "authorization_pending"}


async def test_only_a_signed_in_person_approves(desk: Desk) -> None:
    code = await start(desk)
    key, machine = await desk.api_key(OWNER), await desk.device_token(OWNER)

    async def attempt(headers: dict[str, str]) -> tuple[int, str]:
        body = {"user_code": code["user_code"]}
        return error_of(await desk.client.post("/v1/device/approve", json=body, headers=headers))

    assert await attempt({}) == (401, "authentication_error")
    assert await attempt(key) == (403, "forbidden")
    assert await attempt(machine) == (403, "forbidden")
    assert await attempt(bearer("eyJ.nonsense.x")) == (401, "authentication_error")
    expired = desk.session(OWNER, lifetime=timedelta(0))
    assert await attempt(expired) == (401, "authentication_error")
    assert (await poll(desk, code)).json() == {"status": "authorization_pending"}


async def test_decision_8_a_revoked_token_is_worth_nothing(desk: Desk) -> None:
    machine = await desk.device_token(OWNER)
    await desk.get("/v1/payments/balance", headers=machine)

    gone = await desk.client.post("/v1/device/revoke", headers=machine)
    assert (gone.status_code, gone.json()) == (200, {"status": "revoked"})
    token = machine["Authorization"].removeprefix("Bearer ")
    assert desk.revoked == [people.digest(token)]

    for path in ("/v1/payments/balance", "/v1/provider/account-earnings"):
        reply = await desk.client.get(path, headers=machine)
        assert error_of(reply) == (401, "authentication_error")
    again = await desk.client.post("/v1/device/revoke", headers=machine)
    assert error_of(again) == (401, "authentication_error")
    assert len(desk.revoked) == 1


async def test_only_a_device_token_can_be_revoked_with_itself(desk: Desk) -> None:
    for headers in ({}, await desk.api_key(OWNER), desk.session(OWNER), bearer("")):
        reply = await desk.client.post("/v1/device/revoke", headers=headers)
        assert error_of(reply) == (401, "authentication_error")


async def test_pending_codes_are_bounded_and_room_returns(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_login, "MAX_CODES", 3)
    first = await start(desk)
    for _ in range(2):
        await start(desk)
    full = await desk.client.post("/v1/device/code")
    assert error_of(full) == (429, "rate_limit_exceeded")
    assert int(full.headers["retry-after"]) >= 1
    desk.clock.forward(timedelta(seconds=901))
    await start(desk)
    assert error_of(await poll(desk, first)) == (404, "invalid_grant")


async def test_an_expired_code_is_forgotten_after_a_while(desk: Desk) -> None:
    code = await start(desk)
    desk.clock.forward(timedelta(minutes=30))
    await start(desk)
    assert error_of(await poll(desk, code)) == (410, "expired_token")
    desk.clock.forward(timedelta(minutes=60))
    await start(desk)
    assert error_of(await poll(desk, code)) == (404, "invalid_grant")


async def test_a_source_of_chance_that_repeats_itself_is_an_error_not_a_shared_code(
    tmp_path: Path,
) -> None:
    async with front_desk(tmp_path, random_hex=lambda size: "07" * size) as desk:
        assert (await desk.client.post("/v1/device/code")).status_code == 200
        assert error_of(await desk.client.post("/v1/device/code")) == (500, "server_error")


@pytest.mark.parametrize(
    ("console", "host", "uri"),
    [
        ("https://console.example", "h:1", "https://console.example/link"),
        ("https://console.example/", "h:1", "https://console.example/link"),
        (None, "127.0.0.1:8080", "http://127.0.0.1:8080/link"),
        (None, "api.darkbloom.dev", "https://api.darkbloom.dev/link"),
    ],
)
async def test_the_address_people_are_sent_to(
    tmp_path: Path, console: str | None, host: str, uri: str
) -> None:
    async with front_desk(tmp_path, console_url=console) as desk:
        reply = await desk.client.post("/v1/device/code", headers={"Host": host})
        assert reply.json()["verification_uri"] == uri


@given(st.text(max_size=20))
def test_user_codes_are_easy_to_type(seed: str) -> None:
    code = device_login._draw_user_code(counted_hex(seed))
    assert re.fullmatch(r"[A-HJKMNP-Z2-9]{4}-[A-HJKMNP-Z2-9]{4}", code)
