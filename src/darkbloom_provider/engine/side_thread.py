"""Work for requests that must hold up neither the event loop nor the engine's thread."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Raised:
    error: BaseException


CLOSE_SECONDS = 5.0
"""How long `aclose` waits for the call under way, whose thread else ends with the process."""


class InterruptedCallError(BaseException):
    """Raised in a call that takes too long.

    Not an `Exception`: what is on the way, a template's engine for one, must not take it for a
    fault of its own.
    """


class SideThread:
    """Runs calls one after the other, in the order of `start`. Belongs to the event loop's thread.

    The thread begins with the first call. It is a daemon: a call that never returns must not keep
    the process from ending. What may wait is bounded by whoever starts calls.

    Args:
        name: The thread's.
        clock: Monotonic seconds.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._thread: threading.Thread | None = None
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._pending: set[Future[object]] = set()
        self._closed = False
        self._state = threading.Lock()
        self._interruptible = False
        self._interrupted = False
        self.busy_since: float | None = None
        """When the call under way began, in seconds of the clock; None if there is none."""

    @property
    def alive(self) -> bool:
        """Whether there is a thread that has not ended."""
        return self._thread is not None and self._thread.is_alive()

    def start(
        self, work: Callable[[], Result], done: Callable[[Future[Result]], None]
    ) -> Future[Result]:
        """Run `work` when its turn comes, then call `done` with its outcome in the event loop.

        `cancel()` of what is returned is true if the call had not begun; it never begins then, and
        `done` is not called.
        """
        loop = asyncio.get_running_loop()
        future: Future[Result] = Future()
        self._pending.add(future)  # type: ignore[arg-type] # a future is read only from here on
        tell = functools.partial(self._tell, loop, done)
        future.add_done_callback(tell)
        self._calls.put(functools.partial(self._run, work, future))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        return future

    def interrupt(self) -> None:
        """Raise `InterruptedCallError` in the call under way, once; it may be told twice.

        That ends whatever is written in Python. What is not goes on until it returns.
        """
        with self._state:
            if self._thread is None or not self._interruptible or self._interrupted:
                return
            self._interrupted = True
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread.ident or 0), ctypes.py_object(InterruptedCallError)
            )

    def close(self) -> None:
        """Begin nothing any more. Idempotent; the thread ends after the call under way."""
        if not self._closed:
            self._closed = True
            for future in tuple(self._pending):
                future.cancel()
            self._calls.put(None)

    async def aclose(self) -> None:
        """`close`, and wait for the thread's end, for `CLOSE_SECONDS` at most."""
        self.close()
        waiting = [asyncio.wrap_future(future) for future in self._pending]
        left = (await asyncio.wait(waiting, timeout=CLOSE_SECONDS))[1] if waiting else ()
        for future in waiting:
            # Whose outcome nobody waits for any more.
            future.cancel() if future in left else future.exception()
        if self._thread is not None and not left:
            self._thread.join()

    # ------------------------------------------------------------ in the thread

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # else the last request's text would stay until the next comes

    def _run(self, work: Callable[[], Result], future: Future[Result]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        self.busy_since = self._clock()
        outcome = self._outcome(work)
        self.busy_since = None
        if isinstance(outcome, _Raised):
            future.set_exception(outcome.error)
        else:
            future.set_result(outcome)

    def _outcome(self, work: Callable[[], Result]) -> Result | _Raised:
        """What became of a call, when no interruption of it can come any more."""
        outcome: Result | _Raised
        self._interrupted = False
        try:
            self._interruptible = True
            try:
                outcome = work()
            except InterruptedCallError:
                raise
            except BaseException as error:  # noqa: BLE001 - told to whoever waits
                outcome = _Raised(error)
            with self._state:
                self._interruptible = False
            while self._interrupted:  # too late to be of use, but on its way: it arrives here
                time.sleep(0)
        except InterruptedCallError as error:
            outcome = _Raised(error)
            self._interruptible = False
        return outcome

    def _tell(
        self,
        loop: asyncio.AbstractEventLoop,
        done: Callable[[Future[Result]], None],
        future: Future[Result],
    ) -> None:
        if future.cancelled():  # in the event loop's thread: only there is it cancelled
            self._pending.discard(future)
            return
        try:
            loop.call_soon_threadsafe(self._told, done, future)
        except RuntimeError:
            return  # the loop is closed: nobody listens any more

    def _told(self, done: Callable[[Future[Result]], None], future: Future[Result]) -> None:
        self._pending.discard(future)
        done(future)
