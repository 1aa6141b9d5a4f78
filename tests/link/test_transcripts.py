"""Sessions recorded with the embedded coordinator, lived through again event by event."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.link.session import Session
from support.transcripts import SCENES, TRANSCRIPTS, read, record, written_all

SHOWN: dict[str, set[str]] = {
    "an-answer-then-a-drain": {"Accepted", "StartJob", "CloseConnection"},
    "a-consumer-who-left": {"CancelJob"},
    "registered-again-between-streams": {"SendRegister"},
    "a-stop-that-cannot-wait": {"AbortJobs", "RefuseJob", "CloseConnection"},
    "a-coordinator-that-stopped": {"CancelJob"},
    "challenged-again-and-again": {"Answer"},
    "a-runtime-that-is-not-listed": {"ShowProblem"},
}
"""What the session decides in each, so that no transcript is of something else."""


def replay(path: Path) -> None:
    """Decides again, and must decide the same."""
    timings, steps = read(path)
    session = Session(timings)
    for number, step in enumerate(steps, start=2):
        decided = written_all(session.receive(step.event, step.t))
        assert decided == step.actions, f"{path.name}, line {number}"


@pytest.mark.parametrize("name", SCENES)
def test_a_recorded_session_is_decided_again_as_it_was(name: str) -> None:
    replay(TRANSCRIPTS / f"{name}.jsonl")


def test_each_transcript_shows_what_its_name_says() -> None:
    shown = {}
    for path in sorted(TRANSCRIPTS.glob("*.jsonl")):
        _, steps = read(path)
        shown[path.stem] = {action[0] for step in steps for action in step.actions}
    assert shown.keys() == SCENES.keys() == SHOWN.keys()
    assert [name for name in SHOWN if not SHOWN[name] <= shown[name]] == []


def test_registering_again_waited_for_both_streams() -> None:
    _, steps = read(TRANSCRIPTS / "registered-again-between-streams.jsonl")
    kinds: list[Any] = [type(step.event).__name__ for step in steps]
    again = max(n for n, step in enumerate(steps) if "SendRegister" in str(step.actions))
    assert kinds[: again + 1].count("JobEnded") == 2
    assert kinds[again] == "JobEnded"
    assert kinds.index("Reregister") < again


async def test_a_scene_can_be_recorded_anew(tmp_path: Path) -> None:
    lines = await record("an-answer-then-a-drain", tmp_path / "coordinator")
    path = tmp_path / "recorded.jsonl"
    path.write_text("\n".join(lines) + "\n")
    replay(path)
    assert json.loads(lines[1])["event"] == ["Connected", {}]
