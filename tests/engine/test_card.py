"""The benchmark's card and its history."""

from __future__ import annotations

import datetime as dt
import stat
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.engine import card
from darkbloom_provider.engine.card import BatchRates, Card, Limit, Machine, Memory

MACHINE = Machine(name="Apple M4 Max", device="Apple M4 Max (Metal)", blas=None, memory_gb=64)


def made(**changes: Any) -> Card:
    plain = Card(
        at=dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.UTC),
        version="1.0",
        model="m",
        quick=False,
        machine=MACHINE,
        rates=(BatchRates(batch=1, prefill_tps=900, decode_tps=60),),
        refused=(),
        prompt_tokens=512,
        ttft_cold_s=1.0,
        ttft_warm_s=0.05,
        memory=Memory(weights_gb=4, peak_gb=5, source="metal"),
        limit=Limit(
            bandwidth_gbs=400,
            bandwidth_source="chip table",
            bytes_per_token=4_000_000_000,
            experts=None,
        ),
    )
    return plain.model_copy(update=changes)


def test_the_limit_is_bandwidth_over_bytes_read() -> None:
    assert made().limit.tps == 100
    assert made().limit_share == pytest.approx(0.6)


def test_a_run_is_compared_with_the_last_of_its_kind() -> None:
    cards = [made(version="1"), made(version="2"), made(model="n"), made(quick=True)]
    before = card.previous(cards, made())
    assert before is not None
    assert before.version == "2"
    elsewhere = made(machine=MACHINE.model_copy(update={"device": "CPU"}))
    assert card.previous(cards, elsewhere) is None


def test_changes_name_what_has_grown() -> None:
    faster = made(
        rates=(
            BatchRates(batch=1, prefill_tps=900, decode_tps=66),
            BatchRates(batch=4, prefill_tps=900, decode_tps=66),
        ),
        ttft_warm_s=0.1,
    )
    changes = dict(faster.changes(made()))
    assert changes["decode at 1"] == pytest.approx(0.1)
    assert changes["first token warm"] == pytest.approx(1)
    assert "decode at 4" not in changes


def test_the_history_is_private_bounded_and_survives_damage(tmp_path: Path) -> None:
    path = tmp_path / "home" / "benchmarks.jsonl"
    assert card.history(path) == []
    card.keep(path, made(version="first"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(path.read_bytes() + b'{"half": \n\xff\xfe nonsense\n{"model": "m"}\n')
    card.keep(path, made(version="second"))
    assert [one.version for one in card.history(path)] == ["first", "second"]
    assert path.read_bytes().count(b"\n") == 2
    path.write_text(f"{made().model_dump_json()}\n" * (card.KEPT + 5))
    card.keep(path, made(version="last"))
    kept = card.history(path)
    assert len(kept) == card.KEPT
    assert kept[-1].version == "last"
    assert kept[0] == made(), "a card is read back as it was written"
