"""A provider is told why it gets no work, and what to do about it."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from darkbloom_provider.coordinator.routing.advice import TODO, routing_status, same_reasons
from darkbloom_provider.coordinator.routing.choice import Candidate, Demand, Rules
from darkbloom_provider.coordinator.routing.gates import Code, explain
from darkbloom_provider.protocol.messages import RoutingStatus, SystemMetrics
from support.candidates import MODEL, NOW, candidate, capacity, jobs, without

SIZES = {MODEL: 28.0, "other": 1.0}


def told(subject: Candidate, rules: Rules | None = None, now: float = NOW) -> RoutingStatus:
    return routing_status(subject, rules=rules or Rules(), sizes=SIZES, now=now)


def codes(status: RoutingStatus) -> list[tuple[str, str | None]]:
    return [(reason.code, reason.model) for reason in status.reasons]


def test_there_is_something_to_do_about_every_bar() -> None:
    assert set(TODO) == set(get_args(Code))


def test_a_provider_that_can_get_work_is_told_nothing() -> None:
    assert told(candidate()) == RoutingStatus(routable=True)
    assert told(candidate(in_flight=jobs(4))) == RoutingStatus(routable=True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"status": "untrusted"}, [("untrusted", None)]),
        ({"runtime_verified": False, "verified_at": None}, [("runtime", None)]),
        ({"outdated": True}, [("version", None)]),
        ({"verified_at": None, "sip_verified": False}, [("challenge", None)]),
        ({"verified_at": NOW - 361}, [("stale_challenge", None)]),
        ({"public_key": ""}, [("key", None)]),
        ({"backend": "vllm"}, [("backend", None)]),
        ({"encrypted_chunks": False}, [("plain_chunks", None)]),
        ({"privacy": without("env_scrubbed")}, [("privacy", None)]),
        ({"metrics": SystemMetrics(thermal_state="critical")}, [("heat", None)]),
        ({"models": frozenset[str]()}, [("model", None)]),
        ({"memory_gb": 20}, [("memory", MODEL)]),
        ({"capacity": capacity(64, state="crashed")}, [("engine", MODEL)]),
    ],
)
def test_every_lasting_bar_is_told_with_what_to_do(
    changes: dict[str, Any], expected: list[tuple[str, str | None]]
) -> None:
    subject = candidate(**changes)
    status = told(subject)
    assert not status.routable
    assert codes(status) == expected
    assert all(reason.what and reason.next_step for reason in status.reasons)
    demand = Demand(MODEL, prompt_tokens=0, max_output_tokens=0, size_gb=28.0)
    assert explain(subject, demand, Rules(), NOW) != []


def test_trust_below_the_operators_floor_is_told() -> None:
    assert codes(told(candidate(), Rules(min_trust="hardware"))) == [("low_trust", None)]


def test_why_a_challenge_failed_is_told() -> None:
    failed = candidate(verified_at=None, challenge_problem="the signature is wrong")
    [reason] = told(failed).reasons
    assert reason.what == "failed its last challenge: the signature is wrong"


def test_one_model_that_cannot_be_served_does_not_hide_that_others_can() -> None:
    both = candidate(models=frozenset({MODEL, "other"}), memory_gb=20)
    status = told(both)
    assert status.routable
    assert codes(status) == [("memory", MODEL)]


def test_figures_that_move_are_no_news() -> None:
    stale = candidate(verified_at=NOW - 361)
    assert same_reasons(told(stale), told(stale, now=NOW + 60))
    assert not same_reasons(told(stale), told(candidate()))
    one = candidate(verified_at=None, challenge_problem="the answer is not signed")
    other = candidate(verified_at=None, challenge_problem="the signature is wrong")
    assert not same_reasons(told(one), told(other))
