"""Decision 5: money earned unlinked moves once, to the machine that earned it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from darkbloom_provider.coordinator.earnings import views
from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.ledger.books import Balance
from darkbloom_provider.coordinator.ledger.sweep import Sweep, observe_wallet, wallet_sweep
from darkbloom_provider.coordinator.store.schema import wallet_payouts
from support.books import MACHINE, NOON, OWNER, UNLINKED, WALLET, Shop, fresh_engine

OTHER_MACHINE = "b" * 32


@pytest.fixture
def shop(place: Path | str) -> Iterator[Shop]:
    engine = fresh_engine(place)
    with engine.begin() as connection:
        shop = Shop(connection)
        shop.deposit(100_000)
        yield shop
        assert audit(connection) == []
    engine.dispose()


def work(shop: Shop, name: str) -> None:
    """One unlinked job that pays 308."""
    observe_wallet(shop.connection, address=WALLET, machine_id=MACHINE, now=NOON)
    shop.reserve(name, 1_000)
    shop.settle(name, 120, 380, serving=UNLINKED)


def link(
    shop: Shop, account: str = OWNER, machine: str | None = MACHINE, address: str | None = WALLET
) -> Sweep:
    return wallet_sweep(
        shop.connection, address=address, account_id=account, machine_id=machine, now=NOON
    )


def balance(shop: Shop, account_id: str) -> Balance:
    return books.balance_of(shop.connection, account_id)


def test_linking_a_machine_moves_what_it_earned_before(shop: Shop) -> None:
    work(shop, "a")
    work(shop, "b")
    assert link(shop) == Sweep("moved", 616, 2)
    assert balance(shop, WALLET) == books.NOTHING
    assert balance(shop, OWNER) == Balance(616, 616)
    assert [
        (r.type, r.amount_micro_usd, r.reference) for r in views.ledger_rows(shop.connection, OWNER)
    ] == [("wallet_sweep", 616, f"sweep:{WALLET}")]
    assert views.ledger_rows(shop.connection, WALLET)[0].amount_micro_usd == -616
    assert all(shop.connection.execute(select(wallet_payouts.c.settled)).scalars())
    page = views.account_earnings(shop.connection, OWNER, limit=10)
    assert (page.lifetime.count, page.lifetime.micro_usd) == (2, 616)
    assert {row.job_id for row in page.rows} == {"job-a", "job-b"}


def test_a_balance_moves_once_and_a_later_one_moves_again(shop: Shop) -> None:
    work(shop, "a")
    assert link(shop).verdict == "moved"
    assert link(shop) == Sweep("nothing")
    work(shop, "b")
    assert link(shop) == Sweep("moved", 308, 1)
    assert balance(shop, OWNER) == Balance(616, 616)


def test_an_address_belongs_to_the_first_account_that_claimed_it(shop: Shop) -> None:
    work(shop, "a")
    link(shop)
    work(shop, "b")
    assert link(shop, account="somebody-else") == Sweep("other_account")
    assert balance(shop, WALLET) == Balance(308, 308)


def test_an_address_that_two_machines_reported_is_left_alone(shop: Shop) -> None:
    work(shop, "a")
    assert link(shop, machine=OTHER_MACHINE) == Sweep("other_machine")
    # The attempt is remembered: now nobody can prove that the money is theirs.
    assert link(shop) == Sweep("other_machine")
    assert balance(shop, WALLET) == Balance(308, 308)


def test_a_machine_without_an_identity_proves_nothing(shop: Shop) -> None:
    work(shop, "a")
    assert link(shop, machine=None) == Sweep("other_machine")
    assert link(shop, machine="") == Sweep("other_machine")


def test_who_worked_for_an_address_counts_even_if_no_registration_was_remembered(
    shop: Shop,
) -> None:
    shop.reserve("a", 1_000)
    shop.settle("a", 120, 380, serving=replace(UNLINKED, machine_id=OTHER_MACHINE))
    assert link(shop) == Sweep("other_machine")


@pytest.mark.parametrize("address", [None, "", OWNER, books.PLATFORM, "internal:reservations"])
def test_only_a_wallet_can_be_swept(shop: Shop, address: str | None) -> None:
    assert link(shop, address=address) == Sweep("not_a_wallet")


def test_an_address_is_the_same_in_either_case(shop: Shop) -> None:
    work(shop, "a")
    assert link(shop, address="0x" + WALLET[2:].upper()).amount == 308


def test_a_free_job_is_rehomed_too(shop: Shop) -> None:
    shop.reserve("a", 1_000)
    shop.settle("a", 0, 0, serving=UNLINKED)
    assert link(shop) == Sweep("moved", 0, 1)
    assert link(shop) == Sweep("nothing")
