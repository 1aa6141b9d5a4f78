"""Frames that are almost right: golden ones with one thing or a few changed."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any, Final

MOST_CHANGES: Final = 4
_VALUES: Final[list[Any]] = [
    None, True, False, 0, -1, 1.0, 0.5, 2**63, -(2**63) - 1, 10**400, "", "\ud800", "\x00", "é" * 9,
    [], {}, [[]], [None], {"": None}, {"type": "cancel"},
]  # fmt: skip


def mutated(data: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """`data` with a few changes, of its values while it is JSON, of its bytes otherwise.

    Args:
        data: A frame.
        chance: Decides what changes.
        others: Frames and words to take pieces of.
    """
    for _ in range(chance.randint(1, MOST_CHANGES)):
        changed = _values_changed(data, chance) if chance.random() < 0.6 else None
        data = changed if changed is not None else _bytes_changed(data, chance, others)
    return data


def _values_changed(data: bytes, chance: random.Random) -> bytes | None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    inner = document
    while isinstance(inner, dict | list) and inner:
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        key = chance.choice(keys)
        if isinstance(inner[key], dict | list) and inner[key] and chance.random() < 0.8:
            inner = inner[key]
            continue
        match chance.randrange(4):
            case 0:
                del inner[key]
            case 1 if isinstance(inner, dict):
                inner[chance.choice([*inner, "x"])] = inner[key]
            case _:
                inner[key] = chance.choice(_VALUES)
        break
    try:
        return json.dumps(document, ensure_ascii=chance.random() < 0.5).encode()
    except (ValueError, RecursionError):  # half of a surrogate pair has no bytes
        return json.dumps(document).encode()


def _bytes_changed(data: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    at = chance.randint(0, len(data))
    other = chance.choice(others)
    match chance.randrange(6):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + other + data[at:]
        case 2:
            return data[:at] + data[at + chance.randint(1, 8) :]
        case 3:
            return data[:at] + other[chance.randint(0, len(other)) :]
        case 4:
            return (
                data[:at]
                + data[at : at + chance.randint(1, 64)] * chance.randint(2, 50)
                + data[at:]
            )
        case _:
            flipped = bytearray(data or b"{")
            flipped[at % len(flipped)] ^= 1 << chance.randrange(8)
            return bytes(flipped)
