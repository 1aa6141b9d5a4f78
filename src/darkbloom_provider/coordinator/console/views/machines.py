"""The machines of an account: what each is and does, what it earned, and how to link another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from darkbloom_provider.coordinator import routing
from darkbloom_provider.coordinator.console.views.concerns import Concern, Connected, warnings
from darkbloom_provider.coordinator.device_login import LinkedDevice
from darkbloom_provider.coordinator.earnings_views import Sum
from darkbloom_provider.coordinator.owner_views import MachineEarnings
from darkbloom_provider.coordinator.routing import Demand, Rules

Tone = Literal["good", "wait", "bad"]


@dataclass(frozen=True, slots=True)
class MachineCard:
    """One machine on the page."""

    name: str
    status: str
    tone: Tone
    connected: Connected | None
    device: LinkedDevice | None
    earned: Sum
    warnings: tuple[Concern, ...]
    not_routed: tuple[tuple[str, tuple[str, ...]], ...]
    """By model: why a request for it would not be sent here."""


@dataclass(frozen=True, slots=True)
class PastMachine:
    """A machine that earned, and is not connected now."""

    name: str
    earned: Sum
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True)
class MachinesView:
    """The page."""

    cards: tuple[MachineCard, ...]
    past: tuple[PastMachine, ...]
    online: int
    attention: int


def view(
    connected: Sequence[Connected],
    devices: Sequence[LinkedDevice],
    earned: Sequence[MachineEarnings],
    *,
    rules: Rules,
    sizes: Mapping[str, float],
    now: float,
) -> MachinesView:
    """The page of an account.

    Args:
        connected: Its machines that are connected now.
        devices: Its linked devices, whether connected or not.
        earned: What each machine earned.
        rules: The operator's.
        sizes: GB of each model of the catalogue.
        now: Of the coordinator's monotonic clock.
    """
    sums = {row.machine_id: row for row in earned if row.machine_id is not None}
    by_id = {device.id: device for device in devices}
    cards = [
        _card(
            machine,
            by_id.get(machine.token_id or ""),
            sums.get(machine.machine_id or ""),
            rules=rules,
            sizes=sizes,
            now=now,
        )
        for machine in connected
    ]
    here = {machine.token_id for machine in connected}
    cards += [_offline(device) for device in devices if device.id not in here]
    present = {machine.machine_id for machine in connected}
    past = [
        PastMachine(
            f"Machine {row.machine_id[:6]}" if row.machine_id else "Unnamed machines",
            row.earned,
            row.first_at,
            row.last_at,
        )
        for row in earned
        if row.machine_id not in present
    ]
    return MachinesView(
        cards=tuple(cards),
        past=tuple(past),
        online=len(connected),
        attention=sum(
            any(warning.severity != "info" for warning in card.warnings) for card in cards
        ),
    )


def _card(
    machine: Connected,
    device: LinkedDevice | None,
    earned: MachineEarnings | None,
    *,
    rules: Rules,
    sizes: Mapping[str, float],
    now: float,
) -> MachineCard:
    found = warnings(machine, rules=rules, listed=frozenset(sizes), now=now)
    status, tone = _status(machine.candidate.status)
    if any(warning.severity == "blocking" for warning in found):
        tone = "bad"
    reasons = [
        (model, routing.explain(machine.candidate, _demand(model, sizes), rules, now))
        for model in sorted(machine.candidate.models)
    ]
    return MachineCard(
        name=machine.name,
        status=status,
        tone=tone,
        connected=machine,
        device=device,
        earned=earned.earned if earned else Sum(0, 0),
        warnings=found,
        not_routed=tuple((model, tuple(why)) for model, why in reasons if why),
    )


def _offline(device: LinkedDevice) -> MachineCard:
    warning = Concern(
        "blocking",
        "This machine is not connected",
        "On it, type: `darkbloom status`. If it does not run, type: `darkbloom start`",
    )
    return MachineCard(
        name=device.label,
        status="Offline",
        tone="bad",
        connected=None,
        device=device,
        earned=Sum(0, 0),
        warnings=(warning,),
        not_routed=(),
    )


def _status(status: routing.Status) -> tuple[str, Tone]:
    return status.capitalize(), "bad" if status == "untrusted" else "good"


def _demand(model: str, sizes: Mapping[str, float]) -> Demand:
    return Demand(model, prompt_tokens=0, max_output_tokens=0, size_gb=sizes.get(model, 0.0))


@dataclass(frozen=True, slots=True)
class PendingLink:
    """All that is known of a machine that waits to be linked."""

    age_minutes: int
    minutes_left: int


def pending(document: Mapping[str, str], now: datetime) -> PendingLink:
    """A waiting machine, from the reply of `/v1/device/pending`."""
    created = datetime.fromisoformat(document["created_at"])
    expires = datetime.fromisoformat(document["expires_at"])
    return PendingLink(
        age_minutes=max(int((now - created).total_seconds() // 60), 0),
        minutes_left=max(int((expires - now).total_seconds() // 60), 0),
    )
