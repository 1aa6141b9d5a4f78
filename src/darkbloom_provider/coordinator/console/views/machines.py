"""The machines of an account: what each is and does, what it earned, and how to link another."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from darkbloom_provider.coordinator.accounts.device_login import ID_CHARACTERS, LinkedDevice
from darkbloom_provider.coordinator.console.views.concerns import (
    Concern,
    Connected,
    Standards,
    warnings,
)
from darkbloom_provider.coordinator.console.views.earn import Figures
from darkbloom_provider.coordinator.earnings.owner_views import MachineEarnings
from darkbloom_provider.coordinator.earnings.views import Sum
from darkbloom_provider.coordinator.routing import choice
from darkbloom_provider.coordinator.routing.choice import Demand

Tone = Literal["good", "wait", "bad"]

_SHORT: Final = 6
"""Characters of an identity."""


@dataclass(frozen=True, slots=True)
class MachineCard:
    """One machine: connected, linked, or one that earned once."""

    address: str
    """What stands for it in the address of its page; empty if it has none."""
    name: str
    status: str
    tone: Tone
    machine_id: str | None
    connected: Connected | None
    device: LinkedDevice | None
    earned: Sum
    first_at: datetime | None
    last_at: datetime | None
    """Of its first and last job."""
    warnings: tuple[Concern, ...]
    not_routed: tuple[tuple[str, tuple[str, ...]], ...]
    """By model: why a request for it would not be sent here."""

    @property
    def models(self) -> tuple[str, ...]:
        """What it serves: the active model first, then by name."""
        if self.connected is None:
            return ()
        active = self.connected.active_model
        return tuple(
            sorted(self.connected.candidate.models, key=lambda model: (model != active, model))
        )


@dataclass(frozen=True, slots=True)
class MachinesView:
    """The page."""

    figures: Figures
    cards: tuple[MachineCard, ...]
    """Connected or linked; those that need attention first."""
    past: tuple[MachineCard, ...]
    """Earned, and not connected now."""
    online: int
    attention: int

    def find(self, address: str) -> MachineCard | None:
        """The machine of this address, if it is one of this account's."""
        everyone = (*self.cards, *self.past)
        return next((card for card in everyone if card.address and card.address == address), None)


def view(
    connected: Sequence[Connected],
    devices: Sequence[LinkedDevice],
    earned: Sequence[MachineEarnings],
    *,
    figures: Figures,
    standards: Standards,
    now: float,
) -> MachinesView:
    """The page of an account.

    Args:
        connected: Its machines that are connected now.
        devices: Its linked devices, whether connected or not.
        earned: What each machine earned.
        figures: The account's own.
        standards: What machines are measured by.
        now: Of the coordinator's monotonic clock.
    """
    sums = {row.machine_id: row for row in earned if row.machine_id is not None}
    by_id = {device.id: device for device in devices}
    called = names([(m.machine_id, m.name) for m in connected if m.machine_id])
    cards = [
        _card(
            machine,
            called.get(machine.machine_id or "", machine.name),
            by_id.get(machine.token_id or ""),
            sums.get(machine.machine_id or ""),
            standards=standards,
            now=now,
        )
        for machine in connected
    ]
    here = {machine.token_id for machine in connected}
    cards += [_offline(device) for device in devices if device.id not in here]
    tones: dict[Tone, int] = {"bad": 0, "wait": 1, "good": 2}
    present = {machine.machine_id for machine in connected}
    return MachinesView(
        figures=figures,
        cards=tuple(sorted(cards, key=lambda card: (tones[card.tone], card.name, card.address))),
        past=tuple(_past(row) for row in earned if row.machine_id not in present),
        online=len(connected),
        attention=sum(card.tone != "good" for card in cards),
    )


def names(machines: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What to call each of several machines, by identity: its name, and more if others share it.

    Args:
        machines: Identity and name of each.
    """
    shared = Counter(name for _, name in machines)
    return {
        known: name if shared[name] == 1 else f"{name} ({short(known)})" for known, name in machines
    }


def short(machine_id: str) -> str:
    """The beginning of a machine's identity, by which people tell it from others."""
    return machine_id[:_SHORT]


def address(machine_id: str) -> str:
    """What stands for a machine in an address: its identity may be a key, and is nobody's business.

    >>> address("00112233445566778899aabbccddeeff")
    '5947d7c33d783f94'
    """
    return hashlib.sha256(machine_id.encode()).hexdigest()[:ID_CHARACTERS]


def _card(
    machine: Connected,
    name: str,
    device: LinkedDevice | None,
    earned: MachineEarnings | None,
    *,
    standards: Standards,
    now: float,
) -> MachineCard:
    found = warnings(machine, standards, now)
    reasons = [
        (
            model,
            choice.explain(
                machine.candidate, _demand(model, standards.sizes), standards.rules, now
            ),
        )
        for model in sorted(machine.candidate.models)
    ]
    return MachineCard(
        address=address(machine.machine_id) if machine.machine_id else machine.token_id or "",
        name=name,
        status=machine.candidate.status.capitalize(),
        tone=_tone(found),
        machine_id=machine.machine_id,
        connected=machine,
        device=device,
        earned=earned.earned if earned else Sum(0, 0),
        first_at=earned.first_at if earned else None,
        last_at=earned.last_at if earned else None,
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
        address=device.id,
        name=device.label,
        status="Offline",
        tone="bad",
        machine_id=None,
        connected=None,
        device=device,
        earned=Sum(0, 0),
        first_at=None,
        last_at=None,
        warnings=(warning,),
        not_routed=(),
    )


def _past(row: MachineEarnings) -> MachineCard:
    known = row.machine_id
    return MachineCard(
        address=address(known) if known else "",
        name=f"Machine {short(known)}" if known else "Unnamed machines",
        status="Not connected",
        tone="wait",
        machine_id=known,
        connected=None,
        device=None,
        earned=row.earned,
        first_at=row.first_at,
        last_at=row.last_at,
        warnings=(),
        not_routed=(),
    )


def _tone(found: Sequence[Concern]) -> Tone:
    severities = {concern.severity for concern in found}
    if "blocking" in severities:
        return "bad"
    return "wait" if "degrading" in severities else "good"


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
