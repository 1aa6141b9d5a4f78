"""Money: an integer of micro-USD from end to end, and the rules that turn tokens into it.

Source of the rules: the network's price table and `cost`, `split` and `reserve` formulas. All
divisions are integer divisions of non-negative numbers, so they floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

MICRO_PER_USD = 1_000_000
TOKENS_PER_PRICE = 1_000_000
"""Prices are micro-USD per this many tokens."""
MAX_MICRO_USD = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs: micro-USD per 1 000 000 tokens, input and output apart."""

    input_price: int
    output_price: int


DEFAULT_PRICE = Price(50_000, 200_000)
"""Applies to every model id that the price table does not list."""


@dataclass(frozen=True, slots=True)
class Split:
    """How the cost of a job is shared. The three parts always sum to the cost."""

    payout: int
    platform: int
    reward: int


def cost(prompt_tokens: int, completion_tokens: int, price: Price, *, minimum: int = 0) -> int:
    """What a job costs in micro-USD: each side floored on its own, never below `minimum`.

    >>> cost(120, 380, Price(100_000, 780_000))
    308
    """
    input_cost = prompt_tokens * price.input_price // TOKENS_PER_PRICE
    output_cost = completion_tokens * price.output_price // TOKENS_PER_PRICE
    return max(input_cost + output_cost, minimum)


def split(cost_micro_usd: int, *, fee_percent: int = 0, reward_percent: int = 0) -> Split:
    """Share a cost between provider, platform and the consumer's referrer.

    Args:
        cost_micro_usd: What the consumer pays.
        fee_percent: The platform's share of the cost, 0-100.
        reward_percent: The referrer's share of the fee; 0 if the consumer was not referred.
    """
    fee = cost_micro_usd * fee_percent // 100
    reward = fee * reward_percent // 100
    return Split(payout=cost_micro_usd - fee, platform=fee - reward, reward=reward)


def decimal_usd(micro_usd: int, places: int = 6) -> str:
    """Micro-USD as a decimal number without a currency sign, exact at six places.

    >>> decimal_usd(4_821_200)
    '4.821200'

    Fewer than six places round toward zero: money is never shown as more than it is.
    """
    sign = "-" if micro_usd < 0 else ""
    dollars, micros = divmod(abs(micro_usd), MICRO_PER_USD)
    fraction = f"{micros:06d}"[:places]
    return f"{sign}{dollars}.{fraction}" if places else f"{sign}{dollars}"


def format_usd(micro_usd: int, places: int = 6) -> str:
    """Micro-USD as people read it. The one place where money becomes text.

    >>> format_usd(182)
    '$0.000182'
    """
    text = decimal_usd(abs(micro_usd), places)
    return f"-${text}" if micro_usd < 0 else f"${text}"


def parse_usd(text: str) -> int:
    """Micro-USD from a decimal number of dollars, exactly.

    Raises:
        ValueError: Not a finite decimal number, more than six decimals, or out of range.
    """
    try:
        dollars = Decimal(text.strip())
    except InvalidOperation:
        raise ValueError("not a decimal number") from None
    if not dollars.is_finite():
        raise ValueError("not a finite number")
    micro = dollars * MICRO_PER_USD
    if micro != micro.to_integral_value():
        raise ValueError("more than six decimals")
    if abs(micro) > MAX_MICRO_USD:
        raise ValueError("out of range")
    return int(micro)
