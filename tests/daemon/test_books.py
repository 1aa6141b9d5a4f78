from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from darkbloom_provider.daemon import books
from darkbloom_provider.earnings.journal import (
    JobRecord,
    Journal,
    JournalTotals,
)
from darkbloom_provider.earnings.journal_file import JournalError
from support.daemon_parts import NOW, FakeJournal
from support.manual_time import ManualTime, settle
from support.processes import until


def record(job_id: str) -> JobRecord:
    return JobRecord(
        job_id=job_id,
        finished_at=NOW,
        model="m",
        prompt_tokens=1,
        completion_tokens=2,
        provider_key="key",
        linked=True,
        estimate_micro_usd=3,
    )


async def test_a_record_is_in_the_journal_when_the_books_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    async with (
        asyncio.TaskGroup() as tasks,
        books.opened(lambda: Journal.open(path), tasks, provider_key="key", now=NOW) as kept,
    ):
        kept.record(record("a"))
        kept.record(record("b"))
        kept.record(record("a"))
    with Journal.view(path) as journal:
        assert journal.totals() == JournalTotals(2, 6)
        assert journal.provider_keys() == ("key",)


async def test_the_disk_is_touched_on_the_journals_own_thread_only() -> None:
    journal = FakeJournal()
    async with (
        asyncio.TaskGroup() as tasks,
        books.opened(lambda: journal, tasks, provider_key="key", now=NOW) as kept,
    ):
        kept.record(record("a"))
        await until(lambda: kept.snapshot().jobs == 1, "the journal")
    (name,) = journal.threads
    assert name.startswith("journal")
    assert journal.closed
    assert journal.keys == ["key"]


async def test_a_full_disk_keeps_the_record_tells_of_it_and_is_tried_again() -> None:
    journal, time = FakeJournal(), ManualTime()
    async with (
        asyncio.TaskGroup() as tasks,
        books.opened(lambda: journal, tasks, provider_key="key", now=NOW, sleep=time.sleep) as kept,
    ):
        journal.broken = True
        kept.record(record("a"))
        await until(lambda: kept.snapshot().problem is not None, "the journal")
        seen = kept.snapshot()
        assert (seen.jobs, seen.unwritten) == (0, 1)
        journal.broken = False
        await until(lambda: bool(time._sleepers), "the journal")
        await time.advance(books.RETRY_SECONDS)
        await until(lambda: kept.snapshot().jobs == 1, "the journal")
        seen = kept.snapshot()
        assert (seen.problem, seen.unwritten) == (None, 0)


async def test_a_stuck_disk_holds_up_nobody() -> None:
    journal = FakeJournal()
    journal.stuck = threading.Event()
    async with (
        asyncio.TaskGroup() as tasks,
        books.opened(lambda: journal, tasks, provider_key="key", now=NOW) as kept,
    ):
        for number in range(5):
            kept.record(record(f"job-{number}"))
        await settle()
        assert kept.snapshot().unwritten == 5
        journal.stuck.set()
    assert len(journal.rows) == 5


async def test_the_backlog_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "CAPACITY", 3)
    journal = FakeJournal()
    journal.broken = True
    time = ManualTime()
    async with (
        asyncio.TaskGroup() as tasks,
        books.opened(lambda: journal, tasks, provider_key="key", now=NOW, sleep=time.sleep) as kept,
    ):
        for number in range(10):
            kept.record(record(f"job-{number}"))
        assert kept.snapshot().unwritten == 3
        journal.broken = False
    assert list(journal.rows) == ["job-7", "job-8", "job-9"]


async def test_a_journal_that_cannot_be_opened_stops_the_start() -> None:
    def refuse() -> FakeJournal:
        raise JournalError("The journal cannot be opened")

    with pytest.RaisesGroup(JournalError):
        async with (
            asyncio.TaskGroup() as tasks,
            books.opened(refuse, tasks, provider_key="key", now=NOW),
        ):
            pass
