"""Whatever happens in whatever order, the books are right after every step."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from darkbloom_provider.coordinator import books
from darkbloom_provider.coordinator.audit import audit
from darkbloom_provider.coordinator.books import InsufficientFundsError
from darkbloom_provider.coordinator.ledger import Serving, recover_open_reservations
from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.coordinator.sweep import observe_wallet, wallet_sweep
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
    reservations = Bundle("reservations")

    @initialize(fee=st.integers(0, 100), minimum=st.sampled_from([0, 0, 100]))
    def open(self, fee: int, minimum: int) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.engine = fresh_engine(Path(self.directory.name) / "ledger.sqlite3")
        self.connection = self.engine.connect()
        self.shop = Shop(self.connection, Policy(fee_percent=fee, minimum_charge_micro_usd=minimum))
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
            self.directory.cleanup()


TestLedger = Ledger.TestCase
TestLedger.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
