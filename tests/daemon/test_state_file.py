from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.control.models import JobCounts
from darkbloom_provider.daemon.books import BooksSnapshot
from darkbloom_provider.daemon.slots import LoadFailure
from darkbloom_provider.daemon.state import DaemonState, Moment
from darkbloom_provider.daemon.state_file import StateFile, document
from darkbloom_provider.engine.requests import EngineSnapshot, MemorySnapshot
from darkbloom_provider.host.identity import process_start_micros
from darkbloom_provider.link.state import LinkState, Phase, Problem
from darkbloom_provider.paths import replace_private
from support.daemon_parts import NOW

URL = "wss://api.example/ws/provider"
SHAPE: dict[str, Any] = {
    "version": int,
    "pid": int,
    "process_identity": {"pid": int, "start_time_micros": int},
    "started_at": str,
    "written_at": str,
    "trust": {"trust_level": str, "status": str, "reason": str, "received_at": str},
    "current_model": str,
    "warm_models": [str],
    "slots": [
        {
            "model": str,
            "kv_backend": str,
            "kv_backend_requested": str,
            "mtp_enabled": bool,
            "mtp_active": bool,
        }
    ],
    "capacity": {
        "total_memory_gb": float,
        "gpu_memory_active_gb": float,
        "gpu_memory_cache_gb": float,
    },
    "stats": {"requests_served": int, "tokens_generated": int, "usage_gaps": int},
    "inference_active": bool,
    "last_model_load_error": {"model": str, "message": str, "at": str},
}
"""Schema 1, field for field."""


def shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(value[0])] if isinstance(value, list) else type(value)


def state(**changes: object) -> DaemonState:
    values: dict[str, object] = {
        "version": "1",
        "pid": 7,
        "phase": "serving",
        "started_at": NOW - dt.timedelta(hours=1),
        "coordinator_url": URL,
        "process_start_micros": 1_760_000_000_123_456,
        **changes,
    }
    return DaemonState(**values)  # type: ignore[arg-type]  # a table of fields


BUSY = {
    "link": LinkState(
        url=URL,
        phase=Phase.REGISTERED,
        registered_at=40.0,
        last_problem=Problem("The coordinator does not accept this build's runtime", "update"),
    ),
    "jobs": JobCounts(in_flight=2, served=5, completion_tokens=99),
    "books": BooksSnapshot(jobs=3, estimate_micro_usd=9, unwritten=2, problem=None),
    "memory_gib": 64,
    "warm": ("b", "a"),
    "load_failure": LoadFailure("c", "No room: 9 GB", at_clock_s=70.0),
}
ENGINE = EngineSnapshot(memory=MemorySnapshot(active_gb=3 * 1.073741824, cache_gb=1.073741824))


def told(state: DaemonState, engine: EngineSnapshot = ENGINE) -> dict[str, Any]:
    text = document(state, engine, Moment(NOW, 100.0)).model_dump_json()
    content = json.loads(text)
    assert isinstance(content, dict)
    return content


# ---------------------------------------------------------------- content


def test_a_busy_daemon_tells_every_field_of_the_schema_and_no_other() -> None:
    assert shape(told(state(**BUSY))) == SHAPE


def test_the_figures_are_those_of_the_daemon() -> None:
    content = told(state(**BUSY))
    assert content["version"] == 1
    assert content["process_identity"] == {"pid": 7, "start_time_micros": 1_760_000_000_123_456}
    assert (content["current_model"], content["warm_models"]) == ("b", ["b", "a"])
    assert [slot["model"] for slot in content["slots"]] == ["b", "a"]
    assert content["capacity"] == {
        "total_memory_gb": 64.0,
        "gpu_memory_active_gb": 3.0,
        "gpu_memory_cache_gb": 1.0,
    }
    assert content["stats"] == {"requests_served": 5, "tokens_generated": 99, "usage_gaps": 2}
    assert content["inference_active"] is True


def test_times_are_utc_whole_seconds_as_strict_parsers_want_them() -> None:
    content = told(state(**BUSY))
    times = {
        content["started_at"]: NOW - dt.timedelta(hours=1),
        content["written_at"]: NOW,
        content["trust"]["received_at"]: NOW - dt.timedelta(seconds=60),
        content["last_model_load_error"]["at"]: NOW - dt.timedelta(seconds=30),
    }
    for text, meant in times.items():
        assert dt.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.UTC) == meant


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("none", "offline", None)),
        (
            {"link": LinkState(url=URL, last_problem=Problem("It is away", "wait"))},
            ("none", "offline", "It is away"),
        ),
        ({"link": LinkState(url=URL, registered_at=1.0)}, ("none", "online", None)),
        (
            {"link": LinkState(url=URL, registered_at=1.0), "attested": True},
            ("self_signed", "online", None),
        ),
        (BUSY, ("none", "serving", "The coordinator does not accept this build's runtime")),
        ({**BUSY, "phase": "stopped"}, ("none", "offline", None)),
        ({"link": LinkState(url=URL), "attested": True}, ("none", "offline", None)),
    ],
)
def test_no_more_trust_is_told_than_a_coordinator_can_justify(
    changes: dict[str, object], expected: tuple[str, str, str | None]
) -> None:
    trust = told(state(**changes))["trust"]
    assert (trust["trust_level"], trust["status"], trust["reason"]) == expected
    assert (trust["received_at"] is None) == (trust["status"] == "offline")


def test_what_is_not_known_yet_is_null() -> None:
    content = told(state(phase="starting"))
    assert content["capacity"] is None
    assert content["current_model"] is None
    assert content["last_model_load_error"] is None
    assert (content["warm_models"], content["slots"]) == ([], [])
    assert content["inference_active"] is False


def test_the_start_of_this_process_is_that_of_the_system() -> None:
    now = dt.datetime.now(dt.UTC).timestamp() * 1e6
    assert 0 < process_start_micros() <= now


# ---------------------------------------------------------------- on the disk


def test_the_file_is_replaced_whole_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "home" / "daemon-state.json"
    replace_private(path, b"a long first content")
    with path.open("rb") as reader:
        replace_private(path, b"second")
        assert reader.read() == b"a long first content"
    assert path.read_bytes() == b"second"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


WRITER = """
import sys
from pathlib import Path
from darkbloom_provider.paths import replace_private
print("ready", flush=True)
count = 0
while True:
    count += 1
    replace_private(Path(sys.argv[1]), b"%d" % (count % 10) * 100_000)
"""


def test_a_kill_in_the_middle_never_leaves_half_a_file(tmp_path: Path) -> None:
    chance = random.Random(7)
    path = tmp_path / "daemon-state.json"
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            for _ in range(chance.randrange(1, 400)):  # work, not time, until the kill
                content = path.read_bytes() if path.exists() else b""
                assert len(content) in {0, 100_000}
            os.kill(writer.pid, signal.SIGKILL)
        content = path.read_bytes() if path.exists() else b"0" * 100_000
        assert len(content) == 100_000
        assert len(set(content)) == 1
    names = {entry.name for entry in tmp_path.iterdir()}
    assert names <= {"daemon-state.json", ".daemon-state.json.new"}


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "daemon-state.json"
    replace_private(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    refused = None
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        replace_private(path, b"x" * 2000)
    except OSError as error:
        refused = error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused is not None
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


async def test_a_disk_that_refuses_ends_nothing_and_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "daemon-state.json"
    obstacle = path / "a directory in its place"
    obstacle.mkdir(parents=True)
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        await file.write()
        waits.append(seconds)
        if len(waits) == 2:
            obstacle.rmdir()
            path.rmdir()
        if len(waits) == 3:
            raise EOFError

    file = StateFile(path, lambda: (state(), Moment(NOW, 0.0)), EngineSnapshot)
    with pytest.raises(EOFError):
        await file.keep(1.0, sleep)
    assert waits == [1.0, 1.0, 1.0]
    assert json.loads(path.read_bytes())["pid"] == 7


def test_a_text_that_is_kept_says_what_one_made_anew_would(tmp_path: Path) -> None:
    path = tmp_path / "daemon-state.json"
    quiet, busy = state(), state(**BUSY)
    clock = (NOW, 100.0)
    now = (NOW + dt.timedelta(seconds=1.5), 101.5)
    set_ahead = (NOW + dt.timedelta(days=1), 102.0)
    looks = [
        (quiet, ENGINE, Moment(*clock)),
        (quiet, ENGINE, Moment(*now)),
        (busy, ENGINE, Moment(*now)),
        (state(**BUSY), ENGINE, Moment(*now)),
        (busy, ENGINE, Moment(*set_ahead)),
        (busy, EngineSnapshot(), Moment(*set_ahead)),
    ]
    shown: list[tuple[DaemonState, EngineSnapshot, Moment]] = []

    async def keep() -> None:
        file = StateFile(path, lambda: (shown[-1][0], shown[-1][2]), engine=lambda: shown[-1][1])
        for look in looks:
            shown.append(look)
            await file.write()
            assert path.read_text() == document(*look).model_dump_json() + "\n"
        file.close()

    asyncio.run(keep())


async def test_what_waits_for_a_stuck_disk_does_not_pile_up(tmp_path: Path) -> None:
    stuck, asked = threading.Event(), threading.Event()
    looks = 0

    def look() -> tuple[DaemonState, Moment]:
        nonlocal looks
        looks += 1
        return state(), Moment(NOW, 0.0)

    def engine() -> EngineSnapshot:
        asked.set()
        stuck.wait(30)
        return EngineSnapshot()

    async def sleep(seconds: float) -> None:
        del seconds
        await asyncio.to_thread(asked.wait, 30)
        if (rounds := next(counted)) == 100:
            raise EOFError(rounds)

    counted = iter(range(101))
    file = StateFile(tmp_path / "daemon-state.json", look, engine)
    try:
        with pytest.raises(EOFError):
            await file.keep(1.0, sleep)
    finally:
        stuck.set()
    assert looks == 2
    await file.write()
    file.close()


async def test_a_write_that_was_given_up_costs_the_next_ones_nothing(tmp_path: Path) -> None:
    stuck, asked = threading.Event(), threading.Event()

    def engine() -> EngineSnapshot:
        asked.set()
        stuck.wait(30)
        return EngineSnapshot()

    path = tmp_path / "daemon-state.json"
    file = StateFile(path, lambda: (state(), Moment(NOW, 0.0)), engine)
    given_up = [asyncio.create_task(file.write()) for _ in range(2)]
    try:
        await asyncio.to_thread(asked.wait, 30)
        for task in given_up:
            task.cancel()
        await asyncio.wait(given_up)
    finally:
        stuck.set()
    async with asyncio.timeout(30):
        await file.write()
    file.close()
    assert json.loads(path.read_bytes())["pid"] == 7


async def test_an_engine_that_is_stuck_holds_up_the_file_and_not_the_loop(tmp_path: Path) -> None:
    stuck, asked = threading.Event(), threading.Event()

    def engine() -> EngineSnapshot:
        asked.set()
        stuck.wait(30)
        return EngineSnapshot()

    path = tmp_path / "daemon-state.json"
    file = StateFile(path, lambda: (state(), Moment(NOW, 0.0)), engine)
    keeper = asyncio.create_task(file.keep(1.0))
    try:
        await asyncio.to_thread(asked.wait, 30)
        assert not path.exists()
        keeper.cancel()
        await asyncio.wait([keeper])
    finally:
        stuck.set()
    await file.write()
    file.close()
    assert json.loads(path.read_bytes())["pid"] == 7
