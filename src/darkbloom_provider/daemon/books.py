"""Puts completed jobs into the journal: off the event loop, in order, again until it worked.

A full or stuck disk must neither slow a request nor lose its record while the daemon lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from darkbloom_provider import logs
from darkbloom_provider.earnings.journal import JobRecord, JournalTotals
from darkbloom_provider.errors import DarkbloomError

CAPACITY = 10_000
"""Completed jobs kept in memory while the journal cannot be written."""
RETRY_SECONDS = 5.0

_log = logs.get("daemon.books")
_Result = TypeVar("_Result")


class Journal(Protocol):
    """What the books need of the journal. Methods block; they run on one thread of their own."""

    def record(self, record: JobRecord) -> object:
        """Write a completed job; writing it again changes nothing."""
        ...

    def totals(self) -> JournalTotals:
        """All jobs written so far."""
        ...

    def remember_key(self, public_text: str, at: dt.datetime) -> object:
        """Keep a public key this machine used: its earnings are filed under it."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


@dataclass(frozen=True, slots=True)
class BooksSnapshot:
    """What is in the journal, and what is not yet."""

    jobs: int
    estimate_micro_usd: int
    unwritten: int
    problem: str | None


class Books:
    """The journal's one writer. Made by `opened`."""

    def __init__(
        self,
        journal: Journal,
        thread: ThreadPoolExecutor,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._journal = journal
        self._thread = thread
        self._sleep = sleep
        self._unwritten: deque[JobRecord] = deque()
        self._wake = asyncio.Event()
        self._totals: JournalTotals | None = None
        self._problem: str | None = None

    def record(self, record: JobRecord) -> None:
        """Take a completed job. Returns at once; it is written as soon as the disk allows."""
        if len(self._unwritten) >= CAPACITY:
            lost = self._unwritten.popleft()
            _log.error("journal backlog is full, the oldest record is lost", job_id=lost.job_id)
        self._unwritten.append(record)
        self._wake.set()

    def snapshot(self) -> BooksSnapshot:
        """What is known now, without touching the disk."""
        totals = self._totals
        return BooksSnapshot(
            jobs=0 if totals is None else totals.jobs,
            estimate_micro_usd=0 if totals is None else totals.micro_usd,
            unwritten=len(self._unwritten),
            problem=self._problem,
        )

    async def run(self) -> None:
        """Write what comes, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while not await self.flush():
                await self._sleep(RETRY_SECONDS)

    async def flush(self) -> bool:
        """Try to write everything taken so far. Returns whether nothing is left."""
        try:
            while self._unwritten:
                record = self._unwritten[0]
                await self._on_thread(functools.partial(self._journal.record, record))
                # Cancelled in between, it stays and is written again, which changes nothing.
                if self._unwritten and self._unwritten[0] is record:
                    self._unwritten.popleft()
            self._totals = await self._on_thread(self._journal.totals)
        except (OSError, DarkbloomError) as error:
            if self._problem is None:
                _log.error("the journal cannot be written", error=type(error).__name__)
            self._problem = f"the journal cannot be written ({error})"
            return False
        if self._problem is not None:
            _log.info("the journal is being written again")
        self._problem = None
        return True

    async def _on_thread(self, call: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


@contextlib.asynccontextmanager
async def opened(
    open_journal: Callable[[], Journal],
    tasks: asyncio.TaskGroup,
    *,
    provider_key: str,
    now: dt.datetime,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[Books]:
    """Open the journal on a thread of its own, note this start's key, and write until the end.

    Leaving the block writes what is left, as far as the disk allows, and closes the journal.

    Raises:
        DarkbloomError: As `open_journal`.
    """
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal") as thread:
        journal = await loop.run_in_executor(thread, open_journal)
        try:
            await loop.run_in_executor(thread, journal.remember_key, provider_key, now)
            books = Books(journal, thread, sleep)
            await books.flush()
            writer = tasks.create_task(books.run(), name="journal")
            try:
                yield books
            finally:
                writer.cancel()
                await books.flush()
        finally:
            await loop.run_in_executor(thread, journal.close)
