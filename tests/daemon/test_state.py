from __future__ import annotations

import datetime as dt
from pathlib import Path

from darkbloom_provider.control.models import JobCounts
from darkbloom_provider.daemon.books import BooksSnapshot
from darkbloom_provider.daemon.slots import Slot
from darkbloom_provider.daemon.state import DaemonState, Moment, report
from darkbloom_provider.host.posture import development, linux_posture
from darkbloom_provider.host.privacy import Check
from darkbloom_provider.link.state import LinkState, Phase, Problem
from darkbloom_provider.models.store import InstalledModel
from support.daemon_parts import NOW

URL = "wss://api.example/ws/provider"


def state(**changes: object) -> DaemonState:
    values: dict[str, object] = {
        "version": "1",
        "pid": 7,
        "phase": "serving",
        "started_at": NOW - dt.timedelta(hours=1),
        "coordinator_url": URL,
        **changes,
    }
    return DaemonState(**values)  # type: ignore[arg-type]  # a table of fields


def test_a_daemon_that_has_only_just_started_can_be_asked() -> None:
    told = report(state(phase="starting"), Moment(NOW, 100.0))
    assert told.coordinator.phase == "not started"
    assert told.coordinator.url == URL
    assert told.uptime == dt.timedelta(hours=1)
    assert told.account.wallet_address is None
    assert told.models == ()


def test_the_links_seconds_become_times_of_the_calendar() -> None:
    link = LinkState(
        url=URL,
        phase=Phase.WAITING,
        since=90.0,
        attempts=3,
        retry_at=104.0,
        last_problem=Problem("It is away", "wait", why="refused"),
    )
    told = report(state(link=link), Moment(NOW, 100.0)).coordinator
    assert told.since == NOW - dt.timedelta(seconds=10)
    assert told.retry_at == NOW + dt.timedelta(seconds=4)
    assert told.registered_at is None
    assert told.last_problem is not None
    assert (told.last_problem.what, told.last_problem.why) == ("It is away", "refused")
    assert told.last_problem.next_step == "wait"


def test_every_phase_of_the_link_has_a_word_in_the_report() -> None:
    for phase in Phase:
        link = LinkState(url=URL, phase=phase)
        assert report(state(link=link), Moment(NOW, 0)).coordinator.phase == phase.value


def test_models_carry_the_requests_that_run_on_them() -> None:
    model = InstalledModel(
        id="m", path=Path("m"), size_bytes=1, model_type="llama", quantization="4bit"
    )
    told = report(
        state(
            slots=(Slot(model, "ready"),),
            in_flight={"m": 2},
            jobs=JobCounts(in_flight=2, served=5),
        ),
        Moment(NOW, 0),
    )
    assert [(m.id, m.state, m.in_flight) for m in told.models] == [("m", "ready", 2)]
    assert told.jobs.served == 5


def test_a_journal_that_cannot_be_written_is_told_with_what_to_do() -> None:
    books = BooksSnapshot(jobs=3, estimate_micro_usd=9, unwritten=1, problem="disk full")
    told = report(state(books=books), Moment(NOW, 0)).journal
    assert (told.jobs, told.estimate_micro_usd, told.unwritten) == (3, 9, 1)
    assert told.problem is not None
    assert told.problem.next_step is not None


def test_claims_of_the_development_posture_are_named() -> None:
    posture = development(linux_posture("", "x86_64"))
    told = report(state(posture=posture, posture_setting="development"), Moment(NOW, 0)).posture
    assert told.kind == "development"
    assert "sip_enabled" in told.claimed
    assert told.facts["sip_enabled"] is True
    assert told.facts["hypervisor_active"] is None


def test_each_privacy_flag_is_told_with_what_it_was_read_from() -> None:
    privacy = {"env_scrubbed": Check(False, "dangerous variables: LD_PRELOAD")}
    told = report(state(privacy=privacy), Moment(NOW, 0)).privacy
    assert not told["env_scrubbed"].holds
    assert told["env_scrubbed"].evidence == "dangerous variables: LD_PRELOAD"
