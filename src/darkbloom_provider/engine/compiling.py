"""Compiling structures beside the event loop and beside the engine's thread.

One thread does it, so that a hard schema holds up other structured requests at most. What may wait
is bounded by the requests that the engine lets in.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING

from darkbloom_provider.engine.errors import EngineError, GenerationFailedError
from darkbloom_provider.engine.requests import Structure

if TYPE_CHECKING:
    from darkbloom_provider.engine.structure import Grammars, Guide


class Compiling:
    """Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._pending: set[asyncio.Future[Guide]] = set()

    def start(
        self,
        grammars: Grammars,
        structure: Structure,
        done: Callable[[Guide | EngineError], None],
    ) -> None:
        """Compile `structure` and call `done` on the loop with the guide, or why there is none."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "darkbloom-grammars")
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._thread, grammars.compile, structure)
        self._pending.add(future)
        future.add_done_callback(functools.partial(self._done, done))

    async def aclose(self) -> None:
        """Wait for what is being compiled and end the thread."""
        if self._pending:
            await asyncio.wait(self._pending)
        if self._thread is not None:
            self._thread.shutdown()

    def _done(
        self, done: Callable[[Guide | EngineError], None], future: asyncio.Future[Guide]
    ) -> None:
        self._pending.discard(future)
        if future.cancelled():  # the loop is being torn down
            return
        error = future.exception()
        if error is None:
            done(future.result())
        elif isinstance(error, EngineError):
            done(error)
        else:
            failure = GenerationFailedError(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                "response_format could not be prepared",
                why=type(error).__name__,
            )
            done(failure)
