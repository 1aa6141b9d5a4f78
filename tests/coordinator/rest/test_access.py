"""Who may call what: every route of the running coordinator, with every credential there is.

The table here is written by hand and does not read the product's declarations: a route that is
added, or let in more people than before, fails until somebody has decided about it here too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from darkbloom_provider.coordinator.ledger import reservations
from darkbloom_provider.coordinator.ledger.reservations import Serving
from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.coordinator.store import schema
from support.books import QWEN, QWEN_PRICE
from support.credentials import Person, bearer
from support.house import House, furnished

OPERATOR = frozenset({"operator", "admin key", "admin session"})
ADMINISTRATOR = OPERATOR - {"operator"}
SIGNED_IN = frozenset({"session", "admin session"})
PERSON = SIGNED_IN | {"key", "admin key"}
CREDENTIAL = PERSON | {"operator"}
MACHINE = CREDENTIAL | {"device"}
IN_KEY_HEADER = frozenset({"key in x-api-key", "empty bearer, key in x-api-key"})
RELEASES = frozenset({"release key"})
THE_TOKEN_ITSELF = frozenset({"device"})
ANYBODY = None

WHO = {
    ("GET", "/health"): ANYBODY,
    ("GET", "/openapi.json"): ANYBODY,
    ("GET", "/v1/pricing"): ANYBODY,
    ("GET", "/v1/models/catalog"): ANYBODY,
    ("GET", "/v1/leaderboard"): ANYBODY,
    ("GET", "/v1/network/totals"): ANYBODY,
    ("GET", "/v1/providers/attestation"): ANYBODY,
    ("GET", "/v1/runtime/manifest"): ANYBODY,
    ("GET", "/v1/provider/earnings"): ANYBODY,
    ("GET", "/v1/provider/node-earnings"): ANYBODY,
    ("POST", "/v1/auth/sign-up"): ANYBODY,
    ("POST", "/v1/auth/sign-in"): ANYBODY,
    ("POST", "/v1/device/code"): ANYBODY,
    ("POST", "/v1/device/token"): ANYBODY,
    ("POST", "/v1/device/revoke"): THE_TOKEN_ITSELF,
    ("GET", "/v1/provider/account-earnings"): MACHINE,
    ("GET", "/v1/provider/earnings-series"): MACHINE,
    ("GET", "/v1/payments/balance"): MACHINE,
    ("GET", "/v1/payments/usage"): CREDENTIAL,
    ("GET", "/v1/billing/wallet/balance"): CREDENTIAL,
    ("GET", "/v1/models"): CREDENTIAL,
    ("GET", "/v1/encryption-key"): ANYBODY,
    ("GET", "/v1/stats"): ANYBODY,
    ("GET", "/api/version"): ANYBODY,
    ("GET", "/v1/releases/latest"): ANYBODY,
    ("POST", "/v1/releases"): RELEASES,
    ("GET", "/v1/admin/releases"): OPERATOR,
    ("DELETE", "/v1/admin/releases"): OPERATOR,
    ("POST", "/v1/telemetry/events"): ANYBODY,
    # On this machine; `public/test_metrics` is about others.
    ("GET", "/metrics"): ANYBODY,
    ("GET", "/v1/admin/metrics"): OPERATOR,
    ("GET", "/v1/billing/methods"): ANYBODY,
    ("POST", "/v1/billing/stripe/create-session"): CREDENTIAL,
    ("GET", "/v1/billing/stripe/session"): CREDENTIAL,
    ("POST", "/v1/chat/completions"): CREDENTIAL,
    ("POST", "/v1/completions"): CREDENTIAL,
    ("POST", "/v1/responses"): CREDENTIAL,
    # Anthropic's clients send their key in a header of its own.
    ("POST", "/v1/messages"): CREDENTIAL | IN_KEY_HEADER,
    ("GET", "/v1/referral/stats"): CREDENTIAL,
    ("GET", "/v1/referral/info"): CREDENTIAL,
    ("POST", "/v1/referral/register"): PERSON,
    ("POST", "/v1/referral/apply"): PERSON,
    ("POST", "/v1/invite/redeem"): PERSON,
    ("POST", "/v1/billing/stripe/onboard"): PERSON,
    ("GET", "/v1/billing/stripe/status"): PERSON | {"device"},
    ("POST", "/v1/billing/withdraw/stripe"): PERSON,
    ("GET", "/v1/billing/stripe/withdrawals"): PERSON | {"device"},
    # Shown by the rail's signature, and by a link that is good once.
    ("POST", "/v1/billing/stripe/connect/webhook"): ANYBODY,
    ("POST", "/v1/billing/stripe/webhook"): ANYBODY,
    ("GET", "/sandbox/deposits/{token}"): ANYBODY,
    ("POST", "/sandbox/deposits/{token}"): ANYBODY,
    ("GET", "/sandbox/payouts/{token}"): ANYBODY,
    ("POST", "/sandbox/payouts/{token}"): ANYBODY,
    ("GET", "/v1/auth/session"): SIGNED_IN,
    ("POST", "/v1/auth/sign-out"): SIGNED_IN,
    ("POST", "/v1/auth/password"): SIGNED_IN,
    ("GET", "/v1/auth/keys"): SIGNED_IN,
    ("POST", "/v1/auth/keys"): SIGNED_IN,
    ("DELETE", "/v1/auth/keys"): SIGNED_IN,
    ("GET", "/v1/device/pending"): SIGNED_IN,
    ("POST", "/v1/device/approve"): SIGNED_IN,
    ("POST", "/v1/device/deny"): SIGNED_IN,
    ("GET", "/v1/me/devices"): SIGNED_IN,
    ("DELETE", "/v1/me/devices"): SIGNED_IN,
    ("GET", "/v1/admin/invite-codes"): OPERATOR,
    ("POST", "/v1/admin/invite-codes"): OPERATOR,
    ("DELETE", "/v1/admin/invite-codes"): OPERATOR,
    ("POST", "/v1/admin/credit"): OPERATOR,
    ("POST", "/v1/admin/reward"): OPERATOR,
    ("GET", "/v1/admin/users"): OPERATOR,
    ("PUT", "/v1/admin/pricing"): ADMINISTRATOR,
    ("GET", "/v1/admin/models"): ADMINISTRATOR,
    ("POST", "/v1/admin/models"): ADMINISTRATOR,
    ("DELETE", "/v1/admin/models"): ADMINISTRATOR,
    ("PUT", "/v1/pricing"): PERSON,
    ("DELETE", "/v1/pricing"): PERSON,
    ("GET", "/v1/admin/routing"): OPERATOR,
    # Says who it is in its first message; `test_hub_registration` is about what that is worth.
    ("WEBSOCKET", "/ws/provider"): ANYBODY,
}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with furnished(tmp_path) as house:
        yield house


def http_routes() -> list[tuple[str, str]]:
    return sorted(route for route in WHO if route[0] != "WEBSOCKET")


async def test_every_route_has_an_entry_and_every_entry_a_route(house: House) -> None:
    assert house.routes() == set(WHO)


async def test_each_credential_opens_just_what_it_should(house: House) -> None:
    wrong = []
    for route in http_routes():
        allowed = WHO[route]
        body: dict[str, Any] = {} if route[0] == "GET" else {"json": {}}
        for name, headers in house.credentials.items():
            reply = await house.call(route, headers(), **body)
            refused = reply.status_code in {401, 403} and "not_onboarded" not in reply.text
            if refused:
                assert set(reply.json()["error"]) == {"type", "message"}
            expected = allowed is not ANYBODY and name not in allowed
            if refused != expected or reply.status_code >= 500:
                wrong.append((*route, name, reply.status_code, reply.text))
    assert wrong == []


# ---------------------------------------------------------------- one account and another

PUBLIC_BY_NAME = {("GET", "/v1/provider/earnings"), ("GET", "/v1/provider/node-earnings")}
"""Whoever knows a wallet or a provider key may see its jobs; whose they are, nobody learns."""


async def work_for(house: House, owner: Person) -> dict[str, str]:
    """One job bought and served by a user. What of it must stay theirs."""
    now = house.net.coordinator.services.clock()
    job = "a-job-of-theirs"

    def trade(connection: Any) -> None:
        reservations.deposit(connection, owner.account_id, 1_000_000, now=now)
        reservations.Reserve(
            reservation_id=f"r-{job}",
            account_id=owner.account_id,
            model=QWEN,
            amount=10_000,
            now=now,
        )(connection)
        reservations.Settle(
            reservation_id=f"r-{job}",
            job_id=job,
            serving=Serving("session", "provider-key", account_id=owner.account_id),
            prompt_tokens=1000,
            completion_tokens=1000,
            price=QWEN_PRICE,
            policy=Policy(),
            now=now,
        )(connection)

    await house.net.coordinator.services.db.write(trade)
    mine = bearer(owner.session())
    keys = (await house.call(("GET", "/v1/auth/keys"), mine)).json()["keys"]
    devices = (await house.call(("GET", "/v1/me/devices"), mine)).json()["devices"]
    return {
        "account": owner.account_id,
        "email": owner.email,
        "key": keys[0]["id"],
        "machine": devices[0]["id"],
        "job": job,
    }


async def rows_of(house: House, account_id: str) -> dict[str, list[Any]]:
    """Everything stored about an account, beside its sessions."""
    tables = [t for t in schema.metadata.sorted_tables if {"account_id", "id"} & set(t.c.keys())]

    def read(connection: Any) -> dict[str, list[Any]]:
        found = {}
        for table in tables:
            column = table.c["account_id" if "account_id" in table.c else "id"]
            rows = connection.execute(select(table).where(column == account_id))
            found[table.name] = sorted(map(str, rows))
        return found

    return await house.net.coordinator.services.db.read(read)


def attempts(theirs: dict[str, str], key: str) -> list[dict[str, Any]]:
    """Requests that name everything somebody else owns."""
    named = {"account_id": theirs["account"], "email": theirs["email"], "key": key}
    named |= {"job_id": theirs["job"], "provider_key": "provider-key"}
    return [named | {"id": theirs["key"]}, named | {"id": theirs["machine"]}]


async def test_nothing_of_another_account_can_be_read_or_changed(house: House) -> None:
    theirs = await work_for(house, house.other)
    before = await rows_of(house, house.other.account_id)
    for route in http_routes():
        for name in ("device", "key", "session", "none"):
            for attempt in attempts(theirs, house.other.api_key):
                body = {} if route[0] == "GET" else {"json": attempt}
                headers = house.credentials[name]() | {"X-Account-Id": theirs["account"]}
                reply = await house.call(route, headers, params=attempt, **body)
                hidden = set(theirs) - ({"job"} if route in PUBLIC_BY_NAME else set())
                shown = {what for what in hidden if theirs[what] in reply.text}
                assert not shown, (route, name, reply.text)
    assert await rows_of(house, house.other.account_id) == before


async def test_what_is_hidden_from_others_is_shown_to_its_owner(house: House) -> None:
    theirs = await work_for(house, house.other)
    shown = set()
    for route in http_routes():
        if route[0] == "GET":
            reply = await house.call(route, bearer(house.other.session()), params={"limit": "5"})
            shown |= {what for what in theirs if theirs[what] in reply.text}
    assert shown == set(theirs)


async def test_its_owner_can_change_what_others_cannot(house: House) -> None:
    theirs = await work_for(house, house.other)
    mine = bearer(house.other.session())
    for route, named in (
        (("DELETE", "/v1/auth/keys"), {"id": theirs["key"]}),
        (("DELETE", "/v1/me/devices"), {"id": theirs["machine"]}),
    ):
        assert (await house.call(route, mine, json=named)).json() == {"status": "revoked"}
        assert (await house.call(route, mine, json=named)).status_code in {403, 404}
