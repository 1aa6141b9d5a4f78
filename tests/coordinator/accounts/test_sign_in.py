"""Signing up, in and out: the right password only, and no word to strangers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy import select

from darkbloom_provider.coordinator.accounts import invites, people
from darkbloom_provider.coordinator.accounts.passwords import Passwords, checked
from darkbloom_provider.coordinator.accounts.people import AuthenticationError
from darkbloom_provider.coordinator.accounts.sign_in import sign_in as sign_in_from
from darkbloom_provider.coordinator.rest.replies import ApiError
from darkbloom_provider.coordinator.settings import Policy, Rate, Rates
from darkbloom_provider.coordinator.store.schema import ended_sessions, users
from support.desk import ADMIN_KEY, Desk, bearer, counted_hex, error_of, front_desk

EMAIL = "ann@example.org"
PASSWORD = "correct horse battery"
OPEN = Policy(sign_up="open")


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with front_desk(tmp_path, policy=OPEN) as desk:
        await sign_up(desk)
        yield desk


async def sign_up(desk: Desk, **changes: Any) -> httpx.Response:
    body = {"email": EMAIL, "password": PASSWORD} | changes
    return await desk.client.post("/v1/auth/sign-up", json=body)


async def sign_in(desk: Desk, **changes: Any) -> httpx.Response:
    body = {"email": EMAIL, "password": PASSWORD} | changes
    return await desk.client.post("/v1/auth/sign-in", json=body)


async def token_of(desk: Desk, **changes: Any) -> dict[str, str]:
    reply = await sign_in(desk, **changes)
    assert reply.status_code == 200, reply.text
    return bearer(reply.json()["token"])


async def alive(desk: Desk, headers: dict[str, str]) -> bool:
    return (await desk.client.get("/v1/auth/session", headers=headers)).status_code == 200


async def test_the_right_password_begins_a_session_and_says_whose(desk: Desk) -> None:
    reply = await sign_in(desk, email=" ANN@Example.org ")
    document = reply.json()
    assert (document["email"], document["admin"]) == (EMAIL, False)
    assert document["expires_at"] == "2026-05-02T00:00:00Z"
    assert reply.headers["cache-control"] == "no-store"
    session = await desk.get("/v1/auth/session", headers=bearer(document["token"]))
    assert session == {k: v for k, v in document.items() if k != "token"}


async def test_a_wrong_password_and_a_wrong_address_get_the_same_answer(desk: Desk) -> None:
    wrong = await sign_in(desk, password="wrong horse battery")
    unknown = await sign_in(desk, email="nobody@example.org")
    assert error_of(wrong) == (401, "authentication_error")
    assert wrong.text == unknown.text
    await desk.user("keyholder")  # made by the operator: has no password
    assert (await sign_in(desk, email="keyholder@example.org")).text == wrong.text


async def test_a_stranger_waits_as_long_for_an_address_that_has_no_account() -> None:
    class Counting(PasswordHasher):
        compared = 0

        def verify(self, hash: str | bytes, password: str | bytes) -> Any:  # noqa: A002 - argon2's name
            self.compared += 1
            return super().verify(hash, password)

    hasher = Counting(time_cost=1, memory_cost=8, parallelism=1)
    passwords = Passwords(hasher)
    stored = passwords.hashed(checked(PASSWORD, email=EMAIL))
    assert passwords.matches(stored, PASSWORD)
    assert not passwords.matches(stored, PASSWORD + "!")
    for nobodys in (PASSWORD, ""):
        assert not passwords.matches(None, nobodys)
    assert hasher.compared == 4


async def test_signing_up_with_a_taken_address_looks_the_same_and_changes_nothing(
    desk: Desk,
) -> None:
    new = await sign_up(desk, email="ben@example.org")
    taken = await sign_up(desk, password="another long password")
    assert (
        (taken.status_code, taken.content) == (new.status_code, new.content) == (202, new.content)
    )
    assert (await sign_in(desk, password="another long password")).status_code == 401
    assert (await sign_in(desk)).status_code == 200


async def test_a_password_is_kept_as_an_argon2id_hash(desk: Desk) -> None:
    rows = await desk.services.db.read(lambda c: c.execute(select(users.c.password_hash)).all())
    [(stored,)] = rows
    assert stored.startswith("$argon2id$")
    assert PASSWORD not in stored


def test_hashing_costs_what_rfc_9106_asks_for() -> None:
    stored = Passwords().hashed(checked(PASSWORD, email=EMAIL))
    assert "m=65536,t=3,p=4" in stored


@pytest.mark.parametrize("password", ["", "short", "x" * 257, EMAIL, EMAIL.upper(), 5, None])
async def test_a_poor_password_is_refused_and_not_repeated(desk: Desk, password: object) -> None:
    reply = await sign_up(desk, password=password)
    assert error_of(reply) == (400, "invalid_request_error")
    assert not password or str(password) not in reply.text


@pytest.mark.parametrize(
    "email", ["", "ann", "@", "a@", "@b", "a b@c", "a@b\nc", "x" * 251 + "@b.c"]
)
async def test_what_is_no_address_is_refused(desk: Desk, email: str) -> None:
    assert error_of(await sign_up(desk, email=email)) == (400, "invalid_request_error")


async def test_letters_that_look_the_same_are_the_same_password(desk: Desk) -> None:
    await sign_up(desk, email="zoe@example.org", password="caf\u00e9 au lait")
    await token_of(desk, email="zoe@example.org", password="cafe\u0301 au lait")


async def test_signing_out_ends_that_session_and_no_other(desk: Desk) -> None:
    one, two = await token_of(desk), await token_of(desk)
    out = await desk.client.post("/v1/auth/sign-out", headers=one)
    assert out.json() == {"status": "signed_out"}
    assert (await alive(desk, one), await alive(desk, two)) == (False, True)
    assert error_of(await desk.client.get("/v1/payments/balance", headers=one)) == (
        401,
        "authentication_error",
    )


async def test_signing_out_everywhere_ends_all_sessions_and_leaves_keys(desk: Desk) -> None:
    one, two = await token_of(desk), await token_of(desk)
    key = bearer((await desk.client.post("/v1/auth/keys", headers=one)).json()["api_key"])
    await desk.client.post("/v1/auth/sign-out", headers=one, json={"everywhere": True})
    assert (await alive(desk, one), await alive(desk, two)) == (False, False)
    assert await alive(desk, await token_of(desk))
    assert (await desk.client.get("/v1/payments/balance", headers=key)).status_code == 200


async def test_a_new_password_needs_the_old_one_and_ends_every_session(desk: Desk) -> None:
    one, two = await token_of(desk), await token_of(desk)

    async def change(current: str, new: str) -> httpx.Response:
        body = {"current_password": current, "new_password": new}
        return await desk.client.post("/v1/auth/password", headers=one, json=body)

    assert error_of(await change("wrong horse battery", "a new long one")) == (403, "forbidden")
    assert error_of(await change(PASSWORD, "short")) == (400, "invalid_request_error")
    assert await alive(desk, one)
    changed = await change(PASSWORD, "a new long one")
    assert (await alive(desk, one), await alive(desk, two)) == (False, False)
    assert await alive(desk, bearer(changed.json()["token"]))
    assert (await sign_in(desk)).status_code == 401
    assert (await sign_in(desk, password="a new long one")).status_code == 200


async def test_the_list_of_ended_sessions_forgets_those_that_expired(desk: Desk) -> None:
    for _ in range(3):
        await desk.client.post("/v1/auth/sign-out", headers=await token_of(desk))
        desk.clock.forward(timedelta(hours=13))
    left = await desk.services.db.read(lambda c: c.execute(select(ended_sessions)).all())
    assert len(left) == 1


async def test_closed_sign_up_is_for_the_operator_only(tmp_path: Path) -> None:
    async with front_desk(tmp_path, policy=Policy(sign_up="closed")) as desk:
        assert error_of(await sign_up(desk, invite_code="INV-1")) == (403, "forbidden")


async def test_sign_up_needs_an_invite_unless_the_operator_opened_it(tmp_path: Path) -> None:
    async with front_desk(tmp_path) as desk:
        await desk.write(
            lambda c: invites.create(
                c, amount=5_000_000, random_hex=counted_hex(), now=desk.clock(), code="WELCOME"
            )
        )
        assert error_of(await sign_up(desk)) == (403, "forbidden")
        assert error_of(await sign_up(desk, invite_code="WRONG")) == (404, "not_found")
        await desk.user("taken")
        # A taken address does not use the invite up.
        assert (await sign_up(desk, email="taken@example.org", invite_code="welcome")).is_success
        assert (await sign_up(desk, invite_code="welcome")).is_success
        headers = await token_of(desk)
        held = await desk.get("/v1/payments/balance", headers=headers)
        assert (held["balance_micro_usd"], held["withdrawable_micro_usd"]) == (5_000_000, 0)
        again = await sign_up(desk, email="ben@example.org", invite_code="WELCOME")
        assert error_of(again) == (400, "invalid_request_error")


async def test_keys_are_named_listed_and_revoked_one_by_one(desk: Desk) -> None:
    headers = await token_of(desk)
    made = []
    for name in ("laptop", "", ""):
        reply = await desk.client.post("/v1/auth/keys", headers=headers, json={"name": name})
        made.append(reply.json())
    listed = (await desk.get("/v1/auth/keys", headers=headers))["keys"]
    assert {key["id"] for key in listed} == {key["id"] for key in made}
    assert {key["name"] for key in listed} == {"laptop", ""}
    assert {key["hint"] for key in listed} == {key["api_key"][-4:] for key in made}
    for key in made:
        assert key["api_key"] not in str(listed)
    twice = await desk.client.post("/v1/auth/keys", headers=headers, json={"name": "laptop"})
    assert error_of(twice) == (400, "invalid_request_error")
    gone = await desk.client.request(
        "DELETE", "/v1/auth/keys", headers=headers, json={"id": made[0]["id"]}
    )
    assert gone.json() == {"status": "revoked"}
    left = (await desk.get("/v1/auth/keys", headers=headers))["keys"]
    assert {key["id"] for key in left} == {key["id"] for key in made[1:]}
    dead = await desk.client.get("/v1/payments/balance", headers=bearer(made[0]["api_key"]))
    assert dead.status_code == 401


# ---------------------------------------------------------------- how often

GUESSES = Rates(password=Rate(1 / 60, 3), sign_in=Rate(1.0, 100))


async def test_guessing_a_password_is_slowed_down_and_one_success_costs_nothing(
    tmp_path: Path,
) -> None:
    async with front_desk(tmp_path, policy=OPEN, rates=GUESSES) as desk:
        await sign_up(desk)
        for _ in range(5):
            await token_of(desk)
        for _ in range(3):
            assert (await sign_in(desk, password="wrong horse battery")).status_code == 401
        # Not even the right one is tried now, so a guess learns nothing.
        refused = await sign_in(desk)
        assert error_of(refused) == (429, "rate_limit_exceeded")
        assert refused.headers["retry-after"] == "60"
        assert int(refused.headers["x-ratelimit-reset"]) == desk.clock().timestamp() + 60
        # Another address is another matter, with an account or not.
        assert (await sign_in(desk, email="nobody@example.org")).status_code == 401
        desk.clock.forward(timedelta(seconds=60))
        await token_of(desk)


async def test_an_address_without_an_account_is_limited_in_the_same_way(tmp_path: Path) -> None:
    async with front_desk(tmp_path, policy=OPEN, rates=GUESSES) as desk:
        answers = [(await sign_in(desk, email="nobody@example.org")).status_code for _ in range(5)]
        assert answers == [401, 401, 401, 429, 429]


async def test_a_stranger_who_guesses_does_not_keep_the_owner_out(tmp_path: Path) -> None:
    rates = Rates(password=Rate(1 / 60, 3), password_anywhere=Rate(1 / 30, 5))
    async with front_desk(tmp_path, policy=OPEN, rates=rates) as desk:
        await sign_up(desk)

        async def guess(address: str, *, rightly: bool = False) -> int:
            password = PASSWORD if rightly else "wrong horse battery"
            try:
                await sign_in_from(desk.services, EMAIL, password, address=address)
            except AuthenticationError:
                return 401
            except ApiError as error:
                return error.status
            return 200

        assert [await guess("192.0.2.1") for _ in range(4)] == [401, 401, 401, 429]
        assert await guess("192.0.2.2", rightly=True) == 200
        # Many computers together get no further than this.
        assert [await guess(f"198.51.100.{n}") for n in range(4)] == [401, 401, 429, 429]


async def test_one_computer_cannot_try_many_addresses(tmp_path: Path) -> None:
    async with front_desk(tmp_path, policy=OPEN, rates=Rates(sign_in=Rate(0.5, 3))) as desk:
        answers = [await sign_in(desk, email=f"{number}@example.org") for number in range(4)]
        assert [reply.status_code for reply in answers] == [401, 401, 401, 429]
        assert answers[-1].headers["retry-after"] == "2"
        # Signing up is the same door.
        assert (await sign_up(desk)).status_code == 429
        desk.clock.forward(timedelta(seconds=2))
        assert (await sign_up(desk)).status_code == 202


async def test_the_financial_limit_is_by_account_and_not_for_the_operators_key(
    tmp_path: Path,
) -> None:
    async with front_desk(tmp_path, rates=Rates()) as desk:
        for name in ("a", "b"):
            await desk.user(name)
        one, two = desk.session("a"), desk.session("b")

        async def key(headers: dict[str, str]) -> int:
            return (await desk.client.post("/v1/auth/keys", headers=headers)).status_code

        assert [await key(one) for _ in range(4)] == [200, 200, 200, 429]
        # Another session of the same account changes nothing; another account is not concerned.
        assert await key(desk.session("a")) == 429
        assert await key(two) == 200
        desk.clock.forward(timedelta(seconds=5))
        assert await key(one) == 200
        for _ in range(10):
            made = await desk.client.post(
                "/v1/admin/invite-codes", headers=bearer(ADMIN_KEY), json={"amount_usd": 1}
            )
            assert made.status_code == 201
        await desk.write(lambda c: people.set_admin(c, "b", is_admin=True))
        human = [
            await desk.client.post("/v1/admin/invite-codes", headers=two, json={"amount_usd": 1})
            for _ in range(4)
        ]
        assert [reply.status_code for reply in human] == [201, 201, 201, 429]


async def test_refused_callers_are_not_counted(tmp_path: Path) -> None:
    async with front_desk(tmp_path, rates=Rates()) as desk:
        await desk.user("a")
        for _ in range(10):
            assert (await desk.client.post("/v1/auth/keys")).status_code == 401
        assert (await desk.client.post("/v1/auth/keys", headers=desk.session("a"))).is_success
