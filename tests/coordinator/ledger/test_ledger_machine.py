"""Whatever happens in whatever order, the books are right after every step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from darkbloom_provider.coordinator.accounts import people
from darkbloom_provider.coordinator.deposits import ledger as deposits
from darkbloom_provider.coordinator.deposits.rail import CheckoutReport, CheckoutState, Reversal
from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.ledger.books import InsufficientFundsError
from darkbloom_provider.coordinator.ledger.reservations import Serving, recover_open_reservations
from darkbloom_provider.coordinator.ledger.sweep import observe_wallet, wallet_sweep
from darkbloom_provider.coordinator.payouts import receivers, withdrawals
from darkbloom_provider.coordinator.payouts.rail import Method, Onboarding, Receipt
from darkbloom_provider.coordinator.payouts.withdrawals import InsufficientWithdrawableError
from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.protocol.money import Price
from support.books import NOON, Shop, fresh_engine

PEOPLE = ["ann", "bob", "eve"]
WALLETS = ["0x" + "1" * 40, "0x" + "2" * 40]
MACHINES = ["m1", "m2", None]
TOKENS = st.integers(-5, 3_000) | st.just(2**70)

servings = st.builds(
    Serving,
    provider_id=st.just("s"),
    provider_key=st.sampled_from(["k1", "k2"]),
    account_id=st.sampled_from([*PEOPLE, None]),
    wallet_address=st.sampled_from([*WALLETS, None, "ann", "platform"]),
    machine_id=st.sampled_from(MACHINES),
)


class Ledger(RuleBasedStateMachine):
    """Jobs, cancels, failures, refunds, sweeps, withdrawals and deposits, on a `fresh` ledger."""

    reservations = Bundle("reservations")
    requested = Bundle("requested")
    bought = Bundle("bought")

    def __init__(self, fresh: Callable[[], Path | str]) -> None:
        super().__init__()
        self.fresh = fresh

    @initialize(fee=st.integers(0, 100), minimum=st.sampled_from([0, 0, 100]))
    def open(self, fee: int, minimum: int) -> None:
        self.engine = fresh_engine(self.fresh())
        self.connection = self.engine.connect()
        self.shop = Shop(self.connection, Policy(fee_percent=fee, minimum_charge_micro_usd=minimum))
        for who in PEOPLE:
            email = f"{who}@example.org"
            people.create_user(self.connection, account_id=who, email=email, now=NOON)
            receivers.open_payout_account(self.connection, who, "bank", f"acct_{who}", now=NOON)
            ready = Onboarding("ready", "card", "5556", instant_eligible=True)
            receivers.note_onboarding(self.connection, "bank", f"acct_{who}", ready, now=NOON)
        self.made = 0
        self.closed: dict[str, tuple[int, int]] = {}

    @rule(who=st.sampled_from(PEOPLE), amount=st.integers(0, 5_000), earned=st.booleans())
    def pay_in(self, who: str, amount: int, earned: bool) -> None:
        (self.shop.earn if earned else self.shop.deposit)(amount, who)

    @rule(target=reservations, who=st.sampled_from(PEOPLE), amount=st.integers(0, 6_000))
    def reserve(self, who: str, amount: int) -> object:
        self.made += 1
        name = f"r{self.made}"
        before = books.balance_of(self.connection, who)
        try:
            self.shop.reserve(name, amount, who)
        except InsufficientFundsError:
            assert amount > before.balance
            return multiple()
        assert books.balance_of(self.connection, who).balance == before.balance - amount
        return name

    @rule(name=reservations, prompt=TOKENS, completion=TOKENS, serving=servings, left=st.booleans())
    def finish(self, name: str, prompt: int, completion: int, serving: Serving, left: bool) -> None:
        self.shop.price = Price(100_000, 780_000)
        close = self.shop.leave if left else self.shop.settle
        self.note(name, close(name, prompt, completion, serving=serving))

    @rule(name=reservations)
    def refund(self, name: str) -> None:
        self.note(name, self.shop.refund(name))

    @rule()
    def crash(self) -> None:
        recover_open_reservations(self.connection, now=NOON)
        assert books.balance_of(self.connection, books.RESERVATIONS).balance == 0

    @rule(
        who=st.sampled_from(PEOPLE),
        wallet=st.sampled_from(WALLETS),
        machine=st.sampled_from(MACHINES),
        linked=st.booleans(),
    )
    def register(self, who: str, wallet: str, machine: str | None, linked: bool) -> None:
        if not linked:
            observe_wallet(self.connection, address=wallet, machine_id=machine, now=NOON)
            return
        holds = books.balance_of(self.connection, wallet).balance
        done = wallet_sweep(
            self.connection, address=wallet, account_id=who, machine_id=machine, now=NOON
        )
        assert done.amount == (holds if done.verdict == "moved" else 0)

    @rule(who=st.sampled_from(PEOPLE), amount=st.integers(1_000_000, 5_000_000))
    def earn_much(self, who: str, amount: int) -> None:
        self.shop.earn(amount, who)

    @rule(
        target=requested,
        who=st.sampled_from(PEOPLE),
        amount=st.integers(1_000_000, 3_000_000),
        method=st.sampled_from(["standard", "instant"]),
    )
    def withdraw(self, who: str, amount: int, method: Method) -> object:
        self.made += 1
        before = books.balance_of(self.connection, who)
        receiver = receivers.payout_account(self.connection, who, "bank")
        assert receiver is not None
        try:
            row = withdrawals.request(
                self.connection,
                receiver,
                withdrawal_id=f"w{self.made}",
                rail="bank",
                amount=amount,
                method=method,
                now=NOON,
            )
        except InsufficientWithdrawableError:
            assert amount > before.withdrawable
            return multiple()
        after = books.balance_of(self.connection, who)
        assert after.balance == before.balance - amount
        assert after.withdrawable == before.withdrawable - amount
        return row.id

    @rule(
        name=requested,
        news=st.sampled_from(["transferred", "sent", "paid", "failed", "returned", "reversed"]),
    )
    def hear_of(self, name: str, news: str) -> None:
        """The rail's news, in any order and any number of times."""
        connection = self.connection
        before = withdrawals.get(connection, name)
        held = books.balance_of(connection, before.account_id).balance
        match news:
            case "transferred":
                row = withdrawals.transferred(connection, name, f"tr_{name}", now=NOON)
            case "sent":
                receipt = Receipt(f"po_{name}", NOON)
                row = withdrawals.sent(connection, name, receipt, ask_at=NOON, now=NOON)
            case "paid":
                row = withdrawals.paid(connection, name, now=NOON)
            case "failed" | "returned":
                row = withdrawals.failed(
                    connection, name, "code: text", now=NOON, returned=news == "returned"
                )
            case _:
                if before.status != "failed":
                    return
                row = withdrawals.reversed_(connection, name, now=NOON)
        credited = books.balance_of(connection, row.account_id).balance - held
        fails_now = row.status == "failed" != before.status
        assert credited == (row.amount if fails_now else 0)
        order = ["pending", "transferred", "paid", "failed"]
        assert order.index(row.status) >= order.index(before.status)

    @rule(target=bought, who=st.sampled_from(PEOPLE), cents=st.integers(50, 500))
    def buy_credit(self, who: str, cents: int) -> str:
        self.made += 1
        deposits.request(
            self.connection,
            who,
            deposit_id=f"d{self.made}",
            rail="till",
            amount=cents * 10_000,
            referral_code="",
            now=NOON,
        )
        return f"d{self.made}"

    @rule(
        name=bought,
        state=st.sampled_from(["open", "paid", "expired", "refunded"]),
        cents=st.integers(1, 500),
    )
    def hear_of_payment(self, name: str, state: str, cents: int) -> None:
        """The till's news, in any order and any number of times."""
        connection = self.connection
        before = deposits.get(connection, name)
        held = books.balance_of(connection, before.account_id)
        if state == "refunded":
            after = deposits.note_reversal(connection, before, Reversal(cents), payment_id=None)
        else:
            report = CheckoutReport(cast("CheckoutState", state), cents)
            after = deposits.note(connection, before, report, external_id=f"cs_{name}", now=NOON)
        paid_now = after.status == "completed" != before.status
        assert paid_now == (state == "paid" and before.status != "completed")
        holds = books.balance_of(connection, before.account_id)
        assert holds.balance - held.balance == (cents * 10_000 if paid_now else 0)
        assert holds.withdrawable == held.withdrawable

    def note(self, name: str, settlement: object) -> None:
        """A reservation closes once, and says the same figures ever after."""
        assert settlement is not None
        figures = (getattr(settlement, "cost", 0), getattr(settlement, "payout", 0))
        if getattr(settlement, "applied", False):
            assert name not in self.closed
            self.closed[name] = figures
        elif name in self.closed:
            assert figures == self.closed[name]

    @invariant()
    def the_books_are_right(self) -> None:
        assert audit(self.connection) == []

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.connection.rollback()
            self.connection.close()
            self.engine.dispose()


def run(place: Path | str, request: pytest.FixtureRequest, *, examples: int, steps: int) -> None:
    def fresh() -> Path | str:
        if isinstance(place, Path):
            return place.with_name(f"{next(numbers)}.sqlite3")
        url: str = request.getfixturevalue("postgres").fresh()
        return url

    numbers = itertools.count()
    run_state_machine_as_test(
        lambda: Ledger(fresh),  # type: ignore[arg-type]  # declared as a class, used as a factory
        settings=settings(max_examples=examples, stateful_step_count=steps, derandomize=True),
    )


def test_whatever_happens_in_whatever_order_the_books_are_right(
    place: Path | str, request: pytest.FixtureRequest
) -> None:
    run(place, request, examples=12 if isinstance(place, Path) else 3, steps=25)


@pytest.mark.chaos
@pytest.mark.timeout(3_600)
def test_the_books_are_right_after_thousands_of_steps(
    place: Path | str, request: pytest.FixtureRequest
) -> None:
    run(place, request, examples=200 if isinstance(place, Path) else 30, steps=60)
