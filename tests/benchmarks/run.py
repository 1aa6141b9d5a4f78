"""`make bench`: every figure is measured here, beside its peer, and written to build/bench.json.

Each benchmark yields figures; a figure with a peer was measured with it in turns, in this one run.
See README.md in this folder for what each name means.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

BENCHMARKS = (
    *("wire", "link", "daemon", "engine", "stall", "features", "cache", "loop", "path", "local"),
    *("coordinator", "routing", "earn"),
)
"""Modules of this folder; each has `measure(scale) -> list[Figure]`."""


def main() -> None:
    """Run the benchmarks named, or all of them."""
    from benchmarks import bars
    from benchmarks.figure import Figure
    from benchmarks.scale import FULL

    parser = argparse.ArgumentParser(description="Measure; see README.md beside this file.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--output", type=Path, default=HERE.parent.parent / "build" / "bench.json")
    parser.add_argument("--readme", action="store_true", help="put the figures into README.md too")
    asked = parser.parse_args()
    unknown = set(asked.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"there is no benchmark called {min(unknown)}")

    # Of those not named, what a run before has measured stays.
    kept = json.loads(asked.output.read_text()) if asked.names and asked.output.exists() else []
    rows: dict[str, dict[str, object]] = {row["name"]: row for row in kept}
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    for name in asked.names or BENCHMARKS:
        start = time.monotonic()
        figures: list[Figure] = importlib.import_module(f"benchmarks.{name}").measure(FULL)
        rows |= {figure.name: figure.as_json() for figure in figures}
        # After each: what has been measured is kept when a later benchmark is interrupted.
        asked.output.write_text(json.dumps([*rows.values()], indent=2) + "\n")
        if asked.readme:
            bars.write_into(HERE / "README.md", [*rows.values()])
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)  # noqa: T201 - a program's own output
    table = Table("figure", "value", "unit", "against", "ratio", "bar", "reached", box=None)
    for row in rows.values():
        cells = ["" if cell is None else str(cell) for cell in row.values()]
        table.add_row(*cells, *bars.verdict(row))
    Console().print(table)


if __name__ == "__main__":
    main()
