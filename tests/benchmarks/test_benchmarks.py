"""A slice of every benchmark: the measuring works. What it measures is worth nothing."""

from __future__ import annotations

import asyncio
import importlib
import json
import math
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from benchmarks import bars, model, run
from benchmarks.figure import Figure, in_turn, percentile
from benchmarks.scale import SLICE

FIGURES = {
    "wire": ("wire.chunk_us",),
    "link": ("link.chunk_us", "link.lag_p99_ms"),
    "daemon": ("link.reconnect_s", "daemon.idle_cpu_pct", "daemon.idle_rss_mb"),
    "engine": ("engine.decode.b1", "engine.decode.b8", "engine.decode.b16"),
    "stall": ("engine.stall_s", "engine.stall_ttft"),
    "features": ("engine.features_cost",),
    "cache": ("cache.warm_ttft", "cache.shared_prefix_tps"),
    "loop": ("loop.lag_p99_ms", "engine.cancel_steps"),
    "path": ("path.tps.c8", "path.tps.c16"),
    "local": (
        "local.tps.c1",
        "local.tps.c4",
        "local.tps.c8",
        "local.tps.c16",
        "local.ttft_p50.c4",
        "local.ttft_p50.c8",
        "local.ttft_p50.c16",
        "local.ttft_p95.c4",
    ),
    "coordinator": ("coord.requests_per_s", "coord.chunk_latency_p50_ms", "coord.session_kb"),
    "routing": ("coord.routing_p99_ms",),
    "earn": ("coord.earn_query_ms",),
}
ALONE = {
    *FIGURES["wire"],
    *FIGURES["link"],
    *FIGURES["daemon"],
    "engine.features_cost",
    *FIGURES["loop"],
    *FIGURES["coordinator"],
    *FIGURES["routing"],
    *FIGURES["earn"],
}
"""Figures without a peer."""


@pytest.mark.parametrize("name", FIGURES)
def test_every_benchmark_measures_what_it_promises(name: str) -> None:
    figures = importlib.import_module(f"benchmarks.{name}").measure(SLICE)
    assert {figure.name for figure in figures} == set(FIGURES[name])
    for row in json.loads(json.dumps([figure.as_json() for figure in figures], allow_nan=False)):
        assert list(row) == ["name", "value", "unit", "against", "ratio"]
        assert math.isfinite(row["value"])
        assert row["unit"]
        if row["name"] in ALONE:
            assert row["against"] is row["ratio"] is None
        else:
            assert row["value"] > 0
            assert row["against"] > 0
            assert row["ratio"] > 0


def test_make_bench_runs_them_all_and_the_readme_explains_each() -> None:
    assert set(run.BENCHMARKS) == set(FIGURES)
    readme = (Path(run.__file__).parent / "README.md").read_text()
    for name in (figure for figures in FIGURES.values() for figure in figures):
        family, _, variant = name.rpartition(".")
        explained = f"`{name}`" in readme or (
            f"`{family}." in readme and re.search(rf"`{re.escape(variant)}`", readme)
        )
        assert explained, name


def test_the_table_says_of_every_figure_whether_it_reaches_its_bar(tmp_path: Path) -> None:
    assert set(bars.BARS) | {"wire.chunk_us"} == {n for names in FIGURES.values() for n in names}
    rows = [
        Figure("engine.decode.b8", 97.0, "tokens/s", 100.0).as_json(),
        Figure("engine.stall_s", 0.31, "s", 3.0).as_json(),
        Figure("loop.lag_p99_ms", 20.0, "ms").as_json(),
        Figure("wire.chunk_us", 11.0, "us").as_json(),
    ]
    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{bars.BEGIN}\nold\n{bars.END}\nbelow\n")
    for _ in range(2):
        bars.write_into(readme, rows)
    lines = readme.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("above", "below")
    assert [line.split("|")[-2].strip() for line in lines[4:-2]] == ["yes", "NO", "NO", ""]


def test_a_ratio_is_ours_over_the_peers() -> None:
    row = Figure("x", 30.0, "tokens/s", 20.0).as_json()
    assert (row["value"], row["against"], row["ratio"]) == (30, 20, 1.5)


def test_prompts_have_the_tokens_they_promise_and_begin_differently(tmp_path: Path) -> None:
    folder = model.build(tmp_path / "model", model.TINY)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for tokens in (2, 3, 64, 1000):
        assert len(tokenizer.encode(model.prompt(tokens, seed=5)).ids) == tokens
    joined = f"{model.prompt(10, 1)} {model.prompt(6, 2)}"
    assert len(tokenizer.encode(joined).ids) == 17
    line = model.Prompts()
    assert len({prompt[:5] for prompt in line.some(50, 8)}) == 50


async def test_measurements_are_taken_in_turns_and_none_is_always_first() -> None:
    order: list[str] = []

    async def measure(name: str) -> str:
        await asyncio.sleep(0)
        order.append(name)
        return name

    found = await in_turn([lambda: measure("a"), lambda: measure("b")], SLICE)
    assert found == [["a"], ["b"]]
    three = type(SLICE)(rounds=3, warm_ups=1)
    order.clear()
    await in_turn([lambda: measure("a"), lambda: measure("b")], three)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([5.0, 1.0, 3.0], 0.95) == 5
    assert percentile(list(range(1, 101)), 0.99) == 99
