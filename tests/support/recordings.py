"""Sessions recorded with the existing network's coordinator, as test data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "protocol" / "data"
SESSIONS = sorted(path.stem for path in DATA.glob("ws-*.jsonl"))


def recording(name: str) -> list[dict[str, Any]]:
    """The lines of one recording."""
    lines = (DATA / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def frames(name: str) -> list[dict[str, Any]]:
    """The frames of one recording in both directions, without the notes between them."""
    return [line for line in recording(name) if "frame" in line]


def vectors() -> dict[str, Any]:
    """The protocol's test vectors."""
    document: dict[str, Any] = json.loads((DATA / "vectors.json").read_text())
    return document
