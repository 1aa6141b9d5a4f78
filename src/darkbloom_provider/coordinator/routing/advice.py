"""What can be done about each bar of the routing gate, and what a provider is told. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from darkbloom_provider.coordinator.routing.candidates import Candidate, Demand, Rules
from darkbloom_provider.coordinator.routing.gates import (
    Code,
    Reason,
    machine_reasons,
    model_reasons,
)
from darkbloom_provider.protocol.messages import RoutingReason, RoutingStatus

_DOCTOR: Final = "type `darkbloom doctor`, it says what is wrong"
_UPDATE: Final = "update darkbloom, then type `darkbloom stop` and `darkbloom start`"

TODO: Final[Mapping[Code, str]] = {
    "untrusted": _DOCTOR,
    "low_trust": "ask the coordinator's operator: this machine can prove no more than it does",
    "runtime": "update darkbloom, or ask the coordinator's operator to list its hashes",
    "version": _UPDATE,
    "challenge": _DOCTOR,
    "stale_challenge": "type `darkbloom stop` and `darkbloom start`, and look again in a minute",
    "key": _UPDATE,
    "backend": _UPDATE,
    "plain_chunks": _UPDATE,
    "sip": _DOCTOR,
    "privacy": _DOCTOR,
    "heat": "let the machine cool, and give it air",
    "model": "serve a model of this network's catalogue; `darkbloom models list` shows yours",
    "engine": "wait: it is loaded again by itself; `darkbloom status` shows how far it is",
    "memory": "close other programs, or serve a smaller model: `darkbloom serve --model ID`",
    "tried": "nothing: another provider is tried",
    "pinned": "nothing: the consumer asks for other machines",
    "busy": "nothing: it gets work again when a request ends",
}
"""By reason. On the provider's own machine, where it says what to type."""

_CONSEQUENCES: Final[Mapping[Code, frozenset[Code]]] = {
    # With a wrong runtime no challenge counts, and only one that counts confirms the rest.
    "runtime": frozenset({"challenge", "stale_challenge", "sip", "untrusted"}),
    "challenge": frozenset({"sip", "untrusted"}),
    "stale_challenge": frozenset({"sip"}),
}
"""Told only once: what follows from another reason."""
_FIGURES: Final = frozenset({"stale_challenge", "memory"})
"""Codes of the reasons whose texts change with every heartbeat."""
_SHOWN_MODELS: Final = 32


def told_reasons(candidate: Candidate, rules: Rules, now: float) -> list[Reason]:
    """What keeps a machine from every request, without what only follows from something else."""
    found = list(machine_reasons(candidate, rules, now))
    for cause, consequences in _CONSEQUENCES.items():
        if any(reason.code == cause for reason in found):
            found = [reason for reason in found if reason.code not in consequences]
    return found


def routing_status(
    candidate: Candidate, *, rules: Rules, sizes: Mapping[str, float], now: float
) -> RoutingStatus:
    """Why a provider gets no work, or none for some of its models. What passes is not told.

    Args:
        candidate: The provider.
        rules: The operator's.
        sizes: GB of each model of the catalogue.
        now: Of the coordinator's monotonic clock.
    """
    found = told_reasons(candidate, rules, now)
    told = [RoutingReason(code=r.code, what=r.text, next_step=TODO[r.code]) for r in found]
    barred = 0
    for model in sorted(candidate.models)[:_SHOWN_MODELS]:
        demand = Demand(model, prompt_tokens=0, max_output_tokens=0, size_gb=sizes.get(model, 0.0))
        why = list(model_reasons(candidate, demand))
        barred += bool(why)
        told += [
            RoutingReason(code=r.code, what=r.text, next_step=TODO[r.code], model=model)
            for r in why
        ]
    if not candidate.models:
        what = "none of its models is in this network's catalogue"
        told.append(RoutingReason(code="model", what=what, next_step=TODO["model"]))
    routable = not found and barred < len(candidate.models)
    return RoutingStatus(routable=routable, reasons=tuple(told))


def same_reasons(one: RoutingStatus, other: RoutingStatus) -> bool:
    """Whether two say the same, however figures in their texts have moved."""
    return _gist(one) == _gist(other)


def _gist(status: RoutingStatus) -> tuple[object, ...]:
    reasons = ((r.code, r.model, None if r.code in _FIGURES else r.what) for r in status.reasons)
    return (status.routable, *reasons)
