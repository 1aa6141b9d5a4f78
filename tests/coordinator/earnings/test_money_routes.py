"""Every view of money reads the same books, and junk in a question never bends the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.coordinator.accounts.pseudonyms import _ADJECTIVES, _ANIMALS, pseudonym
from darkbloom_provider.coordinator.earnings.views import ledger_rows
from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.ledger.reservations import Serving
from darkbloom_provider.coordinator.ledger.sweep import wallet_sweep
from support.books import CONSUMER, LINKED, MACHINE, NOON, OWNER, UNLINKED, WALLET, Shop
from support.desk import ADMIN_KEY, Desk, bearer, error_of, front_desk

EARNINGS = "/v1/provider/account-earnings"
SERIES = "/v1/provider/earnings-series"


@pytest.fixture
async def desk(tmp_path: Path, place: Path | str) -> AsyncIterator[Desk]:
    async with front_desk(tmp_path, where=place) as desk:
        await desk.user(OWNER)
        await desk.user(CONSUMER)
        await desk.books(lambda shop: shop.deposit(10_000_000))
        yield desk
        assert await desk.services.db.read(audit) == []


async def work(desk: Desk, name: str, serving: Serving = LINKED, completion: int = 380) -> None:
    """One job; 308 micro-USD unless told otherwise."""

    def act(shop: Shop) -> None:
        shop.reserve(name, 100_000)
        shop.settle(name, 120, completion, serving=serving)

    await desk.books(act)


async def test_all_views_agree_on_what_was_earned(desk: Desk) -> None:
    for n in range(3):
        await work(desk, f"j{n}")
    me = desk.session(OWNER)
    earned = await desk.get(EARNINGS, headers=me)
    balance = await desk.get("/v1/payments/balance", headers=me)
    node = await desk.get("/v1/provider/node-earnings", params={"provider_key": "key-1"})
    board = await desk.get("/v1/leaderboard")
    totals = await desk.get("/v1/network/totals")
    series = await desk.get(SERIES, headers=me)

    assert earned["total_micro_usd"] == 924
    assert earned["total_usd"] == "0.000924"
    assert balance == {
        "balance_micro_usd": 924,
        "balance_usd": "0.000924",
        "withdrawable_micro_usd": 924,
        "withdrawable_usd": "0.000924",
    }
    assert node["total_micro_usd"] == 924
    assert board["entries"][0]["earnings_micro_usd"] == 924
    assert totals["earnings_micro_usd"] == 924
    assert sum(point["amount_micro_usd"] for point in series["points"]) == 924
    assert {earned["count"], node["count"], board["entries"][0]["jobs"], totals["jobs"]} == {3}


async def test_what_was_earned_unlinked_moves_from_the_wallets_view_to_the_accounts(
    desk: Desk,
) -> None:
    await work(desk, "j", UNLINKED)
    wallet = f"/v1/provider/earnings?wallet={WALLET}"
    assert (await desk.get(wallet))["balance_micro_usd"] == 308
    assert (await desk.get("/v1/leaderboard"))["entries"] == []

    await desk.write(
        lambda c: wallet_sweep(
            c, address=WALLET, account_id=OWNER, machine_id=MACHINE, now=desk.clock()
        )
    )
    after = await desk.get(wallet)
    assert (after["balance_micro_usd"], after["payouts"][0]["settled"]) == (0, True)
    assert [row["type"] for row in after["ledger"]] == ["wallet_sweep", "payout"]
    mine = await desk.get(EARNINGS, headers=desk.session(OWNER))
    assert (mine["total_micro_usd"], mine["withdrawable_balance_micro_usd"]) == (308, 308)


@pytest.mark.parametrize("asked", [OWNER, CONSUMER, "platform", "internal:deposits", "%00", "x"])
async def test_a_wallet_view_shows_nobodys_account(desk: Desk, asked: str) -> None:
    await work(desk, "j")
    seen = await desk.get(f"/v1/provider/earnings?wallet={asked}")
    assert (seen["balance_micro_usd"], seen["total_jobs"], seen["ledger"]) == (0, 0, [])


async def test_required_parameters_are_asked_for(desk: Desk) -> None:
    for path in (
        "/v1/provider/earnings",
        "/v1/provider/earnings?wallet=",
        "/v1/provider/node-earnings",
    ):
        assert error_of(await desk.client.get(path)) == (400, "invalid_request_error")
    for path in (EARNINGS, SERIES, "/v1/payments/balance", "/v1/payments/usage"):
        assert error_of(await desk.client.get(path)) == (401, "authentication_error")


@pytest.mark.parametrize(
    ("limit", "applied"),
    [
        ("1", 1),
        ("0", 50),
        ("-3", 50),
        ("junk", 50),
        ("1001", 1000),
        ("9" * 30, 50),
        ("", 50),
        ("1.5", 50),
        ("٣", 50),
    ],
)
async def test_a_history_limit_that_makes_no_sense_is_the_default(
    desk: Desk, limit: str, applied: int
) -> None:
    for n in range(2):
        await work(desk, f"j{n}")
    reply = await desk.get(EARNINGS, params={"limit": limit}, headers=desk.session(OWNER))
    assert reply["history_limit"] == applied
    assert reply["recent_count"] == len(reply["earnings"]) == min(2, applied)
    assert reply["count"] == 2


async def test_earnings_are_filtered_by_time_model_and_key_and_paged(desk: Desk) -> None:
    for n in range(4):
        key = replace(LINKED, provider_key=f"key-{n % 2}")
        await work(desk, f"j{n}", key)
        desk.clock.forward(timedelta(hours=1))
    me = desk.session(OWNER)

    async def ask(**query: str) -> Any:
        return await desk.get(EARNINGS, params=query, headers=me)

    plain = await ask()
    assert "filtered_count" not in plain
    assert [row["job_id"] for row in plain["earnings"]] == ["job-j3", "job-j2", "job-j1", "job-j0"]
    # Half open: the job at 13:00 is in, the one at 15:00 is out.
    span = await ask(**{"from": "2026-05-01T13:00:00Z", "to": "2026-05-01T17:00:00+02:00"})
    assert [row["job_id"] for row in span["earnings"]] == ["job-j2", "job-j1"]
    assert (span["filtered_count"], span["filtered_micro_usd"]) == (2, 616)
    assert (span["count"], span["total_micro_usd"]) == (4, 1232)
    assert (await ask(provider_key="key-0"))["filtered_count"] == 2
    assert (await ask(model="QWEN"))["filtered_count"] == 0
    page = await ask(offset="1", limit="2")
    assert [row["job_id"] for row in page["earnings"]] == ["job-j2", "job-j1"]
    assert (await ask(offset="99"))["earnings"] == []


@pytest.mark.parametrize(
    "query",
    [
        "from=yesterday",
        "from=2026-05-01",
        "to=2026-05-01T00:00:00",
        "from=2026-13-01T00:00:00Z",
        "from=2026-05-02T00:00:00Z&to=2026-05-01T00:00:00Z",
        "offset=-1",
        "offset=x",
        "offset=99999999999",
    ],
)
async def test_a_filter_that_makes_no_sense_is_refused_rather_than_ignored(
    desk: Desk, query: str
) -> None:
    reply = await desk.client.get(f"{EARNINGS}?{query}", headers=desk.session(OWNER))
    assert error_of(reply) == (400, "invalid_request_error")


async def test_the_series_has_a_point_for_each_hour_or_day_with_work(desk: Desk) -> None:
    for n, wait in enumerate((0, 20, 50, 24 * 60)):
        desk.clock.forward(timedelta(minutes=wait))
        await work(desk, f"j{n}")
    me = desk.session(OWNER)
    days = await desk.get(SERIES, headers=me)
    assert [(p["start"], p["jobs"]) for p in days["points"]] == [
        ("2026-05-01T00:00:00Z", 3),
        ("2026-05-02T00:00:00Z", 1),
    ]
    hours = await desk.get(f"{SERIES}?bucket=hour&to=2026-05-02T00:00:00Z", headers=me)
    assert hours == {
        "bucket": "hour",
        "points": [
            {
                "start": "2026-05-01T12:00:00Z",
                "amount_micro_usd": 616,
                "jobs": 2,
                "prompt_tokens": 240,
                "completion_tokens": 760,
            },
            {
                "start": "2026-05-01T13:00:00Z",
                "amount_micro_usd": 308,
                "jobs": 1,
                "prompt_tokens": 120,
                "completion_tokens": 380,
            },
        ],
    }
    bad = await desk.client.get(f"{SERIES}?bucket=week", headers=me)
    assert error_of(bad) == (400, "invalid_request_error")


async def test_the_leaderboard_ranks_by_each_metric_and_breaks_ties_by_account(desk: Desk) -> None:
    for owner, completions in {"cc": [1_000], "aa": [500, 500], "bb": [500, 500]}.items():
        await desk.user(owner)
        for n, completion in enumerate(completions):
            serving = replace(LINKED, account_id=owner)
            await work(desk, f"{owner}{n}", serving, completion)

    async def order(metric: str) -> list[str]:
        board = await desk.get(f"/v1/leaderboard?metric={metric}")
        assert [row["rank"] for row in board["entries"]] == [1, 2, 3]
        return [row["pseudonym"] for row in board["entries"]]

    aa, bb, cc = (pseudonym(owner) for owner in ("aa", "bb", "cc"))
    assert await order("earnings") == [aa, bb, cc]
    assert await order("jobs") == [aa, bb, cc]
    assert await order("tokens") == [aa, bb, cc]
    assert len((await desk.get("/v1/leaderboard?limit=2"))["entries"]) == 2
    for junk in ("0", "201", "x", "-1"):
        assert len((await desk.get(f"/v1/leaderboard?limit={junk}"))["entries"]) == 3


async def test_a_window_rolls_and_is_echoed_as_it_was_written(desk: Desk) -> None:
    await work(desk, "old")
    desk.clock.forward(timedelta(hours=24))
    await work(desk, "edge")
    desk.clock.forward(timedelta(microseconds=1))
    for window, jobs in (("1d", 1), ("24h", 1), ("7d", 2), ("30d", 2), ("lifetime", 2), ("", 2)):
        for path in ("/v1/leaderboard", "/v1/network/totals"):
            reply = await desk.get(path, params={"window": window})
            assert reply["window"] == (window or "all")
            assert (reply["entries"][0] if "entries" in reply else reply)["jobs"] == jobs
    for path in (
        "/v1/leaderboard?window=2d",
        "/v1/network/totals?window=x",
        "/v1/leaderboard?metric=luck",
    ):
        assert error_of(await desk.client.get(path)) == (400, "invalid_request_error")


async def test_the_leaderboard_names_nobody(desk: Desk) -> None:
    await work(desk, "j")
    reply = await desk.client.get("/v1/leaderboard")
    assert OWNER not in reply.text
    assert pseudonym(OWNER) in reply.text
    assert pseudonym("") == "anon"


def test_the_words_of_pseudonyms_are_many_and_different() -> None:
    for words in (_ADJECTIVES, _ANIMALS):
        assert len(set(words)) == len(words) > 140
        assert all(word.isascii() and word.islower() and word.isalpha() for word in words)


async def test_a_consumer_sees_what_each_request_cost(desk: Desk) -> None:
    await work(desk, "j0")
    desk.clock.forward(timedelta(seconds=1))
    await desk.books(lambda shop: shop.reserve("gone", 50))
    await desk.books(lambda shop: shop.refund("gone"))
    await work(desk, "j1", completion=10)
    usage = (await desk.get("/v1/payments/usage", headers=desk.session(CONSUMER)))["usage"]
    assert [(row["job_id"], row["cost_micro_usd"]) for row in usage] == [
        ("job-j0", 308),
        ("job-j1", 19),
    ]
    credit = await desk.get("/v1/billing/wallet/balance", headers=desk.session(CONSUMER))
    assert credit == {"credit_balance_micro_usd": 10_000_000 - 308 - 19}


async def test_an_account_that_never_moved_money_reads_as_zero(desk: Desk) -> None:
    reply = await desk.get("/v1/payments/balance", headers=bearer(ADMIN_KEY))
    assert reply["balance_usd"] == "0.000000"


async def test_every_unlisted_model_is_absent_and_every_listed_one_priced(desk: Desk) -> None:
    prices = (await desk.get("/v1/pricing"))["prices"]
    assert {row["model"] for row in prices} == {m.id for m in desk.services.catalogue.entries}
    qwen = next(row for row in prices if row["model"] == "qwen3.5-27b-claude-opus-8bit")
    assert (qwen["input_usd"], qwen["output_usd"]) == ("$0.1000", "$0.7800")


async def test_when_the_ledger_is_gone_the_reply_says_so_without_details(tmp_path: Path) -> None:
    async with front_desk(tmp_path) as desk:
        await desk.services.db.close()
        reply = await desk.client.get("/v1/leaderboard")
        assert error_of(reply) == (503, "server_error")
        assert int(reply.headers["retry-after"]) > 0
        assert "sqlite" not in reply.text
        assert error_of(await desk.client.post("/v1/device/code")) == (503, "server_error")


async def test_internal_accounts_have_no_public_ledger(desk: Desk) -> None:
    await work(desk, "j")
    for account in books.INTERNAL:
        assert await desk.services.db.read(lambda c, a=account: ledger_rows(c, a)) == []  # type: ignore[misc]  # mypy cannot infer a default's type
    assert desk.clock() == NOON
