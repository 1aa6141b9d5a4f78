from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from darkbloom_provider.account.client import CoordinatorClient
from darkbloom_provider.account.refusals import CoordinatorReplyError
from darkbloom_provider.earnings.inquiry import MOST_KEYS, Means, inquire
from darkbloom_provider.earnings.journal import JobRecord, JournalTotals
from darkbloom_provider.earnings.journal_file import JournalDamagedError
from darkbloom_provider.earnings.statement import LOGIN_HINT, OFFLINE_HINT, Source, Statement
from darkbloom_provider.errors import CredentialsError, ExitCode
from darkbloom_provider.logs import Secret
from support.rest import EXTENSIONS, TOKEN, Answer, Script, account_reply, earning_row, error

URL = "https://c.example"
NOON = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
LINKED = Means(device_token=Secret(TOKEN))
WALLET = "0x8e6c57bb205bb373fe4e3a6f69404a8bb767b417"

OURS = {"status": "ok", "providers": 14, "extensions": EXTENSIONS}
THEIRS = {"status": "ok", "providers": 14}
REFUSED = Answer(401, error("authentication_error", "invalid token"))


class Books:
    """A journal of a few jobs that says whether it was opened."""

    def __init__(self, *amounts: int, keys: tuple[str, ...] = ()) -> None:
        self.opened = 0
        self._keys = keys
        self._jobs = [
            JobRecord(f"job-{n}", NOON + timedelta(seconds=n), f"m{n}", 1, 2, "k", True, amount)
            for n, amount in enumerate(amounts)
        ]

    @contextmanager
    def open(self) -> Iterator[Books]:
        self.opened += 1
        yield self

    def totals(self) -> JournalTotals:
        return JournalTotals(len(self._jobs), sum(job.estimate_micro_usd for job in self._jobs))

    def recent(self, limit: int) -> list[JobRecord]:
        return self._jobs[::-1][:limit]

    def provider_keys(self) -> tuple[str, ...]:
        return self._keys


def script_of(health: dict[str, Any] | None, **answers: Answer | list[Answer]) -> Script:
    paths = {"account": "account-earnings", "node": "node-earnings", "wallet": "earnings"}
    script = Script({f"GET /v1/provider/{paths[name]}": found for name, found in answers.items()})
    script.answers["GET /health"] = Answer(body=health) if health else Answer(503, b"down")
    return script


async def ask(script: Script, books: Books, means: Means, limit: int = 5) -> Statement:
    async with CoordinatorClient(URL, transport=script.transport()) as client:
        return await inquire(client, books.open, means, url=URL, limit=limit)


def node(total: int, count: int, *rows: dict[str, Any]) -> Answer:
    return Answer(body={"total_micro_usd": total, "count": count, "earnings": list(rows)})


def wallet(total: int, jobs: int, payouts: list[dict[str, Any]] | None = None) -> Answer:
    body = {
        "wallet_address": WALLET,
        "balance_micro_usd": total,
        "total_earned_micro_usd": total,
        "total_jobs": jobs,
        "payouts": payouts,
    }
    return Answer(body=body)


async def test_an_api_key_comes_first_and_shows_its_account() -> None:
    script, books = script_of(THEIRS, account=Answer(body=account_reply())), Books(5)
    means = Means(api_key=Secret("eigeninference-key"), device_token=Secret(TOKEN))
    found = await ask(script, books, means)
    assert (found.source, found.balance_micro_usd, found.jobs) == (Source.ACCOUNT, 4_821_200, 8423)
    assert script.authorized == [None, "Bearer eigeninference-key"]
    assert books.opened == 0


async def test_a_linked_machine_sees_its_account() -> None:
    script, books = script_of(OURS, account=Answer(body=account_reply())), Books(5)
    found = await ask(script, books, LINKED)
    assert found.source is Source.ACCOUNT
    assert [row.amount_micro_usd for row in found.payouts] == [182, 94]
    assert found.notes == ()
    assert books.opened == 0


async def test_a_token_refused_where_it_should_be_good_says_so_with_exit_code_4() -> None:
    with pytest.raises(CredentialsError, match="revoked") as raised:
        await ask(script_of(OURS, account=REFUSED), Books(5), LINKED)
    assert raised.value.exit_code == ExitCode.CREDENTIALS
    assert "darkbloom login" in (raised.value.next_step or "")
    assert TOKEN not in "\n".join(raised.value.lines())


async def test_a_refused_api_key_is_named() -> None:
    with pytest.raises(CredentialsError, match="DARKBLOOM_API_KEY"):
        await ask(script_of(THEIRS, account=REFUSED), Books(), Means(api_key=Secret("key")))


async def test_where_tokens_cannot_read_money_the_keys_are_summed_without_a_balance() -> None:
    older = earning_row(1, 95, "old", "2026-05-01T11:00:00Z")
    newer = earning_row(9, 442, "new", "2026-05-01T12:00:00Z")
    script = script_of(
        THEIRS, account=REFUSED, node=[node(1095, 7, older), node(442, 1, newer), node(0, 0)]
    )
    found = await ask(script, Books(5, keys=("a", "b", "a", "c")), LINKED)
    assert (found.source, found.balance_micro_usd) == (Source.NODE, None)
    assert (found.total_micro_usd, found.jobs) == (1537, 8)
    assert [row.model for row in found.payouts] == ["new", "old"]
    assert sum("node-earnings" in asked for asked in script.asked) == 3
    assert "DARKBLOOM_API_KEY" in found.notes[0]


async def test_a_key_without_an_answer_makes_no_wrong_sum() -> None:
    failed = Answer(500, error("internal_error", "db"))
    script = script_of(THEIRS, account=REFUSED, node=[node(95, 1), failed])
    with pytest.raises(CoordinatorReplyError, match="HTTP 500"):
        await ask(script, Books(5, keys=("a", "b", "c")), LINKED)
    script = script_of(THEIRS, account=REFUSED, node=[node(95, 1), Answer(503, b"")])
    found = await ask(script, Books(5, keys=("a", "b", "c")), LINKED)
    assert (found.source, found.coordinator.online) == (Source.JOURNAL, False)


async def test_more_keys_than_are_asked_for_is_said() -> None:
    keys = tuple(f"key-{n}" for n in range(MOST_KEYS + 1))
    script = script_of(THEIRS, account=REFUSED, node=node(1, 1))
    found = await ask(script, Books(keys=keys), LINKED)
    assert found.total_micro_usd == MOST_KEYS
    assert f"newest {MOST_KEYS} of this machine's {MOST_KEYS + 1}" in found.notes[-1]


async def test_a_wallet_is_shown_when_the_keys_have_nothing() -> None:
    rows = [
        {"amount_micro_usd": 1, "model": "first", "timestamp": "2026-05-01T11:00:00Z"},
        {"amount_micro_usd": 2, "model": "last", "timestamp": "2026-05-01T12:00:00.123456789Z"},
    ]
    script = script_of(THEIRS, account=REFUSED, node=node(0, 0), wallet=wallet(3, 2, rows))
    means = Means(device_token=Secret(TOKEN), wallet_address=WALLET)
    found = await ask(script, Books(5, keys=("a",)), means)
    assert (found.source, found.balance_micro_usd, found.jobs) == (Source.WALLET, 3, 2)
    assert [row.model for row in found.payouts] == ["last", "first"]
    assert WALLET in found.notes[0]


async def test_keys_that_earned_nothing_are_a_true_zero() -> None:
    script = script_of(THEIRS, account=REFUSED, node=node(0, 0), wallet=wallet(0, 0))
    means = Means(device_token=Secret(TOKEN), wallet_address=WALLET)
    found = await ask(script, Books(5, keys=("a",)), means)
    assert (found.source, found.total_micro_usd, found.jobs) == (Source.NODE, 0, 0)


async def test_with_nothing_to_ask_by_the_journal_is_left_and_labelled() -> None:
    found = await ask(script_of(THEIRS, account=REFUSED), Books(5, 7), LINKED)
    assert (found.source, found.total_micro_usd, found.jobs) == (Source.JOURNAL, 12, 2)
    assert found.balance_micro_usd is None
    assert found.notes[0].startswith("These are local estimates")


async def test_an_unlinked_machine_shows_its_journal_and_one_line_about_login() -> None:
    script = script_of(OURS, account=Answer(body=account_reply()))
    found = await ask(script, Books(5, 7), Means())
    assert (found.source, found.total_micro_usd) == (Source.JOURNAL, 12)
    assert [row.model for row in found.payouts] == ["m1", "m0"]
    assert found.notes == (LOGIN_HINT,)
    assert script.asked == ["GET /health"]


@pytest.mark.parametrize(
    ("means", "notes"), [(LINKED, (OFFLINE_HINT,)), (Means(), (OFFLINE_HINT, LOGIN_HINT))]
)
async def test_offline_is_the_journal_and_never_the_coordinators_figures(
    means: Means, notes: tuple[str, ...]
) -> None:
    found = await ask(script_of(None, account=Answer(body=account_reply())), Books(5), means)
    assert (found.source, found.coordinator.online) == (Source.JOURNAL, False)
    assert found.notes == notes


async def test_a_coordinator_that_goes_away_half_way_is_offline() -> None:
    found = await ask(script_of(OURS, account=Answer(502, b"")), Books(5), LINKED)
    assert (found.source, found.coordinator.online) == (Source.JOURNAL, False)


async def test_a_damaged_journal_does_not_hide_an_account() -> None:
    def damaged() -> Any:
        raise JournalDamagedError("damaged")

    script = script_of(OURS, account=Answer(body=account_reply()))
    async with CoordinatorClient(URL, transport=script.transport()) as client:
        found = await inquire(client, damaged, LINKED, url=URL, limit=5)
        assert found.source is Source.ACCOUNT
        with pytest.raises(JournalDamagedError):
            await inquire(client, damaged, Means(), url=URL, limit=5)


async def test_the_limit_holds_whatever_the_coordinator_sends() -> None:
    script = script_of(OURS, account=Answer(body=account_reply()))
    assert len((await ask(script, Books(), LINKED, limit=1)).payouts) == 1
    assert script.asked[-1] == "GET /v1/provider/account-earnings?limit=1"
    assert len((await ask(script_of(None), Books(1, 2, 3), LINKED, limit=2)).payouts) == 2
