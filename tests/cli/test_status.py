from __future__ import annotations

import datetime as dt
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from darkbloom_provider.cli import main, status
from darkbloom_provider.cli.context import Invocation
from darkbloom_provider.control.client import DaemonClient
from darkbloom_provider.control.models import (
    AccountStatus,
    CoordinatorStatus,
    JobCounts,
    JournalStatus,
    ModelStatus,
    PostureStatus,
    Problem,
    StatusReport,
)

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
URL = "wss://api.example/ws/provider"


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="db-", dir="/tmp") as directory:
        monkeypatch.setenv("DARKBLOOM_HOME", directory)
        yield Path(directory)


def report(**changes: object) -> StatusReport:
    values: dict[str, object] = {
        "version": "0.1.0",
        "pid": 4711,
        "phase": "serving",
        "now": NOW,
        "started_at": NOW - dt.timedelta(hours=3, minutes=4, seconds=5),
        "coordinator": CoordinatorStatus(
            url=URL, phase="registered", registered_at=NOW - dt.timedelta(minutes=2)
        ),
        "account": AccountStatus(linked=True, account_id="acct-1", wallet_address="0x1"),
        "models": (ModelStatus(id="org/model", state="ready", in_flight=2),),
        "jobs": JobCounts(in_flight=2, served=12, completion_tokens=3456, failed=1, cancelled=3),
        "journal": JournalStatus(jobs=20, estimate_micro_usd=4_821_200),
        "posture": PostureStatus(kind="measured", facts={"sip_enabled": True}),
        **changes,
    }
    return StatusReport.model_validate(values)


def text(told: StatusReport) -> str:
    return "\n".join(f"{label}|{value}" for label, value in status.lines(told))


def test_a_serving_provider_is_described_line_by_line() -> None:
    assert text(report()).splitlines() == [
        "Provider|serving (version 0.1.0, pid 4711, up 3 h 4 min)",
        f"Coordinator|connected for 2 min ({URL})",
        "Account|linked (acct-1)",
        "Model|org/model (ready, 2 requests)",
        "In flight|2 requests",
        "Served|12 requests, 3456 tokens generated (1 failed, 3 cancelled)",
        "Journal|20 jobs on this machine in all, estimated $4.821200",
        "Posture|measured: SIP yes",
    ]


def test_trouble_with_the_coordinator_is_told_with_what_to_do() -> None:
    told = report(
        coordinator=CoordinatorStatus(
            url=URL,
            phase="waiting",
            since=NOW - dt.timedelta(seconds=3),
            retry_at=NOW + dt.timedelta(seconds=4),
            last_problem=Problem(what="It is away", why="refused", next_step="wait"),
        )
    )
    assert f"Coordinator|not connected for 3 s, next attempt in 4 s ({URL})" in text(told)
    assert "|It is away: refused\n|Next: wait" in text(told)


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ("not started", "not asked yet"),
        ("connecting", "connecting"),
        ("refused", "refused, next attempt in 0 s"),
        ("closed", "not connected"),
        ("draining", "not connected"),
    ],
)
def test_every_phase_of_the_link_has_words(phase: str, words: str) -> None:
    told = report(coordinator={"url": URL, "phase": phase})
    assert f"Coordinator|{words} ({URL})" in text(told)


def test_an_unlinked_machine_is_told_to_log_in() -> None:
    told = report(account=AccountStatus(linked=False, wallet_address="0xabc"))
    assert "Account|not linked; earnings are kept under 0xabc. Run `darkbloom login`" in text(told)


def test_a_load_under_way_a_full_disk_and_claims_are_shown() -> None:
    told = report(
        phase="loading",
        models=(ModelStatus(id="m", state="loading", detail="reading 0.54 GB of weights"),),
        journal=JournalStatus(
            unwritten=2, problem=Problem(what="The disk is full", next_step="make room")
        ),
        posture=PostureStatus(
            kind="development", facts={"sip_enabled": True}, claimed=("sip_enabled",)
        ),
        warnings=("something is odd",),
    )
    shown = text(told)
    assert "Provider|loading models" in shown
    assert "Model|m (loading: reading 0.54 GB of weights)" in shown
    assert "Journal|The disk is full; 2 waiting to be written\n|Next: make room" in shown
    assert "Posture|DEVELOPMENT, not measured: SIP yes (claimed)" in shown
    assert "Note|something is odd" in shown


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3661, "1 h 1 min"),
        (90_061, "1 d 1 h"),
        (-5, "0 s"),
    ],
)
def test_durations_are_short(seconds: int, words: str) -> None:
    assert status.duration(dt.timedelta(seconds=seconds)) == words


def test_without_a_daemon_it_exits_3_and_says_how_to_start_one(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(["status"])
    assert caught.value.code == 3
    shown = capsys.readouterr().err
    assert "No daemon is running" in shown
    assert "darkbloom serve" in shown


def test_json_is_one_object_with_the_whole_report(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DaemonClient, "status", lambda _self: report())
    result = CliRunner().invoke(status.command, ["--json"], obj=Invocation())
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads(report().model_dump_json())


def test_a_daemon_of_another_version_is_warned_about_on_stderr(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(client: DaemonClient) -> StatusReport:
        client.skew = "the daemon is version 0"
        return report()

    monkeypatch.setattr(DaemonClient, "status", answer)
    result = CliRunner().invoke(status.command, [], obj=Invocation())
    assert "Warning: the daemon is version 0" in result.stderr
    assert "Coordinator:    connected for 2 min" in result.stdout
