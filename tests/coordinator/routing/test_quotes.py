"""What providers ask for a model is taken apart in advance, and decides as gate and cost do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darkbloom_provider.coordinator.providers.registry import Registry, Session
from darkbloom_provider.coordinator.routing.candidates import Candidate, Demand, Rules, queue_depth
from darkbloom_provider.coordinator.routing.costs import cost_ms
from darkbloom_provider.coordinator.routing.gates import may_serve
from darkbloom_provider.coordinator.routing.quotes import NEAR_TIE_MS, quote, shortlist
from darkbloom_provider.protocol.boxes import KeyPair
from darkbloom_provider.protocol.messages import Heartbeat, SystemMetrics
from support.candidates import MODEL, NOW, candidate, capacity, jobs

RULES = Rules()

CANDIDATES = st.builds(
    candidate,
    memory_gb=st.sampled_from([0, 16, 64, 512]),
    bandwidth_gbs=st.sampled_from([0.0, 100.0, 546.0]),
    decode_tps=st.sampled_from([0.0, 3.0, 80.0]),
    status=st.sampled_from(["online", "serving", "untrusted"]),
    verified_at=st.sampled_from([None, NOW, NOW - 300, NOW - 361]),
    in_flight=st.integers(0, 5).map(lambda count: jobs(count, MODEL)),
    serial=st.sampled_from([None, "C02"]),
    metrics=st.builds(
        SystemMetrics,
        memory_pressure=st.sampled_from([0.0, 0.5]),
        thermal_state=st.sampled_from(["nominal", "serious", "critical"]),
    ),
    capacity=st.one_of(
        st.none(),
        st.builds(
            lambda total, active, state, running, waiting, potential: capacity(
                total,
                active,
                state=state,
                num_running=running,
                num_waiting=waiting,
                max_tokens_potential=potential,
            ),
            st.sampled_from([0, 24, 128]),
            st.sampled_from([0, 10]),
            st.sampled_from(["running", "idle_shutdown", "crashed", ""]),
            st.integers(-1, 4),
            st.integers(-1, 2),
            st.sampled_from([0, 100, 30_000]),
        ),
    ),
)
DEMANDS = st.builds(
    Demand,
    model=st.sampled_from([MODEL, "other"]),
    prompt_tokens=st.sampled_from([0, 100, 50_000]),
    max_output_tokens=st.sampled_from([0, 64, 8192]),
    size_gb=st.sampled_from([0.0, 12.0, 28.0]),
    serials=st.sampled_from([frozenset[str](), frozenset({"C02"})]),
    tried=st.sampled_from([frozenset[str](), frozenset({"session-0", "session-1"})]),
)


def plainly(candidates: list[Candidate], demand: Demand) -> list[Candidate]:
    """The choice as the network describes it, step by step."""
    able = [c for c in candidates if may_serve(c, demand, RULES, NOW)]
    if not able:
        return []
    limit = min(cost_ms(c, demand) for c in able) + NEAR_TIE_MS
    near = [c for c in able if cost_ms(c, demand) <= limit]
    lightest = min((queue_depth(c, demand.model), len(c.in_flight)) for c in near)
    return [c for c in near if (queue_depth(c, demand.model), len(c.in_flight)) == lightest]


@settings(max_examples=150)
@given(found=st.lists(CANDIDATES, max_size=6), demand=DEMANDS)
def test_quotes_choose_as_gate_and_cost_do(found: list[Candidate], demand: Demand) -> None:
    candidates = [replace(each, session_id=f"session-{n}") for n, each in enumerate(found)]
    quotes = [quote(each, demand.model, RULES) for each in candidates]
    chosen = shortlist([q for q in quotes if q is not None], demand, now=NOW)
    assert chosen == plainly(candidates, demand)


def session() -> Session:
    keys = KeyPair.generate()
    plain = candidate()
    return Session(
        id="session-1",
        wire=SimpleNamespace(),
        version="",
        backend=plain.backend,
        hardware=SimpleNamespace(memory_gb=64, memory_bandwidth_gbs=546.0),  # type: ignore[arg-type]
        models=(SimpleNamespace(id=MODEL),),  # type: ignore[arg-type]
        public_key=keys.public_text,
        encrypted_chunks=True,
        privacy=plain.privacy,
        decode_tps=0.0,
        prefill_tps=0.0,
        registered_at=datetime(2026, 5, 1, tzinfo=UTC),
        heartbeat_at=NOW,
        sip_verified=True,
        verified_at=NOW,
    )


def works(session: Session) -> None:
    load = jobs(1, MODEL)[0]
    session.attempts["job"] = SimpleNamespace(load=load)  # type: ignore[assignment]


def asked(registry: Registry) -> list[Any]:
    return [each.candidate for each in registry.quotes(MODEL)]


CHANGES: dict[str, Callable[[Session], object]] = {
    "a heartbeat": lambda s: s.hear(Heartbeat(status="serving"), NOW + 1),
    "a challenge": lambda s: setattr(s, "verified_at", NOW + 5),
    "distrust": lambda s: s.distrust(),
    "a request": works,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_registry_asks_for_follows_every_change(change: str) -> None:
    registry, one = Registry(RULES), session()
    registry.add(one)
    assert asked(registry) == [one.candidate()]
    CHANGES[change](one)
    now = one.candidate()
    assert asked(registry) == ([] if change == "distrust" else [now])


def test_a_request_that_ends_gives_its_place_back() -> None:
    registry, one = Registry(RULES), session()
    registry.add(one)
    works(one)
    assert asked(registry)[0].in_flight
    one.attempts.end("job")
    assert asked(registry) == [one.candidate()]
    assert not asked(registry)[0].in_flight


def test_who_has_gone_asks_for_nothing() -> None:
    registry, one = Registry(RULES), session()
    registry.add(one)
    one.distrust()
    registry.remove(one)
    one.status = "online"
    assert asked(registry) == []
