from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.protocol.money import (
    DEFAULT_PRICE,
    Price,
    cost,
    decimal_usd,
    format_usd,
    parse_usd,
    split,
)

QWEN = Price(100_000, 780_000)
GEMMA = Price(65_000, 200_000)
TRINITY = Price(23_000, 75_000)


@pytest.mark.parametrize(
    ("tokens", "price", "minimum", "expected"),
    [
        ((120, 380), QWEN, 100, 308),
        ((1000, 2000), GEMMA, 100, 465),
        ((40, 60), GEMMA, 100, 100),
        ((40, 60), GEMMA, 0, 14),
        ((2000, 1500), Price(130_000, 1_040_000), 100, 1820),
        ((50_000, 4000), Price(60_000, 500_000), 100, 5000),
        ((999, 999), TRINITY, 0, 96),
        ((5, 10), DEFAULT_PRICE, 0, 2),
        ((0, 0), QWEN, 0, 0),
    ],
)
def test_a_job_costs_its_tokens_times_the_price_floored_per_side(
    tokens: tuple[int, int], price: Price, minimum: int, expected: int
) -> None:
    assert cost(*tokens, price, minimum=minimum) == expected


def test_without_a_fee_the_owner_gets_everything() -> None:
    assert split(308) == split(308, fee_percent=0, reward_percent=20)
    assert split(308).payout == 308


def test_five_percent_and_a_referral_are_shared_as_documented() -> None:
    shares = split(297, fee_percent=5, reward_percent=20)
    assert (shares.payout, shares.reward, shares.platform) == (283, 2, 12)


@given(st.integers(0, 10**15), st.integers(0, 100), st.integers(0, 50))
def test_the_shares_always_sum_to_the_cost(amount: int, fee: int, reward: int) -> None:
    shares = split(amount, fee_percent=fee, reward_percent=reward)
    assert shares.payout + shares.platform + shares.reward == amount
    assert min(shares.payout, shares.platform, shares.reward) >= 0


@given(st.integers(-(10**17), 10**17))
def test_money_survives_becoming_text_and_back(micro: int) -> None:
    assert parse_usd(decimal_usd(micro)) == micro


@pytest.mark.parametrize(
    ("micro", "text"),
    [(4_821_200, "$4.821200"), (182, "$0.000182"), (0, "$0.000000"), (-1, "-$0.000001")],
)
def test_money_is_shown_with_six_decimals(micro: int, text: str) -> None:
    assert format_usd(micro) == text


def test_fewer_decimals_never_show_more_than_there_is() -> None:
    assert decimal_usd(1_999_999, places=2) == "1.99"


@pytest.mark.parametrize("text", ["", "abc", "nan", "inf", "1.0000001", "1e30", "$5"])
def test_what_is_not_an_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 — the type is the promise
        parse_usd(text)
