"""What everybody may see: the leaderboard, models with their prices, and the network as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from darkbloom_provider.coordinator.accounts.pseudonyms import pseudonym
from darkbloom_provider.coordinator.earnings.views import LeaderboardRow, Metric, NetworkTotals
from darkbloom_provider.coordinator.rest.queries import MAX_LEADERBOARD
from darkbloom_provider.coordinator.routing.choice import Candidate, Rules, trustworthy
from darkbloom_provider.models.catalogue import Catalogue

METRICS: Final[Mapping[Metric, str]] = {"earnings": "Earnings", "tokens": "Tokens", "jobs": "Jobs"}
WINDOWS: Final[Mapping[str, str]] = {
    "24h": "24 hours",
    "7d": "7 days",
    "30d": "30 days",
    "all": "All time",
}
WINDOW_NAMES: Final[Mapping[str, str]] = {"1d": "24h", "lifetime": "all"}
"""Other spellings of the same windows, which addresses may use."""


@dataclass(frozen=True, slots=True)
class LeaderboardView:
    """The page."""

    rows: tuple[LeaderboardRow, ...]
    totals: NetworkTotals
    metric: Metric
    window: str
    metrics: tuple[tuple[Metric, str], ...]
    windows: tuple[tuple[str, str], ...]
    own: str
    """The visitor's pseudonym; empty if nobody signed in."""
    updated_at: datetime
    more: bool
    """Whether there may be owners after the last row shown, and a longer page for them."""


@dataclass(frozen=True, slots=True)
class ModelLine:
    """One model. Prices in micro-USD per million tokens."""

    id: str
    name: str
    description: str
    size_gb: float
    min_ram_gb: int
    input_price: int
    output_price: int
    providers: int


@dataclass(frozen=True, slots=True)
class StatsView:
    """The network as it is now."""

    connected: int
    routable: int
    """Providers that have the trust and the privacy that work is given for."""
    busy: int
    memory_gb: int
    chips: tuple[tuple[str, int], ...]
    models: tuple[tuple[str, int], ...]
    windows: tuple[tuple[str, NetworkTotals], ...]


def leaderboard(
    rows: Sequence[LeaderboardRow],
    totals: NetworkTotals,
    *,
    metric: Metric,
    window: str,
    account_id: str | None,
    limit: int,
    now: datetime,
) -> LeaderboardView:
    """The leaderboard, with the visitor's own place marked."""
    return LeaderboardView(
        rows=tuple(rows),
        totals=totals,
        metric=metric,
        window=WINDOW_NAMES.get(window, window),
        metrics=tuple(METRICS.items()),
        windows=tuple(WINDOWS.items()),
        own=pseudonym(account_id) if account_id else "",
        updated_at=now,
        more=len(rows) == limit < MAX_LEADERBOARD,
    )


def models(
    catalogue: Catalogue, candidates: Sequence[Candidate], rules: Rules
) -> tuple[ModelLine, ...]:
    """Every model that can be asked for here: the catalogue's, and what else is served now."""
    serving = served(candidates, rules)
    lines = [
        ModelLine(
            entry.id,
            entry.display_name,
            entry.description,
            entry.size_gb,
            entry.min_ram_gb,
            entry.input_price,
            entry.output_price,
            serving[entry.id],
        )
        for entry in catalogue.entries
        if entry.active
    ]
    listed = {line.id for line in lines}
    for model in sorted(set(serving) - listed):
        price = catalogue.price(model)
        lines.append(
            ModelLine(model, "", "", 0.0, 0, price.input_price, price.output_price, serving[model])
        )
    return tuple(lines)


def stats(
    candidates: Sequence[Candidate],
    chips: Sequence[str],
    windows: Sequence[tuple[str, NetworkTotals]],
    rules: Rules,
) -> StatsView:
    """The network as it is now."""
    return StatsView(
        connected=len(candidates),
        routable=sum(trustworthy(candidate, rules) for candidate in candidates),
        busy=sum(bool(candidate.in_flight) for candidate in candidates),
        memory_gb=round(sum(candidate.memory_gb for candidate in candidates)),
        chips=_ranked(Counter(chip or "unknown" for chip in chips)),
        models=_ranked(served(candidates, rules)),
        windows=tuple((WINDOWS[name], totals) for name, totals in windows),
    )


def served(candidates: Sequence[Candidate], rules: Rules) -> Counter[str]:
    """How many providers serve each model."""
    return Counter(
        model
        for candidate in candidates
        if trustworthy(candidate, rules)
        for model in candidate.models
    )


def _ranked(counted: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counted.items(), key=lambda pair: (-pair[1], pair[0])))
