from __future__ import annotations

import datetime as dt

from darkbloom_provider.daemon.terms import FLUSH_SECONDS, MOST_FLUSH_SECONDS, Terms
from darkbloom_provider.protocol.boxes import KeyPair
from darkbloom_provider.protocol.money import DEFAULT_PRICE

TERMS = Terms(
    key_pair=KeyPair.generate(),
    price=lambda _model: DEFAULT_PRICE,
    linked=lambda: False,
    now=lambda: dt.datetime(2026, 5, 1, tzinfo=dt.UTC),
)


def test_a_few_answers_are_sent_as_they_come() -> None:
    assert TERMS.gather_seconds(1) == TERMS.gather_seconds(4) == FLUSH_SECONDS


def test_many_answers_together_send_no_more_chunks_than_a_line_and_its_ends_can_bear() -> None:
    assert 12 / TERMS.gather_seconds(12) == TERMS.chunks_per_second


def test_readers_never_wait_long_for_text_that_is_there() -> None:
    assert TERMS.gather_seconds(1000) == MOST_FLUSH_SECONDS
