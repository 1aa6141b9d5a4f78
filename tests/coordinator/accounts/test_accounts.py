"""Who may do what: four guard levels, five kinds of credential, hashes only."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from darkbloom_provider.coordinator.accounts import people
from darkbloom_provider.coordinator.accounts.people import (
    AccountError,
    AuthenticationError,
    Guard,
    Principal,
    authenticate,
    bearer_of,
)
from darkbloom_provider.coordinator.accounts.session_tokens import (
    KEY_FILE,
    InvalidSessionError,
    SessionKeys,
    SigningKeyError,
)
from darkbloom_provider.coordinator.store.schema import api_keys
from support.books import NOON, OWNER
from support.desk import ADMIN_KEY, Desk, bearer, error_of, front_desk

HOUR = timedelta(hours=1)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with front_desk(tmp_path) as desk:
        await desk.user(OWNER)
        yield desk


async def who(
    desk: Desk, headers: dict[str, str], guard: Guard, *, device_token: bool = False
) -> Principal | tuple[int, str]:
    try:
        return await desk.services.db.read(
            lambda c: authenticate(
                c,
                bearer_of(headers.get("Authorization")),
                identity=desk.services.identity,
                now=desk.clock(),
                guard=guard,
                device_token=device_token,
            )
        )
    except AuthenticationError as error:
        return error.status, error.type


async def test_each_credential_passes_the_guards_it_should(desk: Desk) -> None:
    refused, unsigned, no_user = (
        (401, "authentication_error"),
        (403, "forbidden"),
        (401, "auth_error"),
    )
    table: list[tuple[dict[str, str], object, object, object]] = [
        # credential, any, user, session
        ({}, refused, refused, refused),
        (bearer("nonsense"), refused, refused, unsigned),
        (bearer("eyJhbGciOiJub25lIn0.e30."), refused, refused, refused),
        (await desk.device_token(OWNER), refused, refused, unsigned),
        (bearer(ADMIN_KEY), "admin", no_user, unsigned),
        (await desk.api_key(OWNER), "api_key", "api_key", unsigned),
        (desk.session(OWNER), "session", "session", "session"),
        (desk.session("nobody-we-know"), refused, refused, refused),
        (desk.session(OWNER, lifetime=timedelta(0)), refused, refused, refused),
    ]
    guards: tuple[Guard, ...] = ("any", "user", "session")
    for headers, *expected in table:
        for guard, wanted in zip(guards, expected, strict=True):
            got = await who(desk, headers, guard)
            assert (got.kind if isinstance(got, Principal) else got) == wanted, (headers, guard)


async def test_decision_6_a_device_token_reads_only_where_it_is_let_in(desk: Desk) -> None:
    machine = await desk.device_token(OWNER)
    allowed = await who(desk, machine, "any", device_token=True)
    assert isinstance(allowed, Principal)
    assert (allowed.kind, allowed.account_id) == ("device_token", OWNER)
    get, post = desk.client.get, desk.client.post
    for path in (
        "/v1/provider/account-earnings",
        "/v1/provider/earnings-series",
        "/v1/payments/balance",
    ):
        assert (await get(path, headers=machine)).status_code == 200
    for reply in (
        await get("/v1/payments/usage", headers=machine),
        await get("/v1/billing/wallet/balance", headers=machine),
    ):
        assert error_of(reply) == (401, "authentication_error")
    for reply in (
        await post("/v1/auth/keys", headers=machine),
        await desk.client.request("DELETE", "/v1/auth/keys", headers=machine, json={"key": "k"}),
    ):
        assert error_of(reply) == (403, "forbidden")


async def test_an_api_key_works_until_its_owner_revokes_it(desk: Desk) -> None:
    await desk.user("other")
    headers = await desk.api_key(OWNER)
    key = headers["Authorization"].removeprefix("Bearer ")
    assert key.startswith("eigeninference-")
    assert len(key) == len("eigeninference-") + 64
    stored = await desk.services.db.read(lambda c: str(c.execute(select(api_keys)).all()))
    assert key not in stored

    async def revoke(session: dict[str, str], body: Any) -> Any:
        return await desk.client.request("DELETE", "/v1/auth/keys", headers=session, json=body)

    assert error_of(await revoke(desk.session("other"), {"key": key})) == (403, "forbidden")
    assert error_of(await revoke(desk.session(OWNER), {})) == (400, "bad_request")
    assert error_of(await revoke(desk.session(OWNER), {"key": 1})) == (400, "bad_request")
    assert (await desk.client.get("/v1/payments/balance", headers=headers)).status_code == 200

    gone = await revoke(desk.session(OWNER), {"key": key})
    assert (gone.status_code, gone.json()) == (200, {"status": "revoked"})
    reply = await desk.client.get("/v1/payments/balance", headers=headers)
    assert error_of(reply) == (401, "authentication_error")
    assert error_of(await revoke(desk.session(OWNER), {"key": key})) == (403, "forbidden")


async def test_an_e_mail_address_has_one_account(desk: Desk) -> None:
    for email in (f"{OWNER}@example.org", f" {OWNER}@EXAMPLE.org ", ""):
        with pytest.raises(AccountError):
            await desk.write(
                lambda c, email=email: people.create_user(  # type: ignore[misc]  # mypy cannot infer a default's type
                    c, account_id="x", email=email, now=NOON
                )
            )


def test_without_an_admin_key_nobody_is_the_operator() -> None:
    identity = people.Identity(SessionKeys.generate())
    assert not identity.is_admin("")
    assert not identity.is_admin(ADMIN_KEY)


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (None, None),
        ("", None),
        ("Bearer", None),
        ("Bearer   ", None),
        ("Basic abc", None),
        ("bEaReR abc", "abc"),
        ("  Bearer   abc  ", "abc"),
    ],
)
def test_the_authorization_header_is_read_leniently(header: str | None, token: str | None) -> None:
    assert bearer_of(header) == token


def test_a_session_token_names_its_account_until_it_expires() -> None:
    keys = SessionKeys.generate()
    token = keys.issue(OWNER, session_id="s", now=NOON, lifetime=HOUR).reveal()
    assert token.startswith("eyJ")
    assert keys.verify(token, now=NOON + HOUR - timedelta(seconds=1)).account_id == OWNER
    with pytest.raises(InvalidSessionError):
        keys.verify(token, now=NOON + HOUR)


def _part(document: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


def test_a_session_token_signed_by_another_or_changed_is_refused() -> None:
    keys = SessionKeys.generate()
    token = keys.issue(OWNER, session_id="s", now=NOON).reveal()
    header, claims, signature = token.split(".")
    forged = [
        SessionKeys.generate().issue(OWNER, session_id="s", now=NOON).reveal(),
        f"{header}.{_part({'sub': 'eve', 'exp': 2**40})}.{signature}",
        f"{_part({'alg': 'none'})}.{claims}.",
        f"{_part({'alg': 'HS256'})}.{claims}.{signature}",
        f"{header}.{claims}.",
        f"{header}.{claims}.{'A' * 86}",
        f"{_part([])}.{claims}.{signature}",
        f"{header}.{claims}",
        "eyJ" + "x" * 10_000,
    ]
    for bad in forged:
        with pytest.raises(InvalidSessionError):
            keys.verify(bad, now=NOON)


@given(
    st.text() | st.lists(st.text('abc=-_{}"', max_size=20), min_size=3, max_size=3).map(".".join)
)
def test_nothing_foreign_makes_the_verifier_stumble(text: str) -> None:
    with pytest.raises(InvalidSessionError):
        SessionKeys.generate().verify(text, now=NOON)


def test_the_signing_key_is_private_and_survives_a_restart(tmp_path: Path) -> None:
    token = (
        SessionKeys.load_or_create(tmp_path / "state")
        .issue(OWNER, session_id="s", now=NOON)
        .reveal()
    )
    file = tmp_path / "state" / KEY_FILE
    assert file.stat().st_mode & 0o777 == 0o600
    assert (
        SessionKeys.load_or_create(tmp_path / "state").verify(token, now=NOON).account_id == OWNER
    )


def test_a_damaged_signing_key_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_bytes(b"damaged")
    with pytest.raises(SigningKeyError) as failed:
        SessionKeys.load_or_create(tmp_path)
    assert failed.value.next_step
    assert (tmp_path / KEY_FILE).read_bytes() == b"damaged"


def test_a_directory_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SigningKeyError):
        SessionKeys.load_or_create(tmp_path / "file")
