"""The machines of an account: what each is and does, what it earned, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from darkbloom_provider.coordinator import routing
from darkbloom_provider.coordinator.device_login import LinkedDevice
from darkbloom_provider.coordinator.earnings_views import Sum
from darkbloom_provider.coordinator.owner_views import MachineEarnings
from darkbloom_provider.coordinator.routing import Candidate, Demand, Rules
from darkbloom_provider.coordinator.settings import TRUST_RANK

Severity = Literal["blocking", "degrading", "info"]
Tone = Literal["good", "wait", "bad"]

SUCCESS_WANTED: Final = 0.8
JOBS_TO_JUDGE: Final = 10
HIGH_PRESSURE: Final = 0.9


@dataclass(frozen=True, slots=True)
class Concern:
    """Something that costs this machine work, and what to do about it."""

    severity: Severity
    what: str
    todo: str
    """What is to be typed stands between backquotes."""


@dataclass(frozen=True, slots=True)
class Connected:
    """A machine that is connected now, as it was at one instant."""

    candidate: Candidate
    machine_id: str | None
    token_id: str | None
    """Which linked device it showed the token of."""
    chip: str
    model: str
    gpu_cores: int
    version: str
    attested: bool
    challenge_failures: int
    heartbeat_age: float
    """Seconds."""
    active_model: str | None
    requests: int
    """Since its process started, by its own count."""
    tokens: int
    jobs_completed: int
    """Of this connection, by ours."""
    jobs_failed: int

    @property
    def name(self) -> str:
        """What to call it."""
        return self.chip or self.model or "Machine"


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


def warnings(
    machine: Connected, *, rules: Rules, listed: frozenset[str], now: float
) -> tuple[Concern, ...]:
    """What costs a connected machine work, the worst first.

    Source: the conditions of the network's dashboard, as far as this coordinator knows them.
    """
    candidate = machine.candidate
    found = [
        *_trust(machine, rules, now),
        *_health(candidate),
        *_models(candidate, listed),
        *_record(machine),
    ]
    order: dict[Severity, int] = {"blocking": 0, "degrading": 1, "info": 2}
    return tuple(sorted(found, key=lambda warning: order[warning.severity]))


def _trust(machine: Connected, rules: Rules, now: float) -> list[Concern]:
    candidate, found = machine.candidate, []
    if candidate.status == "untrusted":
        found.append(
            Concern(
                "blocking",
                f"It is not trusted: {machine.challenge_failures} checks failed in a row",
                "On it, type: `darkbloom doctor`",
            )
        )
    if not candidate.runtime_verified:
        found.append(
            Concern(
                "blocking",
                "Its program is not on the operator's list",
                "Install the version that the operator names, then type: `darkbloom restart`",
            )
        )
    if TRUST_RANK[candidate.trust] < TRUST_RANK[rules.min_trust]:
        found.append(
            Concern(
                "blocking",
                f"Its trust level is {candidate.trust}, and {rules.min_trust} is asked for here",
                "On it, type: `darkbloom doctor`",
            )
        )
    if candidate.verified_at is None:
        found.append(
            Concern(
                "info",
                "It has not passed a check yet",
                "Wait: the first one comes right after it connects",
            )
        )
    elif now - candidate.verified_at > rules.fresh_seconds:
        minutes = round((now - candidate.verified_at) / 60)
        found.append(
            Concern(
                "blocking",
                f"Its last passed check was {minutes} minutes ago",
                "On it, type: `darkbloom doctor`. If that finds nothing, type: `darkbloom restart`",
            )
        )
    return found


def _health(candidate: Candidate) -> list[Concern]:
    found = []
    thermal = candidate.metrics.thermal_state
    if thermal == "critical":
        found.append(Concern("blocking", "It is too hot to work", "Let it cool, and give it air"))
    elif thermal in {"serious", "fair"}:
        found.append(
            Concern("degrading", f"It is warm ({thermal}), so others are preferred", "Give it air")
        )
    if candidate.metrics.memory_pressure > HIGH_PRESSURE:
        found.append(
            Concern(
                "degrading",
                "Its memory is nearly full",
                "Close other programs, or set `memory_reserve_gb` higher in its configuration",
            )
        )
    slots = candidate.capacity.slots if candidate.capacity else ()
    for slot in slots:
        if slot.state == "crashed":
            found.append(
                Concern(
                    "degrading",
                    f"The engine of {slot.model} has crashed",
                    "On it, type: `darkbloom logs`, then: `darkbloom restart`",
                )
            )
        elif slot.state == "idle_shutdown":
            found.append(
                Concern(
                    "degrading",
                    f"{slot.model} was unloaded because nobody asked for it",
                    "To keep it loaded, start with: `darkbloom serve --idle-timeout 0`",
                )
            )
    return found


def _models(candidate: Candidate, listed: frozenset[str]) -> list[Concern]:
    if not candidate.models:
        return [
            Concern(
                "blocking",
                "It serves no model",
                "On it, type: `darkbloom models recommend`",
            )
        ]
    if not candidate.models & listed:
        return [
            Concern(
                "degrading",
                "It serves no model of this network's catalogue",
                "On it, type: `darkbloom models catalog`",
            )
        ]
    return []


def _record(machine: Connected) -> list[Concern]:
    jobs = machine.jobs_completed + machine.jobs_failed
    if jobs >= JOBS_TO_JUDGE and machine.jobs_completed / jobs < SUCCESS_WANTED:
        return [
            Concern(
                "degrading",
                f"{machine.jobs_failed} of its last {jobs} jobs failed",
                "On it, type: `darkbloom logs --last 1h`",
            )
        ]
    return []


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
