"""The session machine under any sequence of events, and under the recorded sessions."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.link import actions as do
from darkbloom_provider.link import events
from darkbloom_provider.link.session import Session
from darkbloom_provider.protocol.codec import MalformedFrameError, decode_from_coordinator
from darkbloom_provider.protocol.messages import (
    AttestationChallenge,
    Cancel,
    InferenceRequest,
    RoutingReason,
    RoutingStatus,
    RuntimeStatus,
)
from support.recordings import SESSIONS, recording

REQUEST_IDS = st.sampled_from(["a", "b", "c", "d"])
MESSAGES = st.one_of(
    st.builds(AttestationChallenge, nonce=st.text(max_size=3)),
    st.builds(InferenceRequest, request_id=REQUEST_IDS),
    st.builds(Cancel, request_id=REQUEST_IDS),
    st.builds(RuntimeStatus, verified=st.booleans()),
    st.builds(
        RoutingStatus,
        routable=st.booleans(),
        reasons=st.lists(st.builds(RoutingReason, what=st.sampled_from("ab"))).map(tuple),
    ),
)
EVENTS: st.SearchStrategy[events.Event] = st.one_of(
    st.builds(events.Connected),
    st.builds(events.FrameReceived, MESSAGES),
    st.just(events.FrameUndecodable(MalformedFrameError("not JSON"))),
    st.builds(events.HeartbeatSent),
    st.builds(events.JobEnded, REQUEST_IDS),
    st.just(events.Reregister("models changed")),
    st.builds(events.Drain, st.floats(-10, 1000)),
    st.builds(events.Closed),
    st.builds(events.Tick),
)
# Mostly small steps; also jumps that no timer survives, back and forth.
STEPS = st.one_of(st.floats(0, 20), st.floats(-90_000, 90_000), st.just(math.inf))


class Witness:
    """Watches what a session decides and objects to what must never be."""

    def __init__(self) -> None:
        self.session = Session()
        self.running: set[str] = set()
        self.started: set[str] = set()
        self.unanswered_register = False
        self.heartbeat_out = False
        self.over = False
        self.aborts = 0

    def tell(self, event: events.Event, now: float) -> None:
        was_over = self.over
        if isinstance(event, events.HeartbeatSent):
            self.heartbeat_out = False
        if isinstance(event, events.JobEnded):
            self.running.discard(event.request_id)
        actions = self.session.receive(event, now)
        assert not (was_over and actions), "it decided something after its end"
        for action in actions:
            self.judge(action)
        if isinstance(event, events.Closed):
            self.over = True
        assert self.session.jobs == self.running

    def judge(self, action: do.Action) -> None:
        match action:
            case do.SendRegister():
                assert not self.unanswered_register, "registered twice without an answer"
                assert not self.running, "registering orphans the jobs that run"
                self.unanswered_register = True
            case do.Accepted():
                assert self.unanswered_register
                self.unanswered_register = False
            case do.SendHeartbeat():
                assert not self.heartbeat_out, "a heartbeat queued behind another"
                self.heartbeat_out = True
            case do.StartJob(request):
                assert request.request_id not in self.started, "one request started twice"
                assert not self.session.draining
                self.started.add(request.request_id)
                self.running.add(request.request_id)
            case do.CancelJob(request_id):
                self.running.remove(request_id)
            case do.AbortJobs():
                assert self.running, "there was nothing to abort"
                self.running.clear()
                self.aborts += 1
                assert self.aborts == 1
            case do.CloseConnection() | do.Reconnect():
                assert not self.running
                assert not self.over
                self.over = True
            case _:
                pass


@given(st.lists(st.tuples(EVENTS, STEPS), max_size=60))
def test_any_sequence_of_events_keeps_the_promises(sequence: list[tuple[Any, float]]) -> None:
    witness = Witness()
    witness.tell(events.Connected(), 0.0)
    now = 0.0
    for event, step in sequence:
        now = now + step if math.isfinite(now + step) else 1e12
        witness.tell(event, now)


@given(st.lists(st.tuples(EVENTS, STEPS), max_size=30))
def test_a_challenge_is_answered_first_whatever_came_before(
    sequence: list[tuple[Any, float]],
) -> None:
    session = Session()
    open_now = bool(session.receive(events.Connected(), 0.0))
    for event, step in sequence:
        actions = session.receive(event, abs(step))
        ended = any(isinstance(a, do.CloseConnection | do.Reconnect) for a in actions)
        open_now = open_now and not ended and not isinstance(event, events.Closed)
    challenge = AttestationChallenge(nonce="the last")
    actions = session.receive(events.FrameReceived(challenge), 0.0)
    assert (actions[:1] == [do.Answer(challenge)]) is open_now


# ---------------------------------------------------------------- recorded sessions


def replay(name: str) -> tuple[list[dict[str, Any]], list[do.Action]]:
    """The recorded frames, and what our session decides when it lives through them."""
    lines = recording(name)
    session = Session()
    decided: list[do.Action] = []
    now = lines[0]["t"]

    def tell(event: events.Event) -> None:
        actions = session.receive(event, now)
        decided.extend(actions)
        if do.SendHeartbeat() in actions:
            tell(events.HeartbeatSent())

    for line in lines:
        while now + 1 < line["t"]:
            now += 1
            tell(events.Tick())
        now = line["t"]
        kind = (line.get("frame") or {}).get("type")
        if kind == "register":
            tell(events.Connected())
        elif line["dir"] == "recv":
            wire = line.get("wire")
            assert kind is not None
            message = decode_from_coordinator(wire) if wire is not None else _rebuilt(line)
            tell(events.FrameReceived(message))
        elif kind == "inference_complete":
            tell(events.JobEnded(line["frame"]["request_id"]))
    tell(events.Closed())
    return lines, decided


def _rebuilt(line: dict[str, Any]) -> Any:
    import json

    return decode_from_coordinator(json.dumps(line["frame"]))


@pytest.mark.parametrize("name", SESSIONS)
def test_a_recorded_session_is_lived_through_without_complaint(name: str) -> None:
    lines, decided = replay(name)
    received = [line["frame"] for line in lines if line["dir"] == "recv"]
    challenges = [f["nonce"] for f in received if f["type"] == "attestation_challenge"]
    requests = [f["request_id"] for f in received if f["type"] == "inference_request"]
    assert [a.challenge.nonce for a in decided if isinstance(a, do.Answer)] == challenges
    assert [a.request.request_id for a in decided if isinstance(a, do.StartJob)] == requests
    assert [type(a) for a in decided].count(do.SendRegister) == 1
    assert [type(a) for a in decided].count(do.Accepted) == 1
    oddities = (do.Report, do.ShowProblem, do.Reconnect, do.RefuseJob, do.AbortJobs)
    assert not [a for a in decided if isinstance(a, oddities)]


def test_only_the_recorded_consumer_who_left_cancels_a_job() -> None:
    cancelled = {
        name: sum(isinstance(a, do.CancelJob) for a in replay(name)[1]) for name in SESSIONS
    }
    assert {name for name, count in cancelled.items() if count} == {"ws-cancel-nothing"}
    assert cancelled["ws-cancel-nothing"] == 1


def test_the_recorded_five_minutes_hold_as_many_heartbeats_as_seconds_allow() -> None:
    lines, decided = replay("ws-periodic-challenge")
    seconds = lines[-1]["t"] - lines[0]["t"]
    beats = sum(isinstance(a, do.SendHeartbeat) for a in decided)
    assert seconds / 6 <= beats <= seconds / 5 + 1
