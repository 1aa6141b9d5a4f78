"""Who gets a request: the gate, the cost and the choice, as the network computes them."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.coordinator.routing.choice import (
    Demand,
    InFlight,
    Rules,
    choose,
    cost_ms,
    explain,
    max_concurrency,
    memory_needed_gb,
)
from darkbloom_provider.protocol.messages import (
    BackendCapacity,
    SystemMetrics,
)
from support.candidates import MODEL, NOW, candidate, capacity, jobs, without
from support.scripted_provider import PROMISES

SEED = 7
DEMAND = Demand(model=MODEL, prompt_tokens=0, max_output_tokens=8192, size_gb=28.0)


def dice() -> random.Random:
    return random.Random(SEED)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"models": frozenset[str]()}, "does not serve this model"),
        ({"status": "untrusted"}, "untrusted since a failed check"),
        ({"runtime_verified": False}, "its runtime is not on the operator's list"),
        ({"public_key": ""}, "registered no usable encryption key"),
        ({"backend": "vllm"}, "back end 'vllm' is not inprocess-mlx"),
        ({"encrypted_chunks": False}, "does not encrypt its answers"),
        ({"sip_verified": False}, "system integrity protection is not confirmed"),
        ({"privacy": None}, "states no privacy capabilities"),
        ({"privacy": without("env_scrubbed")}, "privacy capability env_scrubbed is off"),
        ({"verified_at": None}, "has not passed a challenge"),
        ({"verified_at": NOW - 361}, "last passed a challenge 361 s ago"),
        ({"in_flight": jobs(4, "other")}, "is busy with 4 requests"),
        ({"capacity": capacity(64, state="reloading")}, "its engine is reloading"),
        ({"capacity": capacity(64, state="crashed")}, "its engine is crashed"),
        ({"metrics": SystemMetrics(thermal_state="critical")}, "is too hot"),
        ({"memory_gb": 31}, "needs 31.1 GB and has 31.0 GB free"),
        ({"session_id": "tried"}, "has already failed this request"),
    ],
)
def test_each_gate_closes_alone_and_says_why(changes: dict[str, object], reason: str) -> None:
    demand = replace(DEMAND, tried=frozenset({"tried"}))
    assert explain(candidate(), demand, Rules(), NOW) == []
    assert reason in explain(candidate(**changes), demand, Rules(), NOW)


def test_sip_and_hypervisor_flags_of_the_registration_do_not_matter() -> None:
    privacy = PROMISES.model_copy(update={"sip_enabled": False, "hypervisor_active": True})
    assert explain(candidate(privacy=privacy), DEMAND, Rules(), NOW) == []


def test_the_operators_trust_floor_holds() -> None:
    reasons = explain(candidate(), DEMAND, Rules(min_trust="self_signed"), NOW)
    assert reasons == ["trust level none is below self_signed"]
    floor = Rules(min_trust="self_signed")
    assert explain(candidate(trust="hardware"), DEMAND, floor, NOW) == []


def test_a_pinned_request_goes_to_no_other_machine() -> None:
    demand = replace(DEMAND, serials=frozenset({"S1"}))
    assert explain(candidate(serial="S1"), demand, Rules(), NOW) == []
    assert explain(candidate(), demand, Rules(), NOW) == ["is not one of the machines asked for"]


@pytest.mark.parametrize(
    ("total", "slots"), [(24, 2), (24.1, 4), (48, 4), (96, 6), (128, 8), (128.5, 12), (1024, 12)]
)
def test_concurrency_follows_the_memory(total: float, slots: int) -> None:
    assert max_concurrency(candidate(capacity=capacity(total))) == slots


def test_a_provider_that_reports_no_capacity_gets_four_at_once() -> None:
    assert max_concurrency(candidate(memory_gb=512)) == 4


def test_capacity_without_a_total_falls_back_to_the_machine() -> None:
    assert max_concurrency(candidate(capacity=capacity(0), memory_gb=128)) == 8


def test_an_operator_may_know_better_how_much_a_provider_can_do() -> None:
    busy = candidate(capacity=capacity(24), in_flight=jobs(2))
    assert explain(busy, DEMAND, Rules(), NOW)[0] == "is busy with 2 requests"
    assert "is busy" not in str(explain(busy, DEMAND, Rules(max_requests=3), NOW))
    full = candidate(capacity=capacity(512), in_flight=jobs(3))
    assert explain(full, DEMAND, Rules(max_requests=3), NOW) == ["is busy with 3 requests"]


# The three cases that were seen live at the existing network's coordinator.
@pytest.mark.parametrize(
    ("facts", "eligible"),
    [
        (capacity(48, 46, state="running"), False),
        (capacity(48, 44.5, state="running"), True),
        # Loaded, but not listed: the weights count twice.
        (capacity(48, 30), False),
    ],
)
def test_the_memory_gate_decides_as_the_network_does(
    *, facts: BackendCapacity, eligible: bool
) -> None:
    reasons = explain(candidate(capacity=facts), DEMAND, Rules(), NOW)
    assert (reasons == []) is eligible


def test_an_unbounded_request_needs_three_gigabytes_of_cache() -> None:
    loaded = candidate(capacity=capacity(64, 28, state="running"))
    assert memory_needed_gb(loaded, DEMAND) == pytest.approx(3.0518, abs=1e-4)


def test_a_model_without_a_known_size_skips_the_memory_gate() -> None:
    assert explain(candidate(memory_gb=1), replace(DEMAND, size_gb=0), Rules(), NOW) == []


def test_the_cost_of_an_idle_unknown_provider() -> None:
    # decode = sqrt(400) = 20 tokens/s, prefill = 80; +2500 ms for the unknown slot.
    demand = Demand(model=MODEL, prompt_tokens=160, max_output_tokens=200)
    assert cost_ms(candidate(), demand) == pytest.approx(2_500 + 2_000 + 10_000)


def test_the_cost_of_a_busy_provider_counts_queue_backlog_and_load() -> None:
    busy = candidate(
        decode_tps=100,
        prefill_tps=1_000,
        capacity=capacity(
            64, 32, state="running", num_running=1, num_waiting=1, max_tokens_potential=50
        ),
        in_flight=(InFlight(MODEL, 300), InFlight("other", 10)),
        metrics=SystemMetrics(memory_pressure=0.5, cpu_usage=0.2, thermal_state="fair"),
    )
    demand = Demand(model=MODEL, prompt_tokens=100, max_output_tokens=200)
    effective = 100 / 1.27
    backlog = 50 + 200 + (300 - 50 - 200)
    expected = (
        3_000 * 2
        + 750 * 2
        + 1_000 * backlog / effective
        + 100
        + 1_000 * 200 / effective
        + 2_000
        + 300
        + 2_000
        + 2_500
    )
    assert cost_ms(busy, demand) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("state", "penalty"),
    [("running", 0), ("", 0), ("idle_shutdown", 20_000), ("warming", 2_500)],
)
def test_slot_states_cost_what_the_network_says(state: str, penalty: int) -> None:
    demand = Demand(model=MODEL, prompt_tokens=0, max_output_tokens=1)
    running = cost_ms(candidate(capacity=capacity(64, state="running")), demand)
    assert cost_ms(candidate(capacity=capacity(64, state=state)), demand) - running == penalty


def test_among_near_ties_the_shortest_queue_wins_then_the_least_loaded() -> None:
    # A provider that is 2.9 s dearer counts as equal; its queue is shorter.
    near = candidate(session_id="near", capacity=capacity(1000, state="other"), decode_tps=500)
    first = candidate(
        session_id="first",
        capacity=capacity(1000, state="running"),
        decode_tps=500,
        in_flight=jobs(1, "other"),
    )
    demand = Demand(model=MODEL, prompt_tokens=0, max_output_tokens=1)
    assert cost_ms(first, demand) < cost_ms(near, demand)
    chosen = choose([first, near], demand, Rules(), now=NOW, chance=dice())
    assert chosen is near


def test_equal_machines_share_the_work() -> None:
    twins = [candidate(session_id=name) for name in "ab"]
    chance = dice()
    chosen = [choose(twins, DEMAND, Rules(), now=NOW, chance=chance) for _ in range(50)]
    assert {c.session_id for c in chosen if c is not None} == {"a", "b"}


def test_a_much_faster_machine_always_wins() -> None:
    slow, fast = candidate(session_id="slow"), candidate(session_id="fast", decode_tps=500)
    chance = dice()
    assert all(
        choose([slow, fast], DEMAND, Rules(), now=NOW, chance=chance) is fast for _ in range(20)
    )


def test_nobody_is_chosen_when_nobody_may() -> None:
    refused = [candidate(status="untrusted")]
    assert choose(refused, DEMAND, Rules(), now=NOW, chance=dice()) is None
    assert choose([], DEMAND, Rules(), now=NOW, chance=dice()) is None


@given(
    running=st.integers(-5, 10**9),
    waiting=st.integers(-5, 10**6),
    potential=st.integers(0, 10**6),
    total=st.floats(0, 1024),
    active=st.floats(0, 1024),
    bandwidth=st.floats(0, 2000),
)
def test_no_report_of_a_provider_makes_its_cost_absurd(
    *, running: int, waiting: int, potential: int, total: float, active: float, bandwidth: float
) -> None:
    reported = capacity(
        total,
        active,
        state="running",
        num_running=running,
        num_waiting=waiting,
        max_tokens_potential=potential,
    )
    cost = cost_ms(candidate(capacity=reported, bandwidth_gbs=bandwidth), DEMAND)
    assert math.isfinite(cost)
    assert cost >= 0
