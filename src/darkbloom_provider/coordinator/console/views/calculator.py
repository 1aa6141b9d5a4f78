"""What a Mac might earn: an estimate from its memory's speed, the price table and an assumed use.

Source of the formula: the network's own calculator, with two things said aloud that it leaves out:
which share of the time there is work, and which share of the price the owner gets. Only tokens that
are written count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from darkbloom_provider.coordinator.console.views.macs import MACS, Mac
from darkbloom_provider.models.catalogue import CatalogueModel

ACTIVE_GB: Final[Mapping[str, float]] = {
    "qwen3.5-27b-claude-opus-8bit": 27,
    "mlx-community/Trinity-Mini-8bit": 3,
    "mlx-community/gemma-4-26b-a4b-it-8bit": 4,
    "mlx-community/Qwen3.5-122B-A10B-8bit": 10,
    "mlx-community/MiniMax-M2.5-8bit": 11,
}
"""GB of weights that one token reads, of the network's models. Any other model reads all of its
weights, as a dense one does: the estimate is then too low rather than too high."""

LEAST_ACTIVE_GB: Final = 3.0
"""The formula takes reading the weights for all the work. Of a smaller model that is not so, and it
would promise far too much."""
DAYS_PER_MONTH: Final = 30
MONTHS_PER_YEAR: Final = 12
MAX_BATCH: Final = 16
BANDWIDTH_REACHED: Final = 0.60
_EFFICIENCIES: Final = ((4, 0.80), (8, 0.85), (MAX_BATCH, 0.90))
_MICRO: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Running:
    """The machine as far as the estimate needs it."""

    memory_gb: int
    bandwidth_gbs: float
    added_watts: float
    """What it draws at work, above what it draws anyway."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What nobody knows beforehand."""

    hours_per_day: float
    """1 to 24: how long the machine is offered."""
    utilisation: float
    """Above 0 and up to 1: the share of that time in which there is work for every place."""
    price_per_kwh: float
    """US dollars."""
    owner_share: float = 1.0
    """Of what consumers pay."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """One model on one machine. Amounts are micro-USD, of a month of 30 days."""

    model_id: str
    name: str
    batch: int
    """Requests at once."""
    tokens_per_second: float
    """Of all of them, while there is work."""
    output_price: int
    earned: int
    electricity: int

    @property
    def net(self) -> int:
        """What is left; it may be negative."""
        return self.earned - self.electricity

    @property
    def net_year(self) -> int:
        """The same of twelve such months."""
        return self.net * MONTHS_PER_YEAR


def active_gb(model: CatalogueModel) -> float:
    """GB of weights that one token reads."""
    return ACTIVE_GB.get(model.id, model.size_gb)


def estimate(machine: Running, model: CatalogueModel, assumed: Assumptions) -> Estimate | None:
    """What a model might earn on a machine; None if it does not fit or is too small to tell."""
    if model.min_ram_gb > machine.memory_gb or active_gb(model) < LEAST_ACTIVE_GB:
        return None
    batch = min(max(math.floor((machine.memory_gb - model.size_gb) / 2), 1), MAX_BATCH)
    efficiency = next(share for most, share in _EFFICIENCIES if batch <= most)
    speed = machine.bandwidth_gbs / active_gb(model) * BANDWIDTH_REACHED * batch * efficiency
    working = assumed.hours_per_day * DAYS_PER_MONTH * assumed.utilisation
    tokens = speed * 3600 * working
    kwh = machine.added_watts / 1000 * working
    return Estimate(
        model_id=model.id,
        name=model.display_name or model.id,
        batch=batch,
        tokens_per_second=speed,
        output_price=model.output_price,
        earned=math.floor(tokens / _MICRO * model.output_price * assumed.owner_share),
        electricity=math.ceil(kwh * assumed.price_per_kwh * _MICRO),
    )


def ranking(
    machine: Running, models: Sequence[CatalogueModel], assumed: Assumptions
) -> tuple[Estimate, ...]:
    """Every model that fits, the one with the most left over first."""
    found = [estimate(machine, model, assumed) for model in models if model.active]
    fitting = [one for one in found if one is not None]
    return tuple(sorted(fitting, key=lambda one: (-one.net, one.model_id)))


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a visitor typed, as text for the form and understood."""

    mac: Mac
    memory_gb: int
    model: str
    """Only this one, if not empty."""
    hours: float
    utilisation_percent: float
    kwh_usd: float
    watts: float | None
    """What it draws at work above idle, if the visitor knows better than the table."""

    @property
    def added_watts(self) -> float | None:
        """Watts at work above idle; None if neither the visitor nor the table says."""
        if self.watts is not None:
            return self.watts
        if self.mac.busy_watts is None or self.mac.idle_watts is None:
            return None
        return self.mac.busy_watts - self.mac.idle_watts


DEFAULTS: Final[Mapping[str, str]] = {
    "mac": "mac-mini-m4-pro",
    "memory": "64",
    "model": "",
    "hours": "18",
    "use": "25",
    "kwh": "0.15",
    "watts": "",
}
MEMORIES: Final = tuple(sorted({size for mac in MACS for size in mac.memories_gb}))


def read_inputs(query: Mapping[str, str], models: Sequence[CatalogueModel]) -> Inputs:
    """What a visitor asks for; what is left out has its default.

    Raises:
        ValueError: In words for the visitor: what cannot be calculated with.
    """
    given = {name: query.get(name, "").strip() or default for name, default in DEFAULTS.items()}
    mac = next((mac for mac in MACS if mac.key == given["mac"]), None)
    if mac is None:
        raise ValueError("Choose one of the Macs in the list")
    memory = next((size for size in mac.memories_gb if str(size) == given["memory"]), None)
    if memory is None:
        sizes = " or ".join(str(size) for size in mac.memories_gb)
        raise ValueError(f"{mac.name} comes with {sizes} GB of memory")
    if given["model"] and given["model"] not in {model.id for model in models}:
        raise ValueError("Choose one of the models in the list")
    return Inputs(
        mac=mac,
        memory_gb=memory,
        model=given["model"],
        hours=_number(given["hours"], "Hours per day", 1, 24),
        utilisation_percent=_number(given["use"], "Time with work", 1, 100),
        kwh_usd=_number(given["kwh"], "The price of electricity", 0, 10),
        watts=_number(given["watts"], "Power at work", 0, 2000) if given["watts"] else None,
    )


def _number(text: str, what: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise ValueError(f"{what} must be a number from {least:g} to {most:g}")
    return value


@dataclass(frozen=True, slots=True)
class CalculatorView:
    """The page."""

    typed: Mapping[str, str]
    """By field: what stands in the form."""
    inputs: Inputs | None
    """None if what was typed makes no sense."""
    estimates: tuple[Estimate, ...]
    too_large: tuple[str, ...]
    """Names of the models that do not fit."""
    too_small: tuple[str, ...]
    """Names of the models that the formula does not hold for."""
    models: tuple[tuple[str, str], ...]
    """Ids and names of all."""
    kinds: tuple[tuple[str, tuple[Mac, ...]], ...]
    memories: tuple[int, ...]
    fee_percent: int


def view(
    query: Mapping[str, str],
    inputs: Inputs | None,
    models: Sequence[CatalogueModel],
    *,
    fee_percent: int,
) -> CalculatorView:
    """The page, for what was typed."""
    active = [model for model in models if model.active]
    chosen = [model for model in active if inputs and inputs.model in {"", model.id}]
    estimates: tuple[Estimate, ...] = ()
    if inputs is not None:
        machine = Running(inputs.memory_gb, inputs.mac.bandwidth_gbs, inputs.added_watts or 0)
        assumed = Assumptions(
            hours_per_day=inputs.hours,
            utilisation=inputs.utilisation_percent / 100,
            price_per_kwh=inputs.kwh_usd,
            owner_share=1 - fee_percent / 100,
        )
        estimates = ranking(machine, chosen, assumed)
    small = [model for model in chosen if active_gb(model) < LEAST_ACTIVE_GB]
    left_out = {one.model_id for one in estimates} | {model.id for model in small}
    kinds = dict.fromkeys(mac.kind for mac in MACS)
    return CalculatorView(
        typed={name: query.get(name, "") or default for name, default in DEFAULTS.items()},
        inputs=inputs,
        estimates=estimates,
        too_large=tuple(m.display_name or m.id for m in chosen if m.id not in left_out),
        too_small=tuple(model.display_name or model.id for model in small),
        models=tuple((model.id, model.display_name or model.id) for model in active),
        kinds=tuple((kind, tuple(m for m in MACS if m.kind == kind)) for kind in kinds),
        memories=MEMORIES,
        fee_percent=fee_percent,
    )
