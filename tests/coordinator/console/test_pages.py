"""The pages over HTTP: who gets to them, that forms are ours, that foreign text stays text."""

from __future__ import annotations

import csv
import html
import io
import re
import tomllib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Connection, update

from darkbloom_provider.config import Config
from darkbloom_provider.coordinator.accounts import invites, people
from darkbloom_provider.coordinator.console import csrf
from darkbloom_provider.coordinator.console.app import PAGES
from darkbloom_provider.coordinator.console.forms import local_path
from darkbloom_provider.coordinator.console.gate import SESSION_COOKIE
from darkbloom_provider.coordinator.console.pages import earn as earn_pages
from darkbloom_provider.coordinator.console.pages.earn import csv_row
from darkbloom_provider.coordinator.console.rendering import HEADERS
from darkbloom_provider.coordinator.console.views import machines as machines_view
from darkbloom_provider.coordinator.console.views.samples import samples
from darkbloom_provider.coordinator.earnings import owner_views
from darkbloom_provider.coordinator.ledger.books import Balance, balance_of
from darkbloom_provider.coordinator.ledger.earning_totals import EarningsFilter
from darkbloom_provider.coordinator.public.releases import DEFAULT_PLATFORM, Release, register
from darkbloom_provider.coordinator.settings import Policy, Rate
from darkbloom_provider.coordinator.store import schema
from darkbloom_provider.coordinator.store.database import LedgerUnavailableError
from darkbloom_provider.protocol.attestation import AttestationBlob
from darkbloom_provider.protocol.messages import (
    BackendCapacity,
    BackendSlot,
    Hardware,
    ModelInfo,
    SystemMetrics,
)
from support.books import CONSUMER, LINKED, MACHINE, NOON, QWEN, Shop, add_up_again
from support.console import PASSWORD, Document, Visitor, visitor
from support.desk import BASE, NO_RATES

SHOWN = [page for page in PAGES if page.show is not None]
SENT = [page for page in PAGES if page.send is not None]
SERVED_BY_THE_HUB = {"/v1/models", "/v1/providers/attestation"}
HOSTILE = '<img src=x onerror="alert(1)">=1+1'


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Visitor]:
    async with visitor(tmp_path) as opened:
        yield opened


async def earn(browser: Visitor, account: str, jobs: int = 1, *, model: str = QWEN) -> None:
    """Let an account's machine do some jobs, a minute apart."""
    if not await browser.desk.services.db.read(lambda c: _known(c, CONSUMER)):
        await browser.desk.user(CONSUMER)
        await browser.desk.books(lambda shop: shop.deposit(100_000_000))

    def work(shop: Shop) -> None:
        serving = replace(LINKED, account_id=account)
        for number in range(jobs):
            name = f"{model}-{browser.desk.clock.now.isoformat()}-{number}"
            shop.reserve(name, 10_000)
            shop.settle(name, 120, 380, serving=serving)

    await browser.desk.books(work)
    browser.desk.clock.forward(timedelta(minutes=1))


def _known(connection: Connection, account: str) -> bool:
    return people.find_user(connection, account_id=account) is not None


async def balance(browser: Visitor, account: str) -> Balance:
    return await browser.desk.services.db.read(lambda c: balance_of(c, account))


# ---------------------------------------------------------------- who gets where


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.path)
async def test_who_is_not_signed_in_gets_public_pages_and_else_is_asked_to(
    browser: Visitor, page: object
) -> None:
    path = page.path  # type: ignore[attr-defined]
    reply = await browser.client.get(path)
    if page.private:  # type: ignore[attr-defined]
        assert reply.status_code == 303
        assert httpx.URL(reply.headers["location"]).path == "/sign-in"
        assert httpx.URL(reply.headers["location"]).params["next"] == path
    else:
        assert reply.status_code == 200


def test_the_public_pages_are_these_and_no_others() -> None:
    public = {page.path for page in PAGES if not page.private}
    assert public == {
        "/",
        "/sign-in",
        "/sign-up",
        "/earn/calculator",
        "/billing/return",
        "/earn/payouts/return",
        "/leaderboard",
        "/models",
        "/setup",
        "/stats",
    }


@pytest.mark.parametrize("page", SENT, ids=lambda page: page.path)
async def test_no_form_is_taken_from_another_site(browser: Visitor, page: object) -> None:
    path = page.path  # type: ignore[attr-defined]
    await browser.sign_up()
    for fields in ({"a": ""}, {csrf.FIELD: ""}, {csrf.FIELD: "0" * 64}, {csrf.FIELD: "é"}):
        reply = await browser.client.post(path, data=fields)
        assert reply.status_code == 403
        assert "not sent from a page of this console" in reply.text


async def test_a_good_proof_does_not_help_another_site(browser: Visitor) -> None:
    await browser.sign_up()
    form = (await browser.see("/keys")).form("/keys")
    for header in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        reply = await browser.client.post("/keys", data=form, headers=header)
        assert reply.status_code == 403
    good = {"Origin": "http://coordinator.test:8080", "Sec-Fetch-Site": "same-origin"}
    assert (await browser.client.post("/keys", data=form, headers=good)).status_code == 200


async def test_the_proof_of_one_session_is_worthless_in_another(
    browser: Visitor, tmp_path: Path
) -> None:
    before = (await browser.see("/sign-in")).form("/sign-in")[csrf.FIELD]
    await browser.sign_up()
    after = (await browser.see("/keys")).form("/keys")[csrf.FIELD]
    assert before != after
    reply = await browser.client.post("/keys", data={csrf.FIELD: before})
    assert reply.status_code == 403


async def test_every_form_that_changes_something_carries_the_proof(browser: Visitor) -> None:
    pages = ["/sign-in", "/sign-up"]
    documents = [await browser.see(path) for path in pages]
    account = await browser.sign_up()
    await earn(browser, account)
    code = (await browser.client.post("/v1/device/code")).json()["user_code"]
    await browser.desk.device_token(account)
    machine = await machine_page(browser)
    private = ["/earn", machine, f"/link?code={code}", "/billing", "/keys", "/account"]
    documents += [await browser.see(path) for path in private]
    forms = [form for document in documents for form in document.forms]
    posted = [form for form in forms if form.get("method") == "post"]
    assert len(posted) >= 12
    for form in posted:
        assert len(form["fields"].get(csrf.FIELD, "")) == 64, form
    assert all(form.get("method") in {"post", "get"} for form in forms)


async def test_a_body_that_is_no_form_is_refused(browser: Visitor) -> None:
    await browser.sign_up()
    for content, kind in (
        ("{}", "application/json"),
        ("a=%ff", "application/x-www-form-urlencoded"),
    ):
        reply = await browser.client.post("/keys", content=content, headers={"Content-Type": kind})
        assert reply.status_code in {400, 415}
        assert reply.headers["content-type"].startswith("text/html")


# ---------------------------------------------------------------- what every page is sent with


@pytest.mark.parametrize("path", ["/", "/earn", "/no-such-page", "/sign-in", "/static/console.css"])
async def test_every_reply_forbids_what_a_page_does_not_need(browser: Visitor, path: str) -> None:
    reply = await browser.client.get(path)
    for name, value in HEADERS.items():
        assert reply.headers[name] == value
    assert "access-control-allow-origin" not in reply.headers


async def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere(
    browser: Visitor,
) -> None:
    await browser.sign_up()
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "connect-src 'self';" in policy
    assert "unsafe" not in policy
    for page in SHOWN:
        document = await browser.see(page.path, status=_status(page.path))
        for tag, attributes in document.tags:
            assert tag not in {"style", "iframe", "object", "embed"}, page.path
            if tag == "script":
                assert attributes["src"].startswith("/static/live.js?v="), page.path
            assert "style" not in attributes, page.path
            assert not any(name.startswith("on") for name in attributes), page.path
            for name in ("src", "href", "action"):
                assert attributes.get(name, "/").startswith(("/", "#")), (page.path, attributes)


def _status(path: str) -> int:
    """What a visitor gets who is signed in and has neither a payout account nor a machine."""
    if "{" in path:
        return 404
    return 303 if path in {"/", "/sign-in", "/sign-up", "/earn/withdraw"} else 200


async def test_pages_are_kept_by_nobody_and_files_for_long(browser: Visitor) -> None:
    page = await browser.client.get("/sign-in")
    assert page.headers["cache-control"] == "no-store"
    address = next(
        attributes["href"]
        for tag, attributes in Document(page.text).tags
        if tag == "link" and attributes["rel"] == "stylesheet"
    )
    style = await browser.client.get(address)
    assert "immutable" in style.headers["cache-control"]
    assert style.headers["content-type"].startswith("text/css")
    assert (await browser.client.get("/static/nothing")).status_code == 404
    assert (await browser.client.get("/static/../console.css")).status_code == 404


async def test_texts_of_others_are_shown_as_text(browser: Visitor) -> None:
    account = await browser.sign_up()
    await earn(browser, account)
    foreign = update(schema.earnings).values(model=HOSTILE, machine_id=HOSTILE)
    await browser.desk.write(lambda c: c.execute(foreign))
    for path in ("/earn", "/machines"):
        reply = await browser.client.get(path)
        assert "<img src=x" not in reply.text
    assert "&lt;img src=x" in (await browser.client.get("/earn")).text
    asked = await browser.client.get("/earn", params={"model": HOSTILE, "done": HOSTILE})
    assert "<img src=x" not in asked.text
    typed = await browser.client.get("/link", params={"code": HOSTILE})
    assert "<img src=x" not in typed.text
    line = next(csv.reader(io.StringIO((await _csv(browser)).split("\r\n", 1)[1])))
    assert line[1] == HOSTILE


async def test_what_a_machine_says_of_itself_is_shown_as_text(browser: Visitor) -> None:
    account = await browser.sign_up()
    hardware = Hardware(chip_name=HOSTILE, machine_model=HOSTILE)
    said = SystemMetrics(thermal_state=HOSTILE)
    slots = (BackendSlot(model=HOSTILE, state=HOSTILE), BackendSlot(model=HOSTILE, state="crashed"))
    browser.connect(
        account,
        hardware=hardware,
        models=(ModelInfo(id=HOSTILE),),
        version=HOSTILE,
        machine_id=MACHINE,
        metrics=said,
        capacity=BackendCapacity(slots=slots),
        active_model=HOSTILE,
        attestation=AttestationBlob.model_validate({"serialNumber": HOSTILE}),
    )
    await browser.send("/keys", "/keys", name=HOSTILE)
    for path in ("/machines", machine_address(MACHINE), "/stats", "/models", "/keys"):
        reply = await browser.client.get(path)
        assert reply.status_code == 200
        assert "<img src=x" not in reply.text, path
        assert "&lt;img" in reply.text, path


async def test_a_machine_is_told_of_the_release_that_the_operator_registered(
    browser: Visitor,
) -> None:
    account = await browser.sign_up()
    browser.connect(account, version="3.9.0", machine_id=MACHINE)
    assert "3.10.0" not in (await browser.see("/machines")).text
    release = Release(
        version="3.10.0",
        platform=DEFAULT_PLATFORM,
        binary_hash="0" * 64,
        bundle_hash="0" * 64,
        python_hash="",
        runtime_hash="",
        template_hashes="",
        url="https://example.org/bundle.tar.gz",
        changelog="",
        active=True,
        created_at=browser.desk.clock(),
    )
    await browser.desk.services.db.write(lambda c: register(c, release))
    text = (await browser.see("/machines")).text
    assert "Its version is 3.9.0, and 3.10.0 exists" in text


async def _csv(browser: Visitor) -> str:
    reply = await browser.client.get("/earn/history.csv")
    assert reply.headers["content-type"].startswith("text/csv")
    return reply.text


# ---------------------------------------------------------------- signing up, in and out


async def test_signing_up_in_and_out(browser: Visitor) -> None:
    await browser.sign_up()
    assert "owner@example.org" in (await browser.see("/account")).text
    reply = await browser.send("/earn", "/sign-out")
    assert reply.headers["location"] == "/sign-in?done=signed_out"
    assert (await browser.client.get("/earn")).status_code == 303
    reply = await browser.send(
        "/sign-in?next=/link?code=ABCD-2345",
        "/sign-in",
        email="owner@example.org",
        password=PASSWORD,
    )
    assert reply.headers["location"] == "/link?code=ABCD-2345"


async def test_a_session_that_was_signed_out_is_worthless_to_whoever_kept_it(
    browser: Visitor,
) -> None:
    await browser.sign_up()
    kept = browser.client.cookies[SESSION_COOKIE]
    await browser.send("/earn", "/sign-out")
    browser.client.cookies.set(SESSION_COOKIE, kept)
    assert (await browser.client.get("/earn")).status_code == 303


async def test_an_api_key_opens_no_page(browser: Visitor) -> None:
    account = await browser.sign_up()
    headers = await browser.desk.api_key(account)
    browser.client.cookies.clear()
    browser.client.cookies.set(SESSION_COOKIE, headers["Authorization"].removeprefix("Bearer "))
    assert (await browser.client.get("/earn")).status_code == 303
    assert (await browser.client.get("/earn", headers=headers)).status_code == 303


async def test_a_wrong_password_is_said_and_the_address_is_kept(browser: Visitor) -> None:
    reply = await browser.send("/sign-in", "/sign-in", email="a@example.org", password="wrong")
    assert reply.status_code == 401
    assert "Wrong e-mail address or password" in reply.text
    assert Document(reply.text).form("/sign-in")["email"] == "a@example.org"
    assert "wrong" not in Document(reply.text).form("/sign-in").values()


async def test_signing_up_with_a_taken_address_says_nothing_of_it(browser: Visitor) -> None:
    await browser.sign_up()
    await browser.send("/earn", "/sign-out")
    reply = await browser.send(
        "/sign-up", "/sign-up", email="owner@example.org", password="another long password"
    )
    assert reply.headers["location"] == "/sign-in?done=signed_up"


async def test_nobody_is_sent_to_another_site_after_signing_in(browser: Visitor) -> None:
    form = (await browser.see("/sign-in?next=https://evil.example/")).form("/sign-in")
    assert form["next"] == "/earn"
    for target in ("//evil.example", "/\\evil.example", "https:evil", "", "/a\r\nb", "/é"):
        assert local_path(target, "/earn") == "/earn"


async def test_guessing_passwords_is_slowed_down_here_as_everywhere(tmp_path: Path) -> None:
    rates = replace(NO_RATES, password=Rate(1 / 60, 2))
    async with visitor(tmp_path, rates=rates) as browser:
        statuses = []
        for _ in range(4):
            reply = await browser.send(
                "/sign-in", "/sign-in", email="a@example.org", password="guess"
            )
            statuses.append(reply.status_code)
        assert statuses == [401, 401, 429, 429]
        assert "Too many requests" in reply.text


async def test_where_the_operator_opens_accounts_nobody_is_offered_one(tmp_path: Path) -> None:
    async with visitor(tmp_path, policy=Policy(sign_up="closed")) as browser:
        assert "/sign-up" not in (await browser.client.get("/")).text
        assert "operator opens accounts" in (await browser.see("/sign-up")).text


async def test_over_tls_no_other_host_can_set_the_session(tmp_path: Path) -> None:
    async with visitor(tmp_path, console_url="https://coordinator.test:8080") as browser:
        reply = await browser.client.get("/sign-in")
        cookie = reply.headers["set-cookie"]
        assert cookie.startswith("__Host-darkbloom_visitor=")
        for word in ("HttpOnly", "Secure", "SameSite=strict", "Path=/"):
            assert word in cookie


# ---------------------------------------------------------------- money


async def test_earnings_are_shown_filtered_and_paged(browser: Visitor) -> None:
    account = await browser.sign_up()
    await earn(browser, account, 60)
    document = await browser.see("/earn")
    assert "Total earned$0.018480" in document.text.replace(" $", "$")
    assert "Rows 1 to 50." in document.text
    assert "Page 1 of 2" in document.text
    assert "Rows 51 to 60." in (await browser.see("/earn?page=2")).text
    empty = await browser.see("/earn?to=2026-04-30")
    assert "No job matches this filter." in empty.text
    narrowed = await browser.see(f"/earn?from=2026-05-01&model={QWEN}")
    assert "60 of 60 jobs, together $0.018480" in narrowed.text
    refused = await browser.see("/earn?from=soon", status=400)
    assert "From must be a day" in refused.text


async def test_the_file_holds_every_row_once_however_many_reads_it_takes(
    browser: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(earn_pages, "CSV_ROWS", 10)
    account = await browser.sign_up()
    await earn(browser, account, 25)
    await earn(browser, account, 10)
    rows = list(csv.DictReader(io.StringIO(await _csv(browser))))
    assert len({row["job_id"] for row in rows}) == len(rows) == 35
    assert [row["time"] for row in rows] == sorted((r["time"] for r in rows), reverse=True)
    assert sum(int(row["amount_micro_usd"]) for row in rows) == 308 * len(rows)
    assert {row["amount_usd"] for row in rows} == {"0.000308"}


async def test_a_cell_cannot_become_a_formula(browser: Visitor) -> None:
    account = await browser.sign_up()
    await earn(browser, account)
    everything = EarningsFilter()
    row = (
        await browser.desk.services.db.read(
            lambda c: owner_views.history(c, account, chosen=everything, limit=1)
        )
    )[0]
    for start in "=+-@\t\r":
        assert csv_row(replace(row, model=f"{start}1+1"))[1] == f"'{start}1+1"


async def test_nobody_sees_the_earnings_and_machines_of_others(browser: Visitor) -> None:
    account = await browser.sign_up()
    await earn(browser, account, 3)
    await browser.send("/earn", "/sign-out")
    other = await browser.sign_up("other@example.org")
    assert other != account
    document = await browser.see("/earn")
    assert "No job yet." in document.text
    assert len((await _csv(browser)).splitlines()) == 1
    assert "No machine yet" in (await browser.see("/machines")).text


async def ready(browser: Visitor, destination: str = "card") -> str:
    """Somebody with $5 and a sandbox account to send it to."""
    account = await browser.sign_up()
    await browser.desk.books(lambda shop: shop.earn(5_000_000, account))
    reply = await browser.send("/earn", "/earn/payouts", country="US")
    assert reply.status_code == 303
    assert "Sandbox" in (await browser.see(reply.headers["location"])).text
    await browser.client.post(reply.headers["location"], data={"destination": destination})
    return account


async def test_a_withdrawal_that_is_sent_twice_is_one(browser: Visitor) -> None:
    account = await ready(browser)
    page = "/earn/withdraw?amount=2.00&method=instant"
    form = (await browser.see(page)).form("/earn/withdraw")
    fields = {csrf.FIELD, "amount", "method", "key"}
    assert set(form) == fields
    for _ in range(2):
        reply = await browser.client.post("/earn/withdraw", data=form)
        assert reply.headers["location"] == "/earn/withdrawals?done=withdrawn"
    assert (await balance(browser, account)).withdrawable == 3_000_000
    listed = await browser.see("/earn/withdrawals")
    assert listed.text.count("in progress") == 1
    assert "Sandbox" in listed.text


async def test_a_withdrawal_is_shown_before_it_is_made_and_not_made_by_looking(
    browser: Visitor,
) -> None:
    account = await ready(browser)
    shown = await browser.see("/earn/withdraw?amount=2.00&method=instant")
    text = shown.text
    assert "$0.500000" in text
    assert "$1.500000" in text
    assert (await balance(browser, account)).withdrawable == 5_000_000
    wrong = await browser.see("/earn/withdraw?amount=6&method=standard")
    assert "Only $5.000000 can be withdrawn" in wrong.text
    assert not any(
        form.get("method") == "post" and form["action"] == "/earn/withdraw" for form in wrong.forms
    )


async def test_what_the_coordinator_refuses_is_said_on_the_form(browser: Visitor) -> None:
    account = await ready(browser, "bank")
    form = (await browser.see("/earn/withdraw?amount=2&method=standard")).form("/earn/withdraw")
    reply = await browser.client.post("/earn/withdraw", data=form | {"amount": "50"})
    assert reply.status_code == 400
    assert "Only $5.000000" in Document(reply.text).text
    reply = await browser.client.post("/earn/withdraw", data=form | {"method": "instant"})
    assert "Instant payouts need a debit card" in Document(reply.text).text
    assert (await balance(browser, account)).withdrawable == 5_000_000


async def test_where_nobody_is_paid_out_the_page_says_so(tmp_path: Path) -> None:
    async with visitor(tmp_path, payouts=None) as browser:
        await browser.sign_up()
        assert "Payouts are not enabled" in (await browser.see("/earn")).text
        assert (await browser.client.get("/earn/withdraw")).status_code == 303


async def test_coming_back_from_the_payout_service_goes_on_within_this_site(
    browser: Visitor,
) -> None:
    reply = await browser.client.get("/earn/payouts/return")
    assert reply.headers["refresh"] == "0; url=/earn?stripe_return=1&done=payouts"


async def test_an_invite_code_adds_credit_once(browser: Visitor) -> None:
    account = await browser.sign_up()
    services = browser.desk.services
    await browser.desk.write(
        lambda c: invites.create(
            c, amount=250_000, random_hex=services.random_hex, now=NOON, code="WELCOME", max_uses=2
        )
    )
    reply = await browser.send("/billing", "/billing/redeem", code="welcome")
    assert reply.headers["location"] == "/billing?done=redeemed"
    assert await balance(browser, account) == Balance(250_000, 0)
    again = await browser.send("/billing", "/billing/redeem", code="welcome")
    assert again.status_code == 400
    assert "already used" in again.text


async def test_credit_is_bought_from_the_page_and_there_when_the_payer_returns(
    browser: Visitor,
) -> None:
    account = await browser.sign_up()
    assert "No real money moves" in (await browser.see("/billing")).text
    reply = await browser.send("/billing", "/billing/buy", amount="15.00")
    assert (reply.status_code, reply.headers["location"].startswith(BASE)) == (303, True)
    link = reply.headers["location"]
    paid = await browser.client.post(link, data={"choice": "pay"})
    back = Document(paid.text)
    target = next(given["href"] for tag, given in back.tags if tag == "a")
    passing = await browser.client.get(target)
    assert passing.headers["refresh"].startswith("0; url=/billing?done=bought")
    page = await browser.see(passing.headers["refresh"].removeprefix("0; url="))
    assert "$15.00" in page.text
    assert await balance(browser, account) == Balance(15_000_000, 0)

    wrong = await browser.send("/billing", "/billing/buy", amount="0.10")
    assert wrong.status_code == 400
    assert "mount_usd is from $0.50" in wrong.text


async def test_where_no_credit_is_sold_the_page_offers_none(tmp_path: Path) -> None:
    async with visitor(tmp_path, deposits=None) as browser:
        await browser.sign_up()
        assert "Add credit" not in (await browser.see("/billing")).text


async def test_usage_is_shown_in_the_order_asked_for(browser: Visitor) -> None:
    account = await browser.sign_up()
    await browser.desk.books(lambda shop: shop.deposit(1_000_000, account))

    def buy(shop: Shop) -> None:
        for number, tokens in enumerate((300, 100, 200)):
            shop.reserve(f"r{number}", 10_000, account)
            shop.settle(f"r{number}", 0, tokens)

    await browser.desk.books(buy)

    async def order(name: str) -> list[int]:
        document = await browser.see(f"/billing?order={name}")
        titles = [a["title"] for tag, a in document.tags if tag == "tr" and "title" in a]
        return [int(title[-1]) for title in titles]

    assert await order("dearest") == [0, 2, 1]
    assert await order("cheapest") == [1, 2, 0]
    assert "Spent$0.000468" in (await browser.see("/billing")).text


# ---------------------------------------------------------------- keys and machines


async def test_a_key_is_shown_once_and_works_until_it_is_revoked(browser: Visitor) -> None:
    await browser.sign_up()
    made = await browser.send("/keys", "/keys", name="laptop")
    document = Document(made.text)
    key = next(word for word in document.text.split() if word.startswith("eigeninference-"))
    bearer = {"Authorization": f"Bearer {key}"}
    assert (await browser.client.get("/v1/payments/balance", headers=bearer)).status_code == 200
    assert key not in (await browser.client.get("/keys")).text
    reply = await browser.send("/keys", "/keys/revoke")
    assert reply.headers["location"] == "/keys?done=revoked"
    assert (await browser.client.get("/v1/payments/balance", headers=bearer)).status_code == 401


async def test_a_foreign_key_and_a_foreign_machine_cannot_be_touched(browser: Visitor) -> None:
    account = await browser.sign_up()
    key = await browser.desk.api_key(account)
    token = await browser.desk.device_token(account)
    key_id = (await browser.see("/keys")).form("/keys/revoke")["id"]
    page = await machine_page(browser)
    device_id = (await browser.see(page)).form("/machines/unlink")["id"]
    await browser.send("/earn", "/sign-out")
    await browser.sign_up("other@example.org")
    form = (await browser.see("/keys")).form("/keys")
    revoked = await browser.client.post("/keys/revoke", data=form | {"id": key_id})
    unlinked = await browser.client.post("/machines/unlink", data=form | {"id": device_id})
    assert (revoked.status_code, unlinked.status_code) == (403, 404)
    await browser.see(page, status=404)
    for credential in (key, token):
        reply = await browser.client.get("/v1/payments/balance", headers=credential)
        assert reply.status_code == 200


async def test_looking_at_a_code_links_nothing(browser: Visitor) -> None:
    await browser.sign_up()
    code = (await browser.client.post("/v1/device/code")).json()
    typed = code["user_code"].replace("-", "").lower()
    document = await browser.see(f"/link?code={typed}")
    assert code["user_code"] in document.text
    poll = {"device_code": code["device_code"]}
    waiting = await browser.client.post("/v1/device/token", json=poll)
    assert waiting.json() == {"status": "authorization_pending"}
    reply = await browser.client.post("/link", data=document.form("/link") | {"verdict": "approve"})
    assert reply.headers["location"] == "/machines?done=linked"
    linked = await browser.client.post("/v1/device/token", json=poll)
    assert linked.json()["status"] == "authorized"


async def test_a_code_that_is_not_mine_can_be_made_worthless(browser: Visitor) -> None:
    await browser.sign_up()
    code = (await browser.client.post("/v1/device/code")).json()
    form = (await browser.see(f"/link?code={code['user_code']}")).form("/link")
    await browser.client.post("/link", data=form | {"verdict": "deny"})
    denied = await browser.client.post(
        "/v1/device/token", json={"device_code": code["device_code"]}
    )
    assert denied.status_code == 410


async def test_a_wrong_code_is_said_on_the_form(browser: Visitor) -> None:
    await browser.sign_up()
    document = await browser.see("/link?code=ABCD-2345", status=404)
    assert "This code is not known" in document.text
    assert document.forms[-1]["fields"]["code"] == "ABCD-2345"


def machine_address(machine_id: str) -> str:
    return f"/machines/{machines_view.address(machine_id)}"


async def machine_page(browser: Visitor) -> str:
    """The address of the first machine's page."""
    document = await browser.see("/machines")
    links = (attributes.get("href", "") for tag, attributes in document.tags if tag == "a")
    return next(link for link in links if link.startswith("/machines/"))


async def test_a_machine_has_a_page_with_its_own_earnings_and_jobs(browser: Visitor) -> None:
    account = await browser.sign_up()
    await earn(browser, account, 60)
    browser.connect(account, machine_id=MACHINE)
    other = "b" * 32
    await browser.desk.write(
        lambda c: c.execute(
            update(schema.earnings).where(schema.earnings.c.id <= 5).values(machine_id=other)
        )
    )
    await browser.desk.write(add_up_again)
    page = await browser.see(machine_address(MACHINE))
    assert "Earned by this machine$0.016940" in page.text.replace(" $", "$")
    assert "55 jobs. Rows 1 to 50." in page.text
    second = await browser.see(machine_address(MACHINE) + "?page=2")
    assert "Rows 51 to 55." in second.text
    assert "Key in the Secure Enclave" not in page.text
    elsewhere = await browser.see(machine_address(other))
    assert "Earned by this machine$0.001540" in elsewhere.text.replace(" $", "$")
    assert "Not connected" in elsewhere.text


async def test_nobody_gets_to_the_page_of_anothers_machine(browser: Visitor) -> None:
    account = await browser.sign_up()
    await earn(browser, account)
    browser.connect(account, machine_id=MACHINE)
    await browser.see(machine_address(MACHINE))
    await browser.send("/earn", "/sign-out")
    await browser.sign_up("other@example.org")
    for address in (machine_address(MACHINE), "/machines/nothing", f"/machines/{MACHINE}"):
        document = await browser.see(address, status=404)
        assert "There is no such machine" in document.text


async def test_an_unlinked_machine_is_cut_off(browser: Visitor) -> None:
    account = await browser.sign_up()
    token = await browser.desk.device_token(account)
    assert "not connected" in (await browser.see("/machines")).text
    reply = await browser.send(await machine_page(browser), "/machines/unlink")
    assert reply.headers["location"] == "/machines?done=unlinked"
    reply = await browser.client.get("/v1/payments/balance", headers=token)
    assert reply.status_code == 401
    assert len(browser.desk.revoked) == 1


# ---------------------------------------------------------------- beside the API


async def test_the_api_keeps_its_own_errors(browser: Visitor) -> None:
    unknown = await browser.client.get("/v1/nothing")
    assert unknown.status_code == 404
    assert "text/html" not in unknown.headers["content-type"]
    wrong = await browser.client.get("/v1/auth/sign-in")
    assert wrong.status_code == 405
    assert wrong.headers["allow"]
    page = await browser.client.post("/leaderboard")
    assert page.status_code == 405
    assert "text/html" in page.headers["content-type"]


async def test_a_ledger_that_cannot_be_read_is_said_on_a_page(
    browser: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise LedgerUnavailableError("The ledger cannot be read", why="disk")

    await browser.sign_up()
    monkeypatch.setattr(type(browser.desk.services.db), "read", fail)
    for path in ("/earn", "/leaderboard"):
        reply = await browser.client.get(path)
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "5"
        assert "Nothing was changed" in reply.text


async def test_a_defect_is_a_page_that_says_nothing_of_it(
    browser: Visitor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def crash(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(type(browser.desk.services.db), "read", crash)
    reply = await browser.client.get("/leaderboard")
    assert reply.status_code == 500
    assert "Something is wrong here" in reply.text
    assert reply.headers["Content-Security-Policy"]
    assert "a secret" not in reply.text + capsys.readouterr().out


# ---------------------------------------------------------------- the leaderboard


async def test_the_leaderboard_shows_more_on_request_and_the_visitors_own_row(
    browser: Visitor,
) -> None:
    account = await browser.sign_up()
    for number in range(60):
        await browser.desk.user(f"owner-{number}")
        await earn(browser, f"owner-{number}", 1 + number % 3)
    await earn(browser, account)
    document = await browser.see("/leaderboard")
    rows = [a for tag, a in document.tags if tag == "tr"]
    assert len(rows) == 51
    assert "Show the first 200" in document.text
    longer = await browser.see("/leaderboard?limit=200")
    assert len([a for tag, a in longer.tags if tag == "tr"]) == 62
    assert longer.text.count("(you)") == 1
    assert "Show the first 200" not in longer.text


# ---------------------------------------------------------------- setting up


async def test_the_settings_that_are_shown_lead_to_this_coordinator(browser: Visitor) -> None:
    page = (await browser.client.get("/setup")).text
    shown = re.search(r"<code>(\[coordinator\][^<]*)</code>", page)
    assert shown is not None
    config = Config.model_validate(tomllib.loads(html.unescape(shown[1])))
    assert config.coordinator.base_url == "http://coordinator.test:8080"


# ---------------------------------------------------------------- code samples


async def test_every_sample_is_about_an_endpoint_and_answers(browser: Visitor) -> None:
    account = await browser.sign_up()
    key = await browser.desk.api_key(account)
    shown = samples("http://coordinator.test:8080", "a model")
    document = await browser.see("/keys")
    for sample in shown:
        assert sample.title in document.text
        assert sample.path in sample.code or "OpenAI(" in sample.code
        if "curl http" in sample.code and sample.path not in SERVED_BY_THE_HUB:
            headers = key if "$DARKBLOOM_KEY" in sample.code else {}
            reply = await browser.client.get(sample.path, headers=headers)
            assert reply.status_code == 200, sample.path


def test_a_sample_is_valid_python() -> None:
    for sample in samples("http://coordinator.test:8080", "a model"):
        if sample.language == "Python":
            compile(sample.code, "sample", "exec")


# ---------------------------------------------------------------- the calculator


async def test_the_calculator_needs_no_account_and_says_that_it_estimates(browser: Visitor) -> None:
    document = await browser.see("/earn/calculator?mac=mac-studio-m2-ultra&memory=192&hours=24")
    assert "An estimate, not a promise" in document.text
    assert "Qwen3.5 122B" in document.text
    assert "MiniMax M2.5 needs more memory" in document.text


async def test_the_calculator_takes_the_networks_own_prices_and_share(tmp_path: Path) -> None:
    async with visitor(tmp_path, policy=Policy(fee_percent=100)) as browser:
        document = await browser.see("/earn/calculator?kwh=0")
        assert document.text.count("$0.00") >= 4
        assert "less the network's 100" in document.text


async def test_a_wrong_number_in_the_calculator_is_said_on_its_form(browser: Visitor) -> None:
    document = await browser.see("/earn/calculator?hours=100", status=400)
    assert "Hours per day must be a number from 1 to 24" in document.text
    fields = next(f for f in document.forms if f["action"] == "/earn/calculator")["fields"]
    assert fields["hours"] == "100"
