"""What each figure has to reach, and the table of how it stands, made from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True)
class Bar:
    """A bound of a figure's value, or of its ratio to the peer's."""

    of: Literal["value", "ratio"]
    relation: Literal["≥", "≤", "<"]
    bound: float

    def reached(self, row: Mapping[str, Any]) -> bool:
        """Whether this row of build/bench.json keeps the bound."""
        measured = float(row[self.of])
        if self.relation == "≥":
            return measured >= self.bound
        return measured < self.bound or (self.relation == "≤" and measured == self.bound)

    def __str__(self) -> str:
        return f"{self.of} {self.relation} {self.bound:.3g}"


BARS: Mapping[str, Bar] = {
    **{f"engine.decode.b{size}": Bar("ratio", "≥", 0.97) for size in (1, 8, 16)},
    **{f"path.tps.c{clients}": Bar("ratio", "≥", 0.90) for clients in (8, 16)},
    **{f"local.tps.c{clients}": Bar("ratio", "≥", 1.0) for clients in (1, 4, 8, 16)},
    **{f"local.ttft_p50.c{clients}": Bar("ratio", "≤", 0.7) for clients in (4, 8, 16)},
    "local.ttft_p95.c4": Bar("ratio", "≤", 0.5),
    "engine.stall_s": Bar("value", "≤", 0.3),
    "engine.stall_ttft": Bar("ratio", "≤", 1.0),
    "cache.warm_ttft": Bar("ratio", "≤", 1 / 15),
    "cache.shared_prefix_tps": Bar("ratio", "≥", 2.0),
    "engine.features_cost": Bar("value", "<", 0.03),
    "loop.lag_p99_ms": Bar("value", "<", 20.0),
    "engine.cancel_steps": Bar("value", "≤", 2.0),
    "link.chunk_us": Bar("value", "≤", 30.0),
    "link.lag_p99_ms": Bar("value", "≤", 20.0),
    "link.reconnect_s": Bar("value", "≤", 1.0),
    "coord.requests_per_s": Bar("value", "≥", 300.0),
    "coord.routing_p99_ms": Bar("value", "≤", 1.0),
    "coord.chunk_latency_p50_ms": Bar("value", "≤", 1.0),
    "coord.earn_query_ms": Bar("value", "<", 150.0),
    "coord.session_kb": Bar("value", "≤", 64.0),
    "daemon.idle_cpu_pct": Bar("value", "<", 0.5),
    "daemon.idle_rss_mb": Bar("value", "<", 120.0),
}


def verdict(row: Mapping[str, Any]) -> tuple[str, str]:
    """The bar of a figure and whether it is reached, both empty where there is none."""
    bar = BARS.get(str(row["name"]))
    return ("", "") if bar is None else (str(bar), "yes" if bar.reached(row) else "NO")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of build/bench.json as a table for the README."""
    lines = [
        "| figure | value | unit | peer | ratio | bar | reached |",
        "|---|--:|---|--:|--:|---|---|",
    ]
    for row in rows:
        cells = [
            f"`{row['name']}`",
            _number(row["value"]),
            str(row["unit"]),
            _number(row["against"]),
            _number(row["ratio"]),
            *verdict(row),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_into(readme: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace what stands between the two marks."""
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}", encoding="utf-8")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
