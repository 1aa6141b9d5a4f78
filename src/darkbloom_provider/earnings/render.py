"""A statement as text and as JSON. Pure.

The text is a layout that owners' scripts read: labels padded so that values start in column 18,
dollars with six decimals, and nothing but the block before its closing blank line.
"""

from __future__ import annotations

from typing import Any

from darkbloom_provider.earnings.statement import CoordinatorLine, Payout, Source, Statement
from darkbloom_provider.protocol.money import format_usd

NOT_AVAILABLE = "not available"


def text(statement: Statement) -> str:
    """The statement as `darkbloom earnings` prints it, without the last newline."""
    lines = [
        "Darkbloom Earnings",
        "",
        _coordinator(statement.coordinator),
        "",
        _heading(statement),
        f"  Balance:       {_amount(statement.balance_micro_usd)}",
        f"  Total earned:  {_amount(statement.total_micro_usd)}",
        f"  Jobs served:   {statement.jobs}",
    ]
    if statement.payouts:
        lines += ["", "Recent payouts:"]
        lines += [f"  {_amount(row.amount_micro_usd)}  {row.model}" for row in statement.payouts]
    extra = [*_withdrawable(statement), *statement.notes]
    if extra:
        lines += ["", *extra]
    return "\n".join(lines)


def document(statement: Statement) -> dict[str, Any]:
    """The statement as one JSON object: integers of micro-USD, null for what is not known."""
    return {
        "source": statement.source.value,
        "estimated": statement.source is Source.JOURNAL,
        "coordinator": {
            "url": statement.coordinator.url,
            "online": statement.coordinator.online,
            "providers": statement.coordinator.providers,
        },
        "balance_micro_usd": statement.balance_micro_usd,
        "withdrawable_micro_usd": statement.withdrawable_micro_usd,
        "total_earned_micro_usd": statement.total_micro_usd,
        "jobs_served": statement.jobs,
        "payouts": [_row(payout) for payout in statement.payouts],
        "notes": list(statement.notes),
    }


def _coordinator(coordinator: CoordinatorLine) -> str:
    if not coordinator.online:
        return f"Coordinator: offline ({coordinator.url})"
    if coordinator.providers is None:
        return "Coordinator: online"
    # "1 providers" reads badly, but scripts match this line: only the number may vary.
    return f"Coordinator: online ({coordinator.providers} providers connected)"


def _heading(statement: Statement) -> str:
    offline_journal = statement.source is Source.JOURNAL and not statement.coordinator.online
    return "Earnings (local estimates):" if offline_journal else "Earnings:"


def _amount(micro_usd: int | None) -> str:
    return NOT_AVAILABLE if micro_usd is None else format_usd(micro_usd)


def _withdrawable(statement: Statement) -> list[str]:
    withdrawable = statement.withdrawable_micro_usd
    if withdrawable is None or withdrawable == statement.balance_micro_usd:
        return []
    return [f"Of the balance, {format_usd(withdrawable)} can be withdrawn."]


def _row(payout: Payout) -> dict[str, Any]:
    return {
        "amount_micro_usd": payout.amount_micro_usd,
        "model": payout.model,
        "job_id": payout.job_id,
        "at": None if payout.at is None else payout.at.isoformat(),
        "prompt_tokens": payout.prompt_tokens,
        "completion_tokens": payout.completion_tokens,
    }
