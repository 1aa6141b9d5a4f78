"""The card of a benchmark: what was measured, what the memory allows, and the runs before.

The limit: a token cannot be made before the weights it needs have been read, so

    tokens/s at batch 1  ≤  memory bandwidth / bytes read per token

A batch shares what it reads, so the limit of a batch is higher and is not quoted.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from darkbloom_provider import paths

KEPT = 200
"""Runs in the history; the oldest are forgotten first."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class BatchRates(_Part):
    """Tokens per second of all requests of a batch together."""

    batch: int
    prefill_tps: float
    decode_tps: float


class Machine(_Part):
    """What computed."""

    name: str
    """The chip, in its vendor's words."""
    device: str
    """What MLX computes on."""
    blas: str | None
    memory_gb: float


class Memory(_Part):
    """GB (10^9 bytes)."""

    weights_gb: float
    peak_gb: float
    """The most that MLX held at once."""
    source: Literal["metal", "cpu", "none"]


class Limit(_Part):
    """The bandwidth limit of batch 1, and all that it was reckoned from."""

    bandwidth_gbs: float
    bandwidth_source: Literal["chip table", "measured copy"]
    bytes_per_token: int
    experts: tuple[int, int] | None
    """Experts that a token visits, and how many there are; None for a dense model."""

    @property
    def tps(self) -> float:
        """Tokens per second that batch 1 cannot exceed."""
        return self.bandwidth_gbs * 1e9 / self.bytes_per_token


class Card(_Part):
    """One run."""

    at: dt.datetime
    version: str
    model: str
    quick: bool
    machine: Machine
    rates: tuple[BatchRates, ...]
    refused: tuple[int, ...]
    """Batches for which there is not enough memory."""
    prompt_tokens: int
    ttft_cold_s: float
    ttft_warm_s: float
    memory: Memory
    limit: Limit

    @property
    def limit_share(self) -> float:
        """What share of its bandwidth limit batch 1 reaches."""
        alone = next((rates.decode_tps for rates in self.rates if rates.batch == 1), 0.0)
        return alone / self.limit.tps

    def comparable(self, other: Card) -> bool:
        """Whether both were measured in the same way with the same model on the same device."""
        return (self.model, self.quick, self.machine.device) == (
            other.model,
            other.quick,
            other.machine.device,
        )

    def changes(self, before: Card) -> Iterator[tuple[str, float]]:
        """Names of figures and the share by which they have grown since `before`."""
        then = {rates.batch: rates for rates in before.rates}
        for now in self.rates:
            old = then.get(now.batch)
            if old is not None and old.prefill_tps and old.decode_tps:
                yield f"prefill at {now.batch}", now.prefill_tps / old.prefill_tps - 1
                yield f"decode at {now.batch}", now.decode_tps / old.decode_tps - 1
        if before.ttft_cold_s and before.ttft_warm_s:
            yield "first token cold", self.ttft_cold_s / before.ttft_cold_s - 1
            yield "first token warm", self.ttft_warm_s / before.ttft_warm_s - 1


def history(path: Path) -> list[Card]:
    """The runs kept in the file, oldest first. Lines that are no card are passed over.

    Raises:
        OSError: The file is there and cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [card for line in lines if (card := _card(line)) is not None]


def keep(path: Path, card: Card) -> None:
    """Add a run to the file, which stays private and bounded.

    Raises:
        OSError: The disk is full or read-only. What was there before is then untouched.
    """
    kept = [*history(path), card][-KEPT:]
    text = "".join(f"{one.model_dump_json()}\n" for one in kept)
    paths.write_private(path, text.encode())


def previous(cards: Sequence[Card], card: Card) -> Card | None:
    """The last of `cards` that `card` can be compared with."""
    return next((old for old in reversed(cards) if card.comparable(old)), None)


def _card(line: str) -> Card | None:
    try:
        return Card.model_validate_json(line)
    except ValidationError:
        return None
