"""The session machine: what it decides, event by event."""

from __future__ import annotations

import pytest

from darkbloom_provider.link import actions as do
from darkbloom_provider.link import events
from darkbloom_provider.link.failure import ChallengesStopped, HeartbeatOverdue, NotAccepted
from darkbloom_provider.link.session import REMEMBERED_REQUESTS, Session
from darkbloom_provider.link.state import Problem
from darkbloom_provider.protocol.codec import MalformedFrameError, UnknownMessageError
from darkbloom_provider.protocol.messages import (
    AttestationChallenge,
    Cancel,
    CoordinatorMessage,
    InferenceRequest,
    RoutingReason,
    RoutingStatus,
    RuntimeMismatch,
    RuntimeStatus,
)

CHALLENGE = AttestationChallenge(nonce="nonce", timestamp="2026-01-02T03:04:05Z")
MISMATCH = RuntimeStatus(
    verified=False, mismatches=(RuntimeMismatch(component="runtime", expected="aa", got="bb"),)
)


class Driver:
    """A session with a hand on its clock. Heartbeats count as sent at once."""

    def __init__(self) -> None:
        self.session = Session()
        self.now = 100.0
        self.heartbeats_leave = True

    def tell(self, event: events.Event) -> list[do.Action]:
        actions = self.session.receive(event, self.now)
        if self.heartbeats_leave and do.SendHeartbeat() in actions:
            self.session.receive(events.HeartbeatSent(), self.now)
        return actions

    def hear(self, message: CoordinatorMessage) -> list[do.Action]:
        return self.tell(events.FrameReceived(message))

    def pass_time(self, seconds: float, step: float = 1.0) -> list[do.Action]:
        """Ticks until `seconds` have passed; everything that was decided in between."""
        actions: list[do.Action] = []
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + step, end)
            actions += self.tell(events.Tick())
        return actions

    def jump(self, seconds: float) -> list[do.Action]:
        """The clock is set, and the next tick comes."""
        self.now += seconds
        return self.tell(events.Tick())


@pytest.fixture
def driver() -> Driver:
    """A connected session."""
    driver = Driver()
    driver.tell(events.Connected())
    return driver


@pytest.fixture
def registered(driver: Driver) -> Driver:
    """A session that the coordinator has accepted."""
    driver.hear(CHALLENGE)
    return driver


def request(request_id: str) -> InferenceRequest:
    return InferenceRequest(request_id=request_id)


# ---------------------------------------------------------------- registering


def test_it_registers_first_and_beats_at_once() -> None:
    assert Session().receive(events.Connected(), 0.0) == [
        do.SendRegister("connected"),
        do.SendHeartbeat(),
    ]


def test_nothing_happens_before_the_connection() -> None:
    assert Session().receive(events.Tick(), 0.0) == []


def test_a_second_connected_changes_nothing(driver: Driver) -> None:
    assert driver.tell(events.Connected()) == []


def test_the_first_challenge_is_answered_and_means_accepted(driver: Driver) -> None:
    assert driver.hear(CHALLENGE) == [do.Answer(CHALLENGE), do.Accepted()]


def test_a_later_challenge_is_only_answered(registered: Driver) -> None:
    assert registered.hear(CHALLENGE) == [do.Answer(CHALLENGE)]


def test_without_a_challenge_in_15_seconds_it_reconnects(driver: Driver) -> None:
    assert do.Reconnect(NotAccepted(15.0)) not in driver.pass_time(14.5)
    assert driver.pass_time(0.5) == [do.Reconnect(NotAccepted(15.0))]


def test_changed_facts_register_again_on_the_same_socket(registered: Driver) -> None:
    assert registered.tell(events.Reregister("models changed"))[0] == do.SendRegister(
        "models changed"
    )
    assert do.Accepted() in registered.hear(CHALLENGE)


def test_registering_again_waits_for_the_answer_to_the_first(driver: Driver) -> None:
    assert driver.tell(events.Reregister("logged in")) == []
    assert do.SendRegister("logged in") in driver.hear(CHALLENGE)


def test_registering_again_waits_until_no_job_runs(registered: Driver) -> None:
    registered.hear(request("a"))
    assert registered.tell(events.Reregister("models changed")) == []
    assert do.SendRegister("models changed") in registered.tell(events.JobEnded("a"))


def test_jobs_run_dry_when_the_wish_to_register_again_grows_old(registered: Driver) -> None:
    registered.hear(request("a"))
    registered.tell(events.Reregister("models changed"))
    registered.pass_time(30)
    assert registered.hear(request("b")) == [do.StartJob(request("b"))]
    registered.pass_time(31)
    (refusal,) = registered.hear(request("c"))
    assert isinstance(refusal, do.RefuseJob)
    assert refusal.status_code == 503
    assert registered.tell(events.JobEnded("a")) == []
    assert registered.tell(events.JobEnded("b"))[0] == do.SendRegister("models changed")


# ---------------------------------------------------------------- staying


def test_it_beats_every_five_seconds(registered: Driver) -> None:
    assert registered.pass_time(60).count(do.SendHeartbeat()) == 12


def test_late_ticks_do_not_make_a_burst_of_heartbeats(registered: Driver) -> None:
    assert registered.pass_time(60, step=30).count(do.SendHeartbeat()) == 2


def test_a_heartbeat_that_waits_to_be_written_is_not_doubled(registered: Driver) -> None:
    registered.heartbeats_leave = False
    assert registered.pass_time(60).count(do.SendHeartbeat()) == 1


def test_80_seconds_without_a_heartbeat_sent_mean_reconnect(registered: Driver) -> None:
    registered.heartbeats_leave = False
    assert do.Reconnect(HeartbeatOverdue(81.0)) in registered.pass_time(81)


def test_sleep_is_noticed_at_the_first_tick_after_waking(registered: Driver) -> None:
    assert registered.pass_time(3600, step=3600) == [do.Reconnect(HeartbeatOverdue(3600.0))]


def test_six_minutes_without_a_challenge_register_again_then_reconnect(registered: Driver) -> None:
    assert do.SendRegister("no challenge for too long") not in registered.pass_time(360)
    assert do.SendRegister("no challenge for too long") in registered.pass_time(1)
    assert registered.pass_time(15)[-1] == do.Reconnect(NotAccepted(15.0))


def test_a_challenge_after_registering_again_ends_the_suspicion(registered: Driver) -> None:
    registered.pass_time(361)
    assert do.Accepted() in registered.hear(CHALLENGE)
    assert not any(isinstance(a, do.SendRegister | do.Reconnect) for a in registered.pass_time(300))


def test_a_suspicious_session_that_never_gets_quiet_is_given_up(registered: Driver) -> None:
    registered.hear(request("endless"))
    actions = registered.pass_time(721)
    assert not any(isinstance(a, do.SendRegister) for a in actions)
    assert actions[-2:] == [
        do.AbortJobs("the connection to the coordinator was given up"),
        do.Reconnect(ChallengesStopped(721.0)),
    ]


# ---------------------------------------------------------------- clocks that jump

HOUR, DAY = 3600.0, 86_400.0


@pytest.mark.parametrize("jump", [HOUR, DAY])
def test_a_clock_set_back_changes_nothing(registered: Driver, jump: float) -> None:
    registered.pass_time(7)
    assert registered.jump(-jump) == []
    actions = registered.pass_time(60)
    assert set(map(type, actions)) == {do.SendHeartbeat}
    assert actions.count(do.SendHeartbeat()) == 12
    assert registered.jump(-jump) == []
    assert registered.pass_time(280).count(do.SendHeartbeat()) == 56
    # 347 s without a challenge so far: the suspicion comes when it is due, not hours later.
    assert do.SendRegister("no challenge for too long") not in registered.pass_time(13)
    assert do.SendRegister("no challenge for too long") in registered.pass_time(1)


@pytest.mark.parametrize("jump", [HOUR, DAY])
def test_a_clock_set_ahead_reconnects_once_for_the_coordinator_may_have_given_up(
    registered: Driver, jump: float
) -> None:
    registered.hear(request("a"))
    abort, reconnect = registered.jump(jump)
    assert isinstance(abort, do.AbortJobs)
    assert reconnect == do.Reconnect(HeartbeatOverdue(jump))
    assert registered.pass_time(60) == []


@pytest.mark.parametrize("jump", [HOUR, DAY])
def test_a_clock_set_back_while_draining_moves_the_deadline_along(
    registered: Driver, jump: float
) -> None:
    registered.hear(request("a"))
    registered.jump(-jump)
    registered.tell(events.Drain(registered.now + 30))
    registered.pass_time(10)
    registered.jump(-jump)
    assert do.CloseConnection() not in registered.pass_time(19)
    assert registered.pass_time(1)[-1] == do.CloseConnection()


def test_a_clock_set_back_does_not_hide_a_registration_nobody_took(driver: Driver) -> None:
    driver.jump(-HOUR)
    assert driver.pass_time(15)[-1] == do.Reconnect(NotAccepted(15.0))


# ---------------------------------------------------------------- jobs


def test_a_request_starts_a_job(registered: Driver) -> None:
    assert registered.hear(request("a")) == [do.StartJob(request("a"))]
    assert registered.session.jobs == {"a"}


def test_a_repeated_request_is_ignored_with_a_report(registered: Driver) -> None:
    registered.hear(request("a"))
    (report,) = registered.hear(request("a"))
    assert isinstance(report, do.Report)


def test_a_finished_request_that_is_replayed_is_ignored_with_a_report(registered: Driver) -> None:
    registered.hear(request("a"))
    registered.tell(events.JobEnded("a"))
    (report,) = registered.hear(request("a"))
    assert isinstance(report, do.Report)


def test_a_running_request_is_recognised_however_many_came_since(registered: Driver) -> None:
    registered.hear(request("a"))
    for number in range(REMEMBERED_REQUESTS + 1):
        registered.hear(request(f"other-{number}"))
        registered.tell(events.JobEnded(f"other-{number}"))
    (report,) = registered.hear(request("a"))
    assert isinstance(report, do.Report)


def test_a_cancel_stops_its_job(registered: Driver) -> None:
    registered.hear(request("a"))
    assert registered.hear(Cancel(request_id="a")) == [do.CancelJob("a")]
    assert registered.session.jobs == frozenset()


def test_a_cancel_of_an_unknown_request_is_ignored_quietly(registered: Driver) -> None:
    assert registered.hear(Cancel(request_id="nobody")) == []


def test_a_request_that_comes_after_its_cancel_does_not_start(registered: Driver) -> None:
    registered.hear(Cancel(request_id="a"))
    (report,) = registered.hear(request("a"))
    assert isinstance(report, do.Report)


def test_the_end_of_an_unknown_job_changes_nothing(registered: Driver) -> None:
    assert registered.tell(events.JobEnded("nobody")) == []


# ---------------------------------------------------------------- odd frames


def test_unknown_and_malformed_frames_are_reported_and_ignored(registered: Driver) -> None:
    for error in (UnknownMessageError("load_model"), MalformedFrameError("not JSON")):
        (report,) = registered.tell(events.FrameUndecodable(error))
        assert isinstance(report, do.Report)
    assert registered.hear(request("a")) == [do.StartJob(request("a"))]


def test_a_runtime_mismatch_is_shown_with_what_to_do(registered: Driver) -> None:
    (shown,) = registered.hear(MISMATCH)
    assert isinstance(shown, do.ShowProblem)
    assert shown.problem.why == "not listed: runtime"
    assert "update darkbloom" in shown.problem.next_step


def test_a_runtime_mismatch_without_details_is_still_shown(registered: Driver) -> None:
    (shown,) = registered.hear(RuntimeStatus(verified=False))
    assert isinstance(shown, do.ShowProblem)
    assert shown.problem.why is None


def test_a_mismatch_is_over_when_a_challenge_passes_without_complaint(driver: Driver) -> None:
    driver.hear(MISMATCH)
    assert do.ClearProblem() not in driver.hear(CHALLENGE)
    assert do.ClearProblem() in driver.hear(CHALLENGE)
    assert do.ClearProblem() not in driver.hear(CHALLENGE)


def test_a_mismatch_repeated_after_each_challenge_stays_shown(registered: Driver) -> None:
    for _ in range(3):
        registered.hear(MISMATCH)
        assert registered.hear(CHALLENGE) == [do.Answer(CHALLENGE)]


def test_a_verified_runtime_clears_the_mismatch_once(registered: Driver) -> None:
    verified = RuntimeStatus(verified=True)
    assert registered.hear(verified) == []
    registered.hear(MISMATCH)
    assert registered.hear(verified) == [do.ClearProblem()]
    assert registered.hear(verified) == []


# ---------------------------------------------------------------- why no work comes

LOW_TRUST = RoutingStatus(
    reasons=(RoutingReason(code="low_trust", what="trust is low", next_step="type `x`"),)
)
ALL_WELL = RoutingStatus(routable=True)


def test_why_no_work_comes_is_shown_with_what_to_do_until_it_is_over(registered: Driver) -> None:
    (shown,) = registered.hear(LOW_TRUST)
    assert shown == do.ShowProblem(
        Problem("The coordinator sends this machine no work", "type `x`", "trust is low")
    )
    assert registered.hear(LOW_TRUST) == []
    assert registered.hear(CHALLENGE) == [do.Answer(CHALLENGE)]
    assert registered.hear(ALL_WELL) == [do.ClearProblem()]
    assert registered.hear(ALL_WELL) == []


def test_a_reason_that_concerns_some_models_names_them(registered: Driver) -> None:
    hot = RoutingReason(code="engine", what="its engine is crashed", model="m")
    (shown,) = registered.hear(RoutingStatus(routable=True, reasons=(hot,)))
    assert isinstance(shown, do.ShowProblem)
    assert "some of this machine's models" in shown.problem.what
    assert shown.problem.why == "m its engine is crashed"
    assert "darkbloom doctor" in shown.problem.next_step


def test_no_work_without_a_reason_is_still_shown(registered: Driver) -> None:
    for status in (RoutingStatus(), RoutingStatus(reasons=(RoutingReason(),))):
        (shown,) = registered.hear(status)
        assert isinstance(shown, do.ShowProblem)


def test_a_runtime_that_is_not_listed_is_shown_first_and_the_rest_after_it(
    registered: Driver,
) -> None:
    registered.hear(LOW_TRUST)
    (shown,) = registered.hear(MISMATCH)
    assert isinstance(shown, do.ShowProblem)
    assert shown.problem.why == "not listed: runtime"
    assert registered.hear(RoutingStatus()) == []
    registered.hear(LOW_TRUST)
    (back,) = registered.hear(RuntimeStatus(verified=True))
    assert isinstance(back, do.ShowProblem)
    assert back.problem.why == "trust is low"


def test_registering_again_forgets_why_no_work_came(registered: Driver) -> None:
    registered.hear(LOW_TRUST)
    assert do.ClearProblem() in registered.tell(events.Reregister("new models"))


def test_foreign_text_about_routing_is_made_safe_to_show(registered: Driver) -> None:
    nasty = RoutingReason(what="a\x1b[2Jb" + "x" * 999, next_step="c\nd", model="e\rf")
    (shown,) = registered.hear(RoutingStatus(reasons=(nasty,) * 99))
    assert isinstance(shown, do.ShowProblem)
    assert shown.problem.next_step == "c d"
    assert (shown.problem.why or "").isprintable()
    assert len(shown.problem.why or "") < 2_500


# ---------------------------------------------------------------- ending


def test_an_idle_session_drains_at_once(registered: Driver) -> None:
    assert registered.tell(events.Drain(registered.now + 30)) == [do.CloseConnection()]


def test_a_drain_before_the_connection_is_used_closes_it() -> None:
    session = Session()
    assert session.receive(events.Drain(30.0), 0.0) == [do.CloseConnection()]
    assert session.receive(events.Connected(), 0.0) == []


def test_a_drain_waits_for_the_jobs_and_turns_new_ones_away(registered: Driver) -> None:
    registered.hear(request("a"))
    registered.hear(request("b"))
    assert registered.tell(events.Drain(registered.now + 30)) == []
    assert registered.session.draining
    (refusal,) = registered.hear(request("c"))
    assert isinstance(refusal, do.RefuseJob)
    assert (refusal.request_id, refusal.status_code) == ("c", 503)
    assert do.SendHeartbeat() in registered.pass_time(5)
    assert registered.tell(events.JobEnded("a")) == []
    assert registered.hear(Cancel(request_id="b")) == [do.CancelJob("b"), do.CloseConnection()]


def test_a_drain_still_answers_challenges_but_registers_no_more(registered: Driver) -> None:
    registered.hear(request("a"))
    registered.tell(events.Drain(registered.now + 30))
    assert registered.hear(CHALLENGE) == [do.Answer(CHALLENGE)]
    assert registered.tell(events.Reregister("models changed")) == []


def test_at_the_drain_deadline_what_runs_ends_with_an_error(registered: Driver) -> None:
    registered.hear(request("a"))
    registered.tell(events.Drain(registered.now + 30))
    registered.tell(events.Drain(registered.now + 10))
    registered.tell(events.Drain(registered.now + 20))
    registered.pass_time(9)
    abort, refusal, close = registered.pass_time(1)[-3:]
    assert isinstance(abort, do.AbortJobs)
    assert isinstance(refusal, do.RefuseJob)
    assert (refusal.request_id, refusal.status_code) == ("a", 503)
    assert close == do.CloseConnection()


def test_the_loss_of_the_connection_aborts_the_jobs_once(registered: Driver) -> None:
    registered.hear(request("a"))
    assert registered.tell(events.Closed()) == [
        do.AbortJobs("the connection to the coordinator was lost")
    ]
    assert registered.tell(events.Closed()) == []
    assert registered.tell(events.JobEnded("a")) == []
    assert registered.tell(events.Connected()) == []


def test_the_loss_of_an_idle_connection_aborts_nothing(registered: Driver) -> None:
    assert registered.tell(events.Closed()) == []
