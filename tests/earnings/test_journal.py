from __future__ import annotations

import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from darkbloom_provider.earnings import journal_file
from darkbloom_provider.earnings.journal import JobRecord, Journal, JournalTotals
from darkbloom_provider.earnings.journal_file import (
    MIGRATIONS,
    JournalDamagedError,
    JournalError,
    JournalFullError,
)

NOON = datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
JOB = JobRecord(
    job_id="job-1",
    finished_at=NOON,
    model="mlx-community/gemma-4-26b-a4b-it-8bit",
    prompt_tokens=1000,
    completion_tokens=2000,
    provider_key="q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=",
    linked=True,
    estimate_micro_usd=465,
)

WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from darkbloom_provider.earnings.journal import Journal
from datetime import UTC, datetime
from darkbloom_provider.earnings.journal import JobRecord
journal = Journal.open(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    now = datetime.now(UTC)
    journal.record(JobRecord(f"job-{number}", now, "m", 1, 2, "key", True, 7))
    print(number, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "journal.sqlite3"


def test_what_is_recorded_is_there_after_reopening(path: Path) -> None:
    unlinked = replace(JOB, job_id="job-2", finished_at=NOON + timedelta(seconds=1), linked=False)
    with Journal.open(path) as journal:
        assert journal.record(JOB) is True
        assert journal.record(unlinked) is True
        assert journal.set_aside is None
    with Journal.open(path) as journal:
        assert journal.totals() == JournalTotals(jobs=2, micro_usd=930, unclaimed_micro_usd=465)
        assert journal.recent(10) == [unlinked, JOB]
        assert journal.recent(1) == [unlinked]


def test_what_was_earned_before_the_last_link_is_no_longer_unclaimed(path: Path) -> None:
    with Journal.open(path) as journal:
        for number, linked in enumerate([False, True, False, False]):
            at = NOON + timedelta(seconds=number)
            journal.record(replace(JOB, job_id=f"job-{number}", finished_at=at, linked=linked))
        assert journal.totals() == JournalTotals(4, 4 * 465, unclaimed_micro_usd=2 * 465)


def test_a_job_is_counted_once_however_often_it_is_recorded(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.record(JOB)
        assert journal.record(replace(JOB, estimate_micro_usd=9)) is False
        assert journal.totals() == JournalTotals(jobs=1, micro_usd=465)


def test_provider_keys_are_remembered_once_newest_first(path: Path) -> None:
    with Journal.open(path) as journal:
        assert journal.provider_keys() == ()
        journal.remember_key("old", NOON)
        journal.remember_key("new", NOON + timedelta(days=1))
        journal.remember_key("old", NOON + timedelta(days=2))
        assert journal.provider_keys() == ("new", "old")


def test_only_the_owner_can_read_it(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.record(JOB)
        files = sorted(path.parent.iterdir())
        assert [file.name for file in files] == [path.name, f"{path.name}-shm", f"{path.name}-wal"]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_every_commit_reaches_the_disk(path: Path) -> None:
    with Journal.open(path) as journal:
        pragma = {
            name: journal._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "fullfsync", "checkpoint_fullfsync")
        }
    assert pragma == {
        "journal_mode": "wal",
        "synchronous": 2,
        "fullfsync": 1,
        "checkpoint_fullfsync": 1,
    }


def test_killed_in_the_middle_it_opens_and_has_lost_nothing_acknowledged(path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    acknowledged = 0
    with writer.stdout as lines:
        for line in lines:
            acknowledged = int(line)
            if acknowledged >= 30:
                writer.send_signal(signal.SIGKILL)
                break
        for line in lines:
            if line.endswith(b"\n"):
                acknowledged = int(line)
    writer.wait()
    # Read first by the command line, which may not write, then by the next daemon.
    for opened in (Journal.view(path), Journal.open(path)):
        with opened as journal:
            totals = journal.totals()
            ids = {job.job_id for job in journal.recent(10_000)}
        assert {f"job-{number}" for number in range(1, acknowledged + 1)} <= ids
        # The one it died in may have reached the disk; nothing may be there twice or half.
        assert totals.jobs == len(ids)
        assert totals.jobs in {acknowledged, acknowledged + 1}
        assert totals.micro_usd == 7 * totals.jobs


def test_the_command_line_reads_while_the_daemon_writes(path: Path) -> None:
    with Journal.open(path) as writer, Journal.view(path) as reader:
        assert reader.totals().jobs == 0
        writer.record(JOB)
        assert reader.totals() == JournalTotals(jobs=1, micro_usd=465)
        with pytest.raises(JournalError, match="readonly"):
            reader.record(replace(JOB, job_id="job-2"))


def test_no_journal_yet_reads_as_empty_and_makes_no_file(path: Path) -> None:
    with Journal.view(path) as journal:
        assert journal.totals() == JournalTotals(jobs=0, micro_usd=0)
        assert journal.provider_keys() == ()
    assert not path.parent.exists()


def test_a_file_without_tables_yet_reads_as_empty(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with Journal.view(path) as journal:
        assert journal.recent(5) == []


def test_threads_may_share_it(path: Path) -> None:
    with Journal.open(path) as journal:

        def write(name: str) -> None:
            for number in range(20):
                journal.record(replace(JOB, job_id=f"{name}-{number}"))

        threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert journal.totals() == JournalTotals(jobs=60, micro_usd=60 * 465)


def _filled(path: Path) -> None:
    with Journal.open(path) as journal:
        for number in range(200):
            journal.record(replace(JOB, job_id=f"job-{number}"))


def _record_many(journal: Journal) -> None:
    for number in range(1000):
        journal.record(replace(JOB, job_id=f"more-{number}"))


def _garbage(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this was never a database" * 100)


def _torn(path: Path) -> None:
    _filled(path)
    content = bytearray(path.read_bytes())
    content[4096:12288] = b"\xa5" * 8192
    path.write_bytes(content)


def _cut(path: Path) -> None:
    _filled(path)
    path.write_bytes(path.read_bytes()[:6000])


@pytest.mark.parametrize("damage", [_garbage, _torn, _cut])
def test_a_damaged_file_is_set_aside_and_never_deleted(
    path: Path, damage: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(damage)
    damage(path)
    content = path.read_bytes()
    with Journal.open(path, now=lambda: NOON) as journal:
        assert journal.set_aside == path.with_name(f"{path.name}.damaged-20260501T120000Z")
        assert journal.set_aside.read_bytes() == content
        assert journal.totals().jobs == 0
        journal.record(JOB)
    assert "journal.sqlite3.damaged" in capsys.readouterr().out
    with Journal.open(path) as journal:
        assert journal.set_aside is None
        assert journal.totals().jobs == 1


def test_two_damaged_files_of_the_same_second_are_both_kept(path: Path) -> None:
    _garbage(path)
    with Journal.open(path, now=lambda: NOON) as journal:
        first = journal.set_aside
    path.write_bytes(b"garbage again, and longer than a page header would be" * 9)
    with Journal.open(path, now=lambda: NOON) as journal:
        second = journal.set_aside
    assert first is not None
    assert second is not None
    assert first != second
    assert first.exists()
    assert second.exists()


@pytest.mark.parametrize("content", [b"", b"this was never a database" * 100])
def test_a_log_left_beside_a_damaged_file_is_set_aside_with_it(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    log = path.with_name(f"{path.name}-wal")
    log.write_bytes(b"foreign pages")
    with Journal.open(path, now=lambda: NOON) as journal:
        assert journal.set_aside is not None
        aside = journal.set_aside
    assert aside.with_name(f"{aside.name}-wal").read_bytes() == b"foreign pages"


def test_a_reader_leaves_a_damaged_file_alone_and_says_what_to_do(path: Path) -> None:
    _garbage(path)
    content = path.read_bytes()
    with pytest.raises(JournalDamagedError) as raised:
        Journal.view(path)
    assert str(path) in str(raised.value)
    assert "restart the provider" in (raised.value.next_step or "")
    assert path.read_bytes() == content


def test_a_full_disk_is_a_typed_error_and_loses_nothing_before_it(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.record(JOB)
        pages = journal._connection.execute("PRAGMA page_count").fetchone()[0]
        journal._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(JournalFullError, match="cannot take another entry") as raised:
            _record_many(journal)
        assert "make room" in (raised.value.next_step or "")
        kept = journal.totals().jobs
        journal._connection.execute("PRAGMA max_page_count = 100000")
        assert journal.record(replace(JOB, job_id="after room was made")) is True
    with Journal.view(path) as journal:
        assert journal.totals().jobs == kept + 1


def test_a_journal_of_a_newer_version_is_refused_and_kept(path: Path) -> None:
    _filled(path)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    for attempt in (Journal.open, Journal.view):
        with pytest.raises(JournalError, match="newer version") as raised:
            attempt(path)
        assert not isinstance(raised.value, JournalDamagedError)
    assert not [file for file in path.parent.iterdir() if "damaged" in file.name]


def test_a_migration_that_fails_leaves_the_journal_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _filled(path)
    steps = (*MIGRATIONS, ("ALTER TABLE jobs ADD COLUMN extra TEXT", "no such statement"))
    with monkeypatch.context() as patched:
        patched.setattr(journal_file, "MIGRATIONS", steps)
        with pytest.raises(JournalError):
            Journal.open(path)
    with Journal.open(path) as journal:
        assert journal.totals().jobs == 200


@pytest.mark.parametrize("changes", [{"prompt_tokens": -1}, {"estimate_micro_usd": -1}])
def test_negative_figures_are_never_written(path: Path, changes: dict[str, int]) -> None:
    with Journal.open(path) as journal:
        with pytest.raises(JournalError, match="CHECK"):
            journal.record(replace(JOB, **changes))  # type: ignore[arg-type]  # figures only
        assert journal.totals().jobs == 0


def test_a_path_that_cannot_be_a_file_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "journal.sqlite3"):
        with pytest.raises(JournalError, match="cannot be used"):
            Journal.open(path)


def test_closing_twice_is_fine_and_using_it_afterwards_a_typed_error(path: Path) -> None:
    journal = Journal.open(path)
    journal.close()
    journal.close()
    with pytest.raises(JournalError):
        journal.totals()
