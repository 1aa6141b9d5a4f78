"""How fast this machine really is, from the steps it did for paying requests.

Speeds are those of one request by itself (batch 1), in tokens per second, because that is what the
network reckons with. Steps in company, and steps that did both kinds of work, say nothing of it and
are left out. What was measured is remembered under the hardware's name and the model's: a disk that
moves to another Mac takes no foreign figures along.
"""

from __future__ import annotations

import json
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from darkbloom_provider import paths

FILE_NAME = "speeds.json"
_DECODE_STEPS, _DECODE_KEPT = 32, 256
"""Steps that a figure takes at least, and at most."""
_PREFILL_TOKENS, _PREFILL_KEPT = 256, 32
"""Tokens that a figure takes at least, and pieces of prompts at most."""
_READ_EVERY = 16
_ABSURD = 10**9
"""Tokens per second that no machine reaches: such a figure is damage."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second of one request by itself; None where too little was seen."""

    prefill_tps: float | None = None
    decode_tps: float | None = None

    def over(self, older: Speed) -> Speed:
        """These figures, and the older ones where there are none."""
        return Speed(self.prefill_tps or older.prefill_tps, self.decode_tps or older.decode_tps)


class Speedometer:
    """Watches the steps of one model."""

    def __init__(self) -> None:
        self._decode: deque[float] = deque(maxlen=_DECODE_KEPT)
        self._prefill: deque[tuple[int, float]] = deque(maxlen=_PREFILL_KEPT)
        self._unread = 0
        self.speed = Speed()
        """What has been seen lately; anew every so many steps."""

    def decode(self, seconds: float, *, rows: int) -> None:
        """Take in a step that took `seconds`, brought `rows` requests a token, and did no more."""
        if rows == 1 and seconds > 0:
            self._decode.append(seconds)
            self._news()

    def read(self, seconds: float, tokens: int, *, rows: int, streams: int) -> None:
        """Take in a piece of `rows` prompts, `tokens` in all, computed beside `streams` streams."""
        if rows == 1 and streams == 0 and tokens > 1 and seconds > 0:
            self._prefill.append((tokens, seconds))
            self._news()

    def _news(self) -> None:
        self._unread += 1
        missing = self.speed.decode_tps is None or self.speed.prefill_tps is None
        if missing or self._unread >= _READ_EVERY:
            self._unread = 0
            self.speed = self._read()

    def _read(self) -> Speed:
        decode = None
        if len(self._decode) >= _DECODE_STEPS:
            # The median: the machine's owner may have been busy in between.
            decode = 1 / statistics.median(self._decode)
        tokens = sum(tokens for tokens, _ in self._prefill)
        prefill = None
        if tokens >= _PREFILL_TOKENS:
            prefill = tokens / sum(seconds for _, seconds in self._prefill)
        return Speed(prefill, decode)


@dataclass(frozen=True, slots=True)
class SpeedBook:
    """Everything remembered, by hardware and model."""

    entries: Mapping[str, Mapping[str, Speed]]

    def of(self, hardware: str) -> Mapping[str, Speed]:
        """The models' speeds on this hardware."""
        return self.entries.get(hardware, {})

    def noting(self, hardware: str, measured: Mapping[str, Speed]) -> SpeedBook:
        """The same with newer figures."""
        known = self.of(hardware)
        newer = {model: speed.over(known.get(model, Speed())) for model, speed in measured.items()}
        newer = {model: speed for model, speed in newer.items() if speed != Speed()}
        return replace(self, entries={**self.entries, hardware: {**known, **newer}})


def slowest(speeds: Mapping[str, Speed], models: tuple[str, ...]) -> Speed:
    """One figure for a machine that serves several models: that of the slowest of each.

    The registration has room for one; who promises more than the slowest model holds would be sent
    work that it keeps waiting.
    """
    found = [speeds[model] for model in models if model in speeds]
    prefill = [speed.prefill_tps for speed in found if speed.prefill_tps is not None]
    decode = [speed.decode_tps for speed in found if speed.decode_tps is not None]
    return Speed(min(prefill, default=None), min(decode, default=None))


def read(home: Path) -> SpeedBook:
    """What is remembered in a home; nothing if the file is missing or damaged.

    A figure that is lost is measured again, so a damaged file is no reason to stop.
    """
    try:
        document = json.loads((home / FILE_NAME).read_bytes())
    except (OSError, ValueError):
        return SpeedBook({})
    entries: dict[str, dict[str, Speed]] = {}
    for hardware, models in _items(document):
        for model, figures in _items(models):
            values = dict(_items(figures))
            speed = Speed(_figure(values.get("prefill_tps")), _figure(values.get("decode_tps")))
            if speed != Speed():
                entries.setdefault(hardware, {})[model] = speed
    return SpeedBook(entries)


def write(home: Path, book: SpeedBook) -> None:
    """Remember, atomically.

    Raises:
        OSError: The disk is full or cannot be written to; what was there is untouched.
    """
    document = {
        hardware: {
            model: {
                name: round(value, 2)
                for name in ("prefill_tps", "decode_tps")
                if (value := getattr(speed, name)) is not None
            }
            for model, speed in models.items()
        }
        for hardware, models in book.entries.items()
    }
    text = json.dumps(document, indent=1, allow_nan=False)
    paths.write_private(home / FILE_NAME, text.encode() + b"\n")


def _items(value: object) -> list[tuple[str, object]]:
    return list(value.items()) if isinstance(value, dict) else []


def _figure(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 < value < _ABSURD else None
