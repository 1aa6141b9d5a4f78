"""`darkbloom coordinator deposits`: credit that was bought, and what banks took back of it."""

from __future__ import annotations

from typing import Any, Final

import click
from sqlalchemy import Connection

from darkbloom_provider.cli.coordinator_state import Books, on_books
from darkbloom_provider.coordinator.deposits.listing import (
    ListedDeposit,
    count_reversed,
    listed,
    standing,
)
from darkbloom_provider.coordinator.operator import Operator
from darkbloom_provider.coordinator.rest.replies import rfc3339
from darkbloom_provider.protocol.money import format_usd

_LIMIT: Final = 50
_MOST: Final = 10_000
_STANDING_WIDTH: Final = len("partly refunded")
_ADVICE: Final = (
    "A refund or a dispute does not take the credit back by itself: it may be spent already.",
    "Look the payment up at Stripe. The keys that can spend it, to be revoked if need be:",
    "darkbloom coordinator key list --email ADDRESS",
)


@click.command("deposits")
@click.option("--reversed", "only_reversed", is_flag=True, help="Only refunded or disputed ones.")
@click.option(
    "--limit",
    type=click.IntRange(1, _MOST),
    default=_LIMIT,
    show_default=True,
    help="How many at most, the newest first.",
)
@on_books
def deposits(books: Books, *, only_reversed: bool, limit: int) -> None:
    """List credit that was bought, and what was refunded or is disputed.

    Works while the coordinator runs. What went back of a payment is noted here and in the log, and
    moves nothing in the books.
    """

    def look(connection: Connection) -> tuple[list[ListedDeposit], int]:
        # One more than is shown tells whether there are more.
        found = listed(connection, limit=limit + 1, only_reversed=only_reversed)
        return found, count_reversed(connection)

    async def read(operator: Operator) -> tuple[list[ListedDeposit], int]:
        return await operator.database.read(look)

    found, went_back = books.operate(read)
    shown = found[:limit]
    lines = [line for row in shown for line in _lines(row)]
    if len(found) > limit:
        lines.append(f"There are more: --limit {min(limit * 10, _MOST)}")
    if went_back and not only_reversed:
        lines += ["", f"{went_back} of all deposits went back: add --reversed"]
    elif went_back:
        lines += ["", *_ADVICE]
    nothing = "No deposit went back." if only_reversed else "Nobody has bought credit yet."
    books.show({"deposits": [_document(row) for row in shown]}, lines or [nothing])


def _lines(row: ListedDeposit) -> list[str]:
    one = row.deposit
    how = f"{standing(one):<{_STANDING_WIDTH}}"
    amount = format_usd(one.credited or one.amount, 2)
    who = row.email or one.account_id
    lines = [f"{one.created_at:%Y-%m-%d %H:%M}  {how}  {amount:>10}  {who}"]
    back = [
        f"{format_usd(-micro_usd, 2)} {what}"
        for micro_usd, what in ((one.refunded, "refunded"), (one.disputed, "disputed"))
        if micro_usd
    ]
    if back:
        payment = one.payment_id or one.external_id or one.id
        held = format_usd(row.balance, 2)
        lines.append(f"    {', '.join(back)}; payment {payment}; balance now {held}")
    return lines


def _document(row: ListedDeposit) -> dict[str, Any]:
    one = row.deposit
    return {
        "id": one.id,
        "email": row.email,
        "account_id": one.account_id,
        "balance_micro_usd": row.balance,
        "rail": one.rail,
        "external_id": one.external_id,
        "payment_id": one.payment_id,
        "standing": standing(one),
        "amount_micro_usd": one.amount,
        "credited_micro_usd": one.credited,
        "refunded_micro_usd": one.refunded,
        "disputed_micro_usd": one.disputed,
        "created_at": rfc3339(one.created_at),
        "completed_at": one.completed_at and rfc3339(one.completed_at),
    }


COMMANDS = (deposits,)
