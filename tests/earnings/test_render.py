from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.earnings.render import document, text
from darkbloom_provider.earnings.statement import CoordinatorLine, Payout, Source, Statement
from darkbloom_provider.protocol.money import parse_usd

GOLDEN = """\
Darkbloom Earnings

Coordinator: online (14 providers connected)

Earnings:
  Balance:       $4.821200
  Total earned:  $12.340000
  Jobs served:   8423

Recent payouts:
  $0.000182  qwen3.5-27b-claude-opus-8bit
  $0.000094  mlx-community/gemma-4-26b-a4b-it-8bit"""

AT = datetime(2026, 5, 1, 11, 59, 58, 123456, tzinfo=UTC)
SAMPLE = Statement(
    source=Source.ACCOUNT,
    coordinator=CoordinatorLine("https://api.darkbloom.dev", online=True, providers=14),
    balance_micro_usd=4_821_200,
    withdrawable_micro_usd=4_821_200,
    total_micro_usd=12_340_000,
    jobs=8423,
    payouts=(
        Payout(182, "qwen3.5-27b-claude-opus-8bit", "job-2", AT, 120, 233),
        Payout(94, "mlx-community/gemma-4-26b-a4b-it-8bit", "job-1", None),
    ),
)
OFFLINE = CoordinatorLine("https://api.darkbloom.dev", online=False)


def test_the_layout_is_the_promised_one_character_by_character() -> None:
    assert text(SAMPLE) == GOLDEN


def test_extra_facts_come_after_a_blank_line_and_change_nothing_above() -> None:
    extra = replace(SAMPLE, withdrawable_micro_usd=4_500_000, notes=("First.", "Second."))
    assert text(extra) == (
        GOLDEN + "\n\nOf the balance, $4.500000 can be withdrawn.\nFirst.\nSecond."
    )


def test_without_payouts_there_is_no_payout_block() -> None:
    shown = text(replace(SAMPLE, payouts=()))
    assert shown.endswith("  Jobs served:   8423")
    assert "Recent" not in shown


def test_an_unknown_balance_is_never_a_zero() -> None:
    shown = text(replace(SAMPLE, balance_micro_usd=None, withdrawable_micro_usd=None))
    assert "  Balance:       not available\n  Total earned:  $12.340000\n" in shown
    assert document(replace(SAMPLE, balance_micro_usd=None))["balance_micro_usd"] is None


def test_offline_names_the_address_and_heads_the_figures_as_estimates() -> None:
    shown = text(replace(SAMPLE, coordinator=OFFLINE, source=Source.JOURNAL)).splitlines()
    assert shown[2] == "Coordinator: offline (https://api.darkbloom.dev)"
    assert shown[4] == "Earnings (local estimates):"


def test_a_coordinator_that_counts_no_providers_is_just_online() -> None:
    unknown = CoordinatorLine("https://c.example", online=True)
    assert text(replace(SAMPLE, coordinator=unknown)).splitlines()[2] == "Coordinator: online"


def test_the_document_holds_integers_source_and_rows() -> None:
    found = json.loads(json.dumps(document(SAMPLE), allow_nan=False))
    assert found == {
        "source": "account",
        "estimated": False,
        "coordinator": {"url": "https://api.darkbloom.dev", "online": True, "providers": 14},
        "balance_micro_usd": 4_821_200,
        "withdrawable_micro_usd": 4_821_200,
        "total_earned_micro_usd": 12_340_000,
        "jobs_served": 8423,
        "payouts": [
            {
                "amount_micro_usd": 182,
                "model": "qwen3.5-27b-claude-opus-8bit",
                "job_id": "job-2",
                "at": "2026-05-01T11:59:58.123456+00:00",
                "prompt_tokens": 120,
                "completion_tokens": 233,
            },
            {
                "amount_micro_usd": 94,
                "model": "mlx-community/gemma-4-26b-a4b-it-8bit",
                "job_id": "job-1",
                "at": None,
                "prompt_tokens": None,
                "completion_tokens": None,
            },
        ],
        "notes": [],
    }


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_every_amount_is_shown_to_the_micro_dollar_in_column_18(micro: int) -> None:
    lines = text(replace(SAMPLE, balance_micro_usd=micro, total_micro_usd=micro)).splitlines()
    for line in lines[5:7]:
        assert line[:17].strip().endswith(":")
        assert line[17] == "$"
        assert parse_usd(line[18:]) == micro
        assert len(line.rpartition(".")[2]) == 6
