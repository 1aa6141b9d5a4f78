"""The one thread that touches MLX: it loads, steps, frees, and says what came of it.

In come commands through a thread-safe queue, drained before every step. Out go batches of plain
values, one hand-over a step for all requests together.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import replace
from pathlib import Path

from darkbloom_provider.engine.errors import EngineClosedError
from darkbloom_provider.engine.library import Library
from darkbloom_provider.engine.requests import EngineSettings, EngineSnapshot
from darkbloom_provider.engine.updates import (
    Cancel,
    Close,
    Command,
    Displaced,
    Expect,
    Failed,
    Finished,
    GoOn,
    Hold,
    Load,
    Recovered,
    Released,
    Reset,
    Submit,
    Unload,
    Update,
)
from darkbloom_provider.engine.watch import Pulse

_BLOCKED_S = 0.05
"""How often requests are let in, if there is room, behind others whose readers are far behind."""
_GATHER_S = 0.01
"""How long an idle engine waits for requests whose prompts are being read: what comes together
begins together, and its prompts are computed together."""


class Worker:
    """Runs in the engine's thread. Only `inbox` and `snapshot` are touched from outside.

    Args:
        settings: Bounds.
        entropy: Random numbers of 64 bits for unseeded sampling.
        post: Hands updates to the event loop; False when there is no loop any more.
        environ: The process's environment, for the libraries (`runtime.prepare`).
        scratch: A private directory for their temporary files; None leaves the system's.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        settings: EngineSettings,
        entropy: Callable[[], int],
        post: Callable[[list[Update]], bool],
        environ: MutableMapping[str, str],
        scratch: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        """Bounded by what the front lets in: a few commands for each open request."""
        self.snapshot = EngineSnapshot()
        """As of the last step. Replaced whole, never changed."""
        self.pulse = Pulse()
        self._progress = 0
        self._post = post
        self._clock = clock
        self._owner: dict[int, str] = {}
        self._expected: dict[int, str] = {}
        """The model of each request that is on its way here."""
        self._library = Library(
            settings=settings,
            entropy=entropy,
            environ=environ,
            expected=lambda model: model in self._expected.values(),
            scratch=scratch,
            clock=clock,
        )
        self._steps = 0
        self._closing = False

    def run(self) -> None:
        """The thread's whole life, until `Close` or until nobody listens any more."""
        try:
            while not self._closing:
                updates = self._take_commands()
                updates += self._library.load_step()
                self._beat()
                updates += self._decode_step()
                self._beat()
                updates += self._library.make_room()
                self._forget_owners(updates)
                self._publish()
                if updates and not self._post(updates):
                    break
        finally:
            self._library.free()

    # ------------------------------------------------------------ commands

    def _take_commands(self) -> list[Update]:
        updates: list[Update] = []
        batches = self._library.batches.values()
        idle = not self._library.loading and not any(batch.busy for batch in batches)
        try:
            command = self.inbox.get(block=idle, timeout=self._until_a_retry())
            until = self._clock() + _GATHER_S
            while True:
                updates += self._obey(command)
                left = until - self._clock() if idle and self._gathering else 0
                command = self.inbox.get(block=left > 0, timeout=max(left, 0))
        except queue.Empty:
            return updates

    @property
    def _gathering(self) -> bool:
        """Whether a request to a model in memory is on its way here."""
        return any(model in self._library.batches for model in self._expected.values())

    def _until_a_retry(self) -> float | None:
        """Seconds until something is to be tried again that no command announces, if there is."""
        batches = self._library.batches.values()
        waits = [batch.probe_in for batch in batches]
        if any(batch.blocked for batch in batches):
            waits.append(_BLOCKED_S)
        return min((wait for wait in waits if wait is not None), default=None)

    def _obey(self, command: Command) -> Iterable[Update]:
        match command:
            case Load():
                self._library.load(command)
                return []
            case Unload(model_id=model_id):
                return self._library.unload(model_id)
            case Expect() | Submit() | Cancel() | Hold() | GoOn():
                return self._serve(command)
            case Reset(model=model, reason=reason):
                for name, batch in self._library.batches.items():
                    batch.reset(reason if name == model else None)
                self._owner.clear()
                self._expected.clear()
                return [Recovered()]
            case Close():
                self._closing = True
                batches = self._library.batches.values()
                closed = EngineClosedError()
                return [update for batch in batches for update in batch.fail_all(closed)]

    def _serve(self, command: Expect | Submit | Cancel | Hold | GoOn) -> Iterable[Update]:
        if isinstance(command, Expect):
            self._expected[command.key] = command.model
            return []
        self._expected.pop(command.key, None)
        if not isinstance(command, Submit):
            batch = self._library.batches.get(self._owner.get(command.key, ""))
            if batch is None:
                return []
            if isinstance(command, Cancel):
                return batch.cancel(command.key)
            batch.hold(command.key, held=isinstance(command, Hold))
            return []
        model = command.request.model
        batch = self._library.batches.get(model)
        if batch is None:
            return [Displaced(command.key)]
        self._owner[command.key] = model
        return batch.add(command.key, command.request, command.prompt, command.guide)

    # ------------------------------------------------------------ steps

    def _beat(self) -> None:
        """Say how far the work is, for the watch."""
        batches = self._library.batches
        model = next((name for name, batch in batches.items() if batch.busy), None)
        progress = sum(batch.progress for batch in batches.values())
        if model is None:
            self.pulse = Pulse()
        elif self.pulse.model is None or progress != self._progress:
            self.pulse = Pulse(model, self._clock())
        self._progress = progress

    def _decode_step(self) -> list[Update]:
        updates: list[Update] = []
        for model, batch in self._library.batches.items():
            before = self.pulse
            if batch.busy:
                self.pulse = replace(before, model=model)
            elif batch.blocked:  # nothing is owed, so nothing is late
                self.pulse = Pulse(model, self._clock())
            else:
                continue
            updates += batch.step()
            self.pulse = before
            self._steps += 1
        return updates

    def _forget_owners(self, updates: list[Update]) -> None:
        for update in updates:
            if isinstance(update, Finished | Failed | Released):
                self._owner.pop(update.key, None)

    def _publish(self) -> None:
        self.snapshot = self._library.snapshot(self._steps)
