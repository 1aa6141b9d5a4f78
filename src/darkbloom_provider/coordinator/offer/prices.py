"""Prices that were set: the operator's for everybody, and those of people who serve.

A price is never overwritten. Each change is a row that holds from its time on, so what a request
cost when it was accepted can be told whenever it ends.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import Connection, func, insert, select

from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.rest.refusals import RefusalError
from darkbloom_provider.coordinator.store.schema import prices
from darkbloom_provider.protocol.money import Price

PLATFORM: Final = books.PLATFORM
"""Whose prices are everybody's."""
MAX_PRICE: Final = 10**12
"""A million dollars per million tokens. The cost of the most tokens that are counted still fits."""
MAX_MODEL_CHARACTERS: Final = 200


class PriceError(RefusalError):
    """No price anybody could pay."""


def set_price(
    connection: Connection, account_id: str, model: str, price: Price, *, now: datetime
) -> None:
    """Let a price hold from now on.

    Raises:
        PriceError: A side is not positive or absurd, or the model's name is none.
    """
    for side in (price.input_price, price.output_price):
        if not 0 < side <= MAX_PRICE:
            raise PriceError(
                f"A price is more than 0 and at most {MAX_PRICE} micro-USD per million tokens"
            )
    if not 0 < len(model) <= MAX_MODEL_CHARACTERS:
        raise PriceError(f"A model's id has 1 to {MAX_MODEL_CHARACTERS} characters")
    if own_price(connection, account_id, model) != price:
        _write(connection, account_id, model, price, now)


def end_price(connection: Connection, account_id: str, model: str, *, now: datetime) -> bool:
    """Let no price of this account hold any more. False if there was none."""
    if own_price(connection, account_id, model) is None:
        return False
    _write(connection, account_id, model, None, now)
    return True


def own_price(
    connection: Connection, account_id: str, model: str, *, at: datetime | None = None
) -> Price | None:
    """The price that an account has set for a model, now or at a time; None if there is none."""
    query = (
        select(prices.c.input_price, prices.c.output_price)
        .where(prices.c.account_id == account_id, prices.c.model == model)
        .order_by(prices.c.id.desc())
        .limit(1)
    )
    if at is not None:
        query = query.where(prices.c.since <= at)
    row = connection.execute(query).one_or_none()
    return None if row is None or row.input_price is None else Price(*row)


def all_prices(connection: Connection, account_id: str) -> dict[str, Price]:
    """The prices that an account has set, by model."""
    newest = (
        select(func.max(prices.c.id))
        .where(prices.c.account_id == account_id)
        .group_by(prices.c.model)
    )
    rows = connection.execute(
        select(prices)
        .where(prices.c.id.in_(newest), prices.c.input_price.is_not(None))
        .order_by(prices.c.model)
    )
    return {row.model: Price(row.input_price, row.output_price) for row in rows}


def _write(
    connection: Connection, account_id: str, model: str, price: Price | None, now: datetime
) -> None:
    connection.execute(
        insert(prices).values(
            account_id=account_id,
            model=model,
            input_price=None if price is None else price.input_price,
            output_price=None if price is None else price.output_price,
            since=now,
        )
    )
