"""What pages show, from what was read: filters, payouts, machines, the network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl

import click
import pytest

from darkbloom_provider.cli.main import darkbloom
from darkbloom_provider.coordinator.accounts.device_login import LinkedDevice
from darkbloom_provider.coordinator.accounts.pseudonyms import pseudonym
from darkbloom_provider.coordinator.console import rendering
from darkbloom_provider.coordinator.console.views import earn, machines, network, payouts
from darkbloom_provider.coordinator.console.views import machine as machine_page
from darkbloom_provider.coordinator.console.views.choice import Choice, pager, read_choice
from darkbloom_provider.coordinator.console.views.concerns import (
    Concern,
    Connected,
    Standards,
    warnings,
)
from darkbloom_provider.coordinator.console.views.machines import MachinesView
from darkbloom_provider.coordinator.earnings.owner_views import MachineEarnings
from darkbloom_provider.coordinator.earnings.views import (
    LeaderboardRow,
    NetworkTotals,
    Sum,
)
from darkbloom_provider.coordinator.ledger.books import Balance
from darkbloom_provider.coordinator.ledger.earning_totals import EarningsFilter
from darkbloom_provider.coordinator.payouts.withdrawals import fee_of
from darkbloom_provider.coordinator.rest.replies import ApiError
from darkbloom_provider.coordinator.routing.choice import Candidate, Rules
from darkbloom_provider.models.catalogue import Catalogue
from darkbloom_provider.protocol.attestation import AttestationBlob
from darkbloom_provider.protocol.messages import (
    BACKEND,
    BackendCapacity,
    BackendSlot,
    SystemMetrics,
)
from support.scripted_provider import PROMISES

NOW = datetime(2026, 5, 10, 12, 30, tzinfo=UTC)
QWEN = "qwen3.5-27b-claude-opus-8bit"
READY = {
    "configured": True,
    "has_account": True,
    "status": "ready",
    "destination_type": "card",
    "destination_last4": "5556",
    "instant_eligible": True,
    "min_withdraw_micro_usd": 1_000_000,
    "instant_fee_bps": 150,
    "instant_fee_min_usd": 0.5,
}


# ---------------------------------------------------------------- what a visitor chose


def test_both_days_of_a_filter_belong_to_it() -> None:
    choice = read_choice({"from": "2026-05-01", "to": "2026-05-02", "model": QWEN})
    assert choice.filter == EarningsFilter(
        start=datetime(2026, 5, 1, tzinfo=UTC), end=datetime(2026, 5, 3, tzinfo=UTC), model=QWEN
    )


@pytest.mark.parametrize(
    "query",
    [
        {"from": "yesterday"},
        {"to": "2026-02-30"},
        {"from": "0001-01-01"},
        {"to": "9999-12-31"},
        {"from": "2026-05-02", "to": "2026-05-01"},
        {"span": "week"},
        {"page": "0"},
        {"page": "-1"},
        {"page": "99999999"},
        {"model": "x" * 301},
        {"model": "a\nb"},
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(ApiError) as refused:
        read_choice(query)
    assert refused.value.status == 400


def test_a_choice_survives_being_written_into_an_address() -> None:
    choice = Choice(date(2026, 5, 1), None, "a/b & c", "hour", page=3)
    assert read_choice(dict(parse_qsl(choice.query(page=3)))) == choice


def test_a_page_knows_its_rows() -> None:
    assert (pager(2, 120).first_row, pager(2, 120).last_row, pager(2, 120).pages) == (51, 100, 3)
    assert (pager(1, 0).first_row, pager(1, 0).last_row, pager(1, 0).pages) == (0, 0, 1)


def test_the_graph_shows_thirty_days_or_what_was_chosen() -> None:
    start, end = earn.graph_period(Choice(), NOW)
    assert (start, end) == (datetime(2026, 4, 11, tzinfo=UTC), NOW)
    assert len(earn.graph([], start=start, end=end, bucket="day").spans) == 30
    start, end = earn.graph_period(Choice(bucket="hour"), NOW)
    assert len(earn.graph([], start=start, end=end, bucket="hour").spans) == 48
    chosen = Choice(date(2026, 5, 1), date(2026, 5, 3))
    start, end = earn.graph_period(chosen, NOW)
    assert len(earn.graph([], start=start, end=end, bucket="day").spans) == 3


def test_a_time_that_has_not_come_is_not_drawn() -> None:
    start, end = earn.graph_period(Choice(date(2026, 6, 1)), NOW)
    assert start <= end == NOW


# ---------------------------------------------------------------- payouts


@pytest.mark.parametrize(
    ("status", "state", "badge"),
    [
        ({}, "off", "Not available"),
        ({"configured": True, "has_account": False}, "none", "Not set up"),
        ({"configured": True, "has_account": True, "status": "pending"}, "pending", "Pending"),
        (
            {"configured": True, "has_account": True, "status": "restricted"},
            "restricted",
            "Action needed",
        ),
        (
            {"configured": True, "has_account": True, "status": "rejected"},
            "rejected",
            "Action needed",
        ),
        (READY, "ready", "Ready"),
        ({"configured": True, "has_account": True, "status": "news"}, "pending", "Pending"),
    ],
)
def test_every_state_of_a_payout_account_has_its_badge(
    status: dict[str, Any], state: str, badge: str
) -> None:
    panel = payouts.panel(status, 5_000_000)
    assert (panel.state, panel.badge) == (state, badge)
    assert panel.can_withdraw == (state == "ready")


def test_less_than_the_minimum_cannot_be_withdrawn() -> None:
    assert not payouts.panel(READY, 999_999).can_withdraw
    assert payouts.panel(READY, 1_000_000).can_withdraw


def test_the_suggested_amount_is_never_more_than_there_is() -> None:
    assert payouts.suggested_amount(payouts.panel(READY, 1_409_999)) == "1.40"


@pytest.mark.parametrize("amount", [1_000_000, 10_000_000, 33_333_333, 50_000_000, 100_000_001])
def test_the_previewed_fee_is_the_one_that_is_taken(amount: int) -> None:
    panel = payouts.panel(READY, amount)
    assert payouts.fee_of(panel, amount, "instant") == fee_of(amount, "instant")
    assert payouts.fee_of(panel, amount, "standard") == fee_of(amount, "standard") == 0


def test_a_preview_adds_up() -> None:
    shown = payouts.preview(payouts.panel(READY, 50_000_000), "$50.00", "instant")
    assert (shown.amount, shown.fee, shown.net) == (50_000_000, 750_000, 49_250_000)


@pytest.mark.parametrize(
    ("amount", "method", "why"),
    [
        ("ten", "standard", "not a decimal number"),
        ("NaN", "standard", "not a finite number"),
        ("1.0000001", "standard", "more than six decimals"),
        ("0.99", "standard", "least"),
        ("2.01", "standard", "Only $2.000000"),
        ("2", "tomorrow", "standard or instant"),
    ],
)
def test_what_cannot_be_withdrawn_is_said_in_words(amount: str, method: str, why: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        payouts.preview(payouts.panel(READY, 2_000_000), amount, method)
    assert why in str(refused.value)


def test_instant_needs_a_destination_that_takes_it() -> None:
    panel = payouts.panel(READY | {"instant_eligible": False}, 2_000_000)
    with pytest.raises(ValueError, match="debit card"):
        payouts.preview(panel, "2", "instant")


def test_a_failed_withdrawal_says_why_and_that_it_was_credited_back() -> None:
    row = payouts.withdrawals(
        [
            {
                "created_at": "2026-05-01T12:00:00Z",
                "amount_micro_usd": 2_000_000,
                "fee_micro_usd": 0,
                "net_micro_usd": 2_000_000,
                "method": "standard",
                "status": "failed",
                "refunded": True,
                "failure_reason": "account_closed",
                "destination_type": "bank",
                "destination_last4": "1113",
            }
        ]
    )[0]
    assert (row.status, row.refunded, row.reason) == ("failed", True, "account_closed")
    assert row.destination == "Bank account ending in 1113"


# ---------------------------------------------------------------- machines


def machine(**changes: Any) -> Connected:
    """A machine that nothing is wrong with."""
    candidate = Candidate(
        session_id="s",
        models=frozenset({QWEN}),
        status="online",
        trust="none",
        runtime_verified=True,
        public_key="key",
        backend=BACKEND,
        encrypted_chunks=True,
        sip_verified=True,
        privacy=PROMISES,
        verified_at=100.0,
        in_flight=(),
        capacity=None,
        metrics=SystemMetrics(),
        memory_gb=64,
        bandwidth_gbs=400,
        decode_tps=30,
        prefill_tps=300,
        serial="ABCDEFGHIJ",
    )
    parts = {k: v for k, v in changes.items() if hasattr(candidate, k)}
    rest = {k: v for k, v in changes.items() if k not in parts}
    whole = Connected(
        candidate=replace(candidate, **parts),
        machine_id="m" * 32,
        token_id="t" * 16,
        chip="Apple M4 Max",
        model="Mac16,5",
        gpu_cores=40,
        version="1.2.3",
        attested=False,
        challenge_failures=0,
        heartbeat_age=2.0,
        active_model=QWEN,
        requests=3,
        tokens=100,
        jobs_completed=3,
        jobs_failed=0,
        registered_at=NOW,
        attestation=None,
    )
    return replace(whole, **rest)


def standards(rules: Rules | None = None, newest: str = "1.2.3") -> Standards:
    return Standards(rules or Rules(), sizes={QWEN: 27.0}, failures=3, newest=newest)


def concerns(subject: Connected, rules: Rules | None = None) -> tuple[Concern, ...]:
    return warnings(subject, standards(rules), now=200.0)


def slot(state: str) -> BackendCapacity:
    return BackendCapacity(slots=(BackendSlot(model=QWEN, state=state),))


def test_a_machine_that_works_has_no_warning() -> None:
    assert concerns(machine()) == ()


@pytest.mark.parametrize(
    ("changes", "severity", "words"),
    [
        ({"status": "untrusted", "challenge_failures": 3}, "blocking", "3 checks failed"),
        ({"runtime_verified": False}, "blocking", "operator's list"),
        ({"verified_at": -300.0}, "blocking", "8 minutes ago"),
        ({"verified_at": None}, "info", "not passed a check"),
        (
            {"verified_at": None, "challenge_problem": "the answer is not signed"},
            "blocking",
            "the answer is not signed",
        ),
        ({"outdated": True}, "blocking", "older"),
        ({"public_key": ""}, "blocking", "encryption key"),
        ({"privacy": None}, "blocking", "privacy"),
        ({"metrics": SystemMetrics(thermal_state="critical")}, "blocking", "too hot"),
        ({"metrics": SystemMetrics(thermal_state="serious")}, "degrading", "warm"),
        ({"metrics": SystemMetrics(memory_pressure=0.95)}, "degrading", "memory"),
        ({"capacity": slot("crashed")}, "degrading", "crashed"),
        ({"capacity": slot("idle_shutdown")}, "degrading", "unloaded"),
        ({"challenge_failures": 3}, "blocking", "3 checks failed"),
        ({"models": frozenset()}, "blocking", "no model of this network's catalogue"),
        ({"version": "1.2.2"}, "info", "1.2.3 exists"),
        ({"version": "v0.10.0"}, "info", "1.2.3 exists"),
        ({"jobs_completed": 5, "jobs_failed": 5}, "degrading", "5 of its last 10"),
    ],
)
def test_every_fault_is_named_with_what_to_do(
    changes: dict[str, Any], severity: str, words: str
) -> None:
    found = concerns(machine(**changes))
    assert [concern.severity for concern in found] == [severity]
    assert words in found[0].what
    assert found[0].todo


def test_trust_below_what_the_operator_asks_for_is_a_fault() -> None:
    assert "hardware" in concerns(machine(), Rules(min_trust="hardware"))[0].what


@pytest.mark.parametrize("version", ["1.2.3", "1.2.10", "2.0.0", "", "my own", "1.2"])
def test_a_version_that_is_not_older_is_no_fault(version: str) -> None:
    assert concerns(machine(version=version)) == ()


def test_the_worst_comes_first() -> None:
    hot = SystemMetrics(thermal_state="critical", memory_pressure=0.95)
    found = concerns(machine(metrics=hot, verified_at=None))
    assert [concern.severity for concern in found] == ["blocking", "degrading", "info"]


def shown_machines(
    connected: Sequence[Connected] = (),
    devices: Sequence[LinkedDevice] = (),
    earned: Sequence[MachineEarnings] = (),
) -> MachinesView:
    nothing = Sum(0, 0)
    head = earn.figures(Balance(0, 0), nothing, nothing, nothing)
    return machines.view(connected, devices, earned, figures=head, standards=standards(), now=200.0)


def test_a_linked_device_without_a_connection_is_a_machine_that_is_offline() -> None:
    devices = [LinkedDevice("t" * 16, "device-A", NOW), LinkedDevice("u" * 16, "device-B", NOW)]
    earned = [
        MachineEarnings("m" * 32, Sum(500, 5), NOW, NOW),
        MachineEarnings("n" * 32, Sum(70, 1), NOW - timedelta(days=3), NOW),
        MachineEarnings(None, Sum(30, 1), NOW, NOW),
    ]
    shown = shown_machines([machine()], devices, earned)
    assert [(card.name, card.status, card.tone) for card in shown.cards] == [
        ("device-B", "Offline", "bad"),
        ("Apple M4 Max", "Online", "good"),
    ]
    assert shown.cards[1].earned == Sum(500, 5)
    assert [(past.name, past.earned.micro_usd) for past in shown.past] == [
        ("Machine nnnnnn", 70),
        ("Unnamed machines", 30),
    ]
    assert (shown.online, shown.attention) == (1, 1)


def test_a_machine_is_told_why_it_gets_no_request() -> None:
    shown = shown_machines([machine(memory_gb=16)])
    ((model, reasons),) = shown.cards[0].not_routed
    assert model == QWEN
    assert reasons == ("needs 27.0 GB and has 16.0 GB free",)


def test_the_severity_of_the_worst_fault_colours_a_machine() -> None:
    tones = [
        shown_machines([machine(**changes)]).cards[0].tone
        for changes in (
            {"verified_at": None},
            {"metrics": SystemMetrics(thermal_state="fair")},
            {"metrics": SystemMetrics(thermal_state="critical")},
        )
    ]
    assert tones == ["good", "wait", "bad"]


def test_every_machine_is_found_by_its_address_and_nothing_else_is() -> None:
    devices = [LinkedDevice("u" * 16, "device-B", NOW)]
    earned = [
        MachineEarnings("n" * 32, Sum(70, 1), NOW, NOW),
        MachineEarnings(None, Sum(30, 1), NOW, NOW),
    ]
    shown = shown_machines([machine(), machine(machine_id=None)], devices, earned)
    everyone = [*shown.cards, *shown.past]
    addresses = [card.address for card in everyone if card.address]
    assert len(set(addresses)) == len(addresses) == 4
    assert all(shown.find(card.address) is card for card in everyone if card.address)
    assert shown.find("") is shown.find("no such machine") is None


def test_what_an_invalid_statement_says_is_not_shown_as_proved() -> None:
    blob = AttestationBlob.model_validate({"sipEnabled": True, "secureBootEnabled": True})
    for attested, shown in ((True, [False, True, True, False, True]), (False, [])):
        card = shown_machines([machine(attestation=blob, attested=attested)]).cards[0]
        page = machine_page.view(
            card,
            last_day=Sum(0, 0),
            last_week=Sum(0, 0),
            points=[],
            jobs=[],
            page=1,
            now=NOW,
            monotonic=200.0,
        )
        assert [fact.holds for fact in page.attested] == shown
        assert page.checked_ago == 100.0
        assert all(fact.holds for fact in page.promises)


def commands_named() -> list[str]:
    """Whatever the pages tell people to type."""
    console = resources.files(rendering.PACKAGE)
    folders = (console.joinpath(name) for name in ("templates", "views"))
    sources = [file for folder in folders for file in folder.iterdir() if file.is_file()]
    text = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    return sorted(set(re.findall(r"[`>](darkbloom [^`<{]+)[`<]", text)))


@pytest.mark.parametrize("line", commands_named())
def test_every_command_that_a_page_names_exists(line: str) -> None:
    command: click.Command = darkbloom
    for word in line.split()[1:]:
        if word.startswith("-"):
            options = {name for option in command.params for name in option.opts}
            assert word in options, line
        elif isinstance(command, click.Group):
            found = command.get_command(click.Context(command), word)
            assert found is not None, line
            command = found


def test_pages_name_commands() -> None:
    assert "darkbloom login" in commands_named()


# ---------------------------------------------------------------- the network


def test_the_leaderboard_marks_the_visitors_own_place_and_nobody_elses() -> None:
    totals = NetworkTotals(1, 1, 1, 1)
    rows = [LeaderboardRow(1, pseudonym("me"), 1, 1, 1)]
    for account, own in (("me", pseudonym("me")), (None, "")):
        shown = network.leaderboard(
            rows,
            totals,
            metric="earnings",
            window="lifetime",
            account_id=account,
            limit=50,
            now=NOW,
        )
        assert shown.own == own
        assert shown.window == "all"


def test_a_model_that_is_served_and_not_listed_is_shown_with_its_price() -> None:
    candidate = machine(models=frozenset({"mine/own", QWEN})).candidate
    lines = {m.id: m for m in network.models(Catalogue.builtin(), [candidate], Rules())}
    assert (lines["mine/own"].input_price, lines["mine/own"].output_price) == (50_000, 200_000)
    assert lines[QWEN].providers == lines["mine/own"].providers == 1


def test_a_machine_that_cannot_be_trusted_is_not_counted_as_serving() -> None:
    candidate = machine(status="untrusted").candidate
    shown = network.stats([candidate], ["Apple M4"], [], Rules())
    assert (shown.connected, shown.routable, shown.models) == (1, 0, ())
