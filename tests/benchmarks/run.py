"""`make bench`: every figure is measured here, beside its peer, and written to build/bench.json.

Each benchmark yields figures; a figure with a peer was measured with it in turns, in this one run.
See README.md in this folder for what each name means.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

BENCHMARKS = ("wire", "engine")
"""Modules of this folder; each has `measure() -> list[Figure]`."""


def main(names: Sequence[str]) -> None:
    """Run the benchmarks named, or all of them."""
    from benchmarks.figure import Figure

    figures: list[Figure] = []
    for name in names or BENCHMARKS:
        figures += importlib.import_module(f"benchmarks.{name}").measure()
    target = HERE.parent.parent / "build" / "bench.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps([figure.as_json() for figure in figures], indent=2) + "\n")

    table = Table("figure", "value", "unit", "against", "ratio", box=None)
    for figure in figures:
        row = figure.as_json()
        table.add_row(*("" if row[k] is None else str(row[k]) for k in row))
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
