"""Money rules: the worked examples, and one reservation closed exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import select

from darkbloom_provider.coordinator.inference import estimate
from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.ledger.books import Balance, InsufficientFundsError, LedgerError
from darkbloom_provider.coordinator.ledger.reservations import (
    MAX_COUNTED_TOKENS,
    JobConflictError,
    Serving,
    UnknownReservationError,
    deposit,
    recover_open_reservations,
)
from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.coordinator.store.schema import earnings, entries, transfers, wallet_payouts
from darkbloom_provider.protocol import money
from darkbloom_provider.protocol.money import DEFAULT_PRICE, Price
from support.books import CONSUMER, NOBODY, NOON, OWNER, UNLINKED, WALLET, Shop, fresh_engine

GEMMA = Price(65_000, 200_000)
QWEN_122B = Price(130_000, 1_040_000)
MINIMAX = Price(60_000, 500_000)
TRINITY = Price(23_000, 75_000)
QWEN_27B = Price(100_000, 780_000)


@dataclass(frozen=True)
class Job:
    """A row of the rules' table: the network charges at least 100 and keeps 5 %."""

    name: str
    price: Price
    prompt: int
    completion: int
    cost: int
    payout: int


JOBS = [
    Job("qwen 27B", QWEN_27B, 120, 380, 308, 293),
    Job("gemma", GEMMA, 1000, 2000, 465, 442),
    Job("gemma, minimum", GEMMA, 40, 60, 100, 95),
    Job("qwen 122B", QWEN_122B, 2000, 1500, 1820, 1729),
    Job("minimax", MINIMAX, 50_000, 4000, 5000, 4750),
    Job("trinity, truncated per side, minimum", TRINITY, 999, 999, 100, 95),
    Job("unlisted model, minimum", DEFAULT_PRICE, 5, 10, 100, 95),
]


@pytest.fixture
def shop(place: Path | str) -> Iterator[Shop]:
    engine = fresh_engine(place)
    with engine.begin() as connection:
        yield Shop(connection)
        assert audit(connection) == []
    engine.dispose()


def balance(shop: Shop, account_id: str) -> Balance:
    return books.balance_of(shop.connection, account_id)


def public(shop: Shop, account_id: str) -> list[tuple[str, int, int, str]]:
    rows = shop.connection.execute(
        select(transfers.c.type, entries.c.amount, entries.c.balance_after, transfers.c.reference)
        .join(transfers, transfers.c.id == entries.c.transfer_id)
        .where(entries.c.account_id == account_id)
        .order_by(entries.c.id)
    )
    return [(row.type, row.amount, row.balance_after, row.reference) for row in rows]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_a_job_costs_and_pays_what_the_price_table_says(shop: Shop, job: Job) -> None:
    shop.deposit(1_000_000)
    shop.price = job.price
    shop.policy = Policy(fee_percent=5, minimum_charge_micro_usd=100)
    shop.reserve("r", 10_000)

    settled = shop.settle("r", job.prompt, job.completion)

    assert (settled.cost, settled.payout, settled.fee) == (
        job.cost,
        job.payout,
        job.cost - job.payout,
    )
    assert balance(shop, CONSUMER) == Balance(1_000_000 - job.cost, 0)
    assert balance(shop, OWNER) == Balance(job.payout, job.payout)
    assert balance(shop, books.PLATFORM).balance == job.cost - job.payout


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_decisions_1_and_2_by_default_the_owner_gets_every_token_and_there_is_no_minimum(
    shop: Shop, job: Job
) -> None:
    shop.deposit(1_000_000)
    shop.price = job.price
    shop.reserve("r", 10_000)

    settled = shop.settle("r", job.prompt, job.completion)

    tokens = job.prompt * job.price.input_price // 10**6
    tokens += job.completion * job.price.output_price // 10**6
    assert settled.cost == settled.payout == tokens
    assert settled.fee == 0
    assert balance(shop, books.PLATFORM) == books.NOTHING
    assert [kind for kind, *_ in public(shop, books.PLATFORM)] == []


def test_one_request_end_to_end_as_in_the_rules(shop: Shop) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}]}
    prompt = estimate.prompt_tokens(body)
    reserved = money.cost(prompt, estimate.output_tokens(body), QWEN_27B, minimum=100)
    assert (prompt, reserved) == (8, 6_389)
    shop.deposit(5_000_000)
    shop.policy = Policy(fee_percent=5, minimum_charge_micro_usd=100)

    shop.reserve("r", reserved)
    assert balance(shop, CONSUMER) == Balance(4_993_611, 0)
    settled = shop.settle("r", 12, 380, job_id="job")

    assert (settled.cost, settled.refund, settled.payout, settled.fee) == (297, 6_092, 283, 14)
    assert public(shop, CONSUMER) == [
        ("deposit", 5_000_000, 5_000_000, ""),
        ("charge", -6_389, 4_993_611, f"reserve:{CONSUMER}"),
        ("refund", 6_092, 4_999_703, "job"),
    ]
    assert public(shop, OWNER) == [("payout", 283, 283, "job")]
    assert public(shop, books.PLATFORM) == [("platform_fee", 14, 14, "job")]


def test_spending_uses_credit_before_earned_money(shop: Shop) -> None:
    shop.deposit(5_000_000)
    shop.earn(3_000_000)
    assert balance(shop, CONSUMER) == Balance(8_000_000, 3_000_000)
    shop.reserve("a", 6_000_000)
    assert balance(shop, CONSUMER) == Balance(2_000_000, 2_000_000)
    shop.reserve("b", 500_000)
    assert balance(shop, CONSUMER) == Balance(1_500_000, 1_500_000)


def test_a_refund_gives_back_the_withdrawable_money_the_reservation_took(shop: Shop) -> None:
    shop.earn(1_000_000)
    shop.reserve("r", 6_390)
    assert balance(shop, CONSUMER) == Balance(993_610, 993_610)
    shop.settle("r", 120, 380)
    assert balance(shop, CONSUMER) == Balance(999_692, 999_692)


def test_what_was_really_spent_comes_from_credit_first(shop: Shop) -> None:
    shop.deposit(60)
    shop.earn(40)
    shop.reserve("r", 100)
    shop.price = Price(0, 1_000_000)
    settled = shop.settle("r", 0, 10)
    assert settled.refund == 90
    assert balance(shop, CONSUMER) == Balance(90, 40)


def test_a_reservation_nobody_can_pay_moves_nothing(shop: Shop) -> None:
    shop.deposit(99)
    with pytest.raises(InsufficientFundsError) as refused:
        shop.reserve("r", 100)
    assert (refused.value.needed, refused.value.available) == (100, 99)
    with pytest.raises(InsufficientFundsError):
        shop.reserve("r", 10**40)
    assert balance(shop, CONSUMER) == Balance(99, 0)
    assert shop.refund("r") is None


def test_a_job_that_reports_too_many_tokens_costs_no_more_than_was_reserved(shop: Shop) -> None:
    shop.deposit(1_000)
    shop.reserve("r", 500)
    settled = shop.settle("r", 10**30, 10**30)
    assert settled.clamped
    assert (settled.cost, settled.refund) == (500, 0)
    row = shop.connection.execute(select(earnings)).one()
    assert row.completion_tokens == MAX_COUNTED_TOKENS


def test_a_negative_token_count_is_worth_nothing(shop: Shop) -> None:
    shop.deposit(1_000)
    shop.reserve("r", 500)
    assert shop.settle("r", -5, -5).cost == 0
    assert balance(shop, CONSUMER) == Balance(1_000, 0)


def test_a_job_credits_exactly_once(shop: Shop) -> None:
    shop.deposit(1_000)
    shop.reserve("r", 500)
    first = shop.settle("r", 120, 380)
    again = shop.settle("r", 120, 99_999)
    late = shop.leave("r", 1, 1)
    undone = shop.refund("r")

    assert first.applied
    for second in (again, late, undone):
        assert second is not None
        assert not second.applied
        assert (second.outcome, second.cost) == ("settled", 308)
    assert balance(shop, OWNER) == Balance(308, 308)
    assert balance(shop, CONSUMER) == Balance(692, 0)


def test_a_refunded_reservation_can_no_longer_be_settled(shop: Shop) -> None:
    shop.deposit(1_000)
    shop.reserve("r", 500)
    refunded = shop.refund("r")
    assert refunded is not None
    assert (refunded.applied, refunded.refund) == (True, 500)
    assert not shop.settle("r", 120, 380).applied
    assert balance(shop, OWNER) == books.NOTHING
    assert public(shop, CONSUMER)[-1] == ("refund", 500, 1_000, "reservation_refund")


def test_a_job_id_settles_one_reservation_only(shop: Shop) -> None:
    shop.deposit(1_000)
    shop.reserve("a", 500)
    shop.reserve("b", 500)
    shop.settle("a", 120, 380, job_id="same")
    with pytest.raises(JobConflictError):
        shop.settle("b", 120, 380, job_id="same")
    assert balance(shop, CONSUMER) == Balance(192, 0)


def test_settling_what_was_never_reserved_is_refused(shop: Shop) -> None:
    with pytest.raises(UnknownReservationError):
        shop.settle("r", 1, 1)


def test_decision_3_a_consumer_that_leaves_pays_for_what_was_relayed(shop: Shop) -> None:
    shop.deposit(10_000)
    shop.reserve("r", 6_389)
    left = shop.leave("r", 120, 50)
    assert (left.outcome, left.cost, left.payout) == ("partial", 12 + 39, 12 + 39)
    assert balance(shop, CONSUMER) == Balance(10_000 - 51, 0)
    assert balance(shop, OWNER) == Balance(51, 51)
    assert public(shop, OWNER) == [("payout", 51, 51, "job-r")]


def test_decision_3_what_was_relayed_is_capped_by_the_reservation(shop: Shop) -> None:
    shop.deposit(10_000)
    shop.reserve("r", 20)
    left = shop.leave("r", 120, 50)
    assert (left.cost, left.refund, left.clamped) == (20, 0, True)


def test_an_unlinked_job_is_credited_to_its_wallet(shop: Shop) -> None:
    shop.deposit(1_000)
    shop.reserve("r", 500)
    assert shop.settle("r", 120, 380, serving=UNLINKED).beneficiary == WALLET
    assert balance(shop, WALLET) == Balance(308, 308)
    assert shop.connection.execute(select(wallet_payouts)).one().settled is False
    assert shop.connection.execute(select(earnings)).all() == []


def test_a_job_served_by_nobody_known_is_charged_and_credited_to_nobody(shop: Shop) -> None:
    shop.deposit(1_000)
    shop.reserve("r", 500)
    assert shop.settle("r", 120, 380, serving=NOBODY).beneficiary is None
    assert balance(shop, CONSUMER) == Balance(692, 0)
    assert balance(shop, books.UNCLAIMED).balance == 308


@pytest.mark.parametrize(
    "claimed", [OWNER, CONSUMER, books.PLATFORM, books.RESERVATIONS, "", "0x12", f"{WALLET}\n"]
)
def test_a_registration_cannot_claim_another_account_as_its_wallet(
    shop: Shop, claimed: str
) -> None:
    shop.deposit(1_000)
    shop.reserve("r", 500)
    settled = shop.settle("r", 120, 380, serving=Serving("s", "k", wallet_address=claimed))
    assert settled.beneficiary is None


def test_a_free_job_still_counts_as_served(shop: Shop) -> None:
    shop.deposit(1_000)
    shop.reserve("r", 500)
    assert shop.settle("r", 1, 1).cost == 0
    assert shop.connection.execute(select(earnings)).one().amount == 0
    assert public(shop, OWNER) == []


def test_reservations_open_when_the_coordinator_died_are_refunded_at_start(shop: Shop) -> None:
    shop.deposit(600)
    shop.earn(400)
    for name in ("a", "b", "c"):
        shop.reserve(name, 300)
    shop.settle("a", 0, 100)
    assert recover_open_reservations(shop.connection, now=NOON) == 2
    assert recover_open_reservations(shop.connection, now=NOON) == 0
    assert balance(shop, CONSUMER).balance == 1_000 - 78
    assert balance(shop, OWNER) == Balance(78, 78)


def test_amounts_out_of_range_are_refused(shop: Shop) -> None:
    for amount in (-1, 2**63):
        with pytest.raises(LedgerError):
            deposit(shop.connection, CONSUMER, amount, now=NOON)
    with pytest.raises(LedgerError):
        shop.reserve("r", -1)


def test_an_internal_account_cannot_be_used_as_a_persons(shop: Shop) -> None:
    shop.deposit(1_000)
    with pytest.raises(LedgerError):
        deposit(shop.connection, books.DEPOSITS, 5, now=NOON)
