"""The reader's end of one completion, on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from darkbloom_provider.engine.errors import EngineError
from darkbloom_provider.engine.requests import Delta, FinishReason, TokenLogprob, Usage
from darkbloom_provider.engine.updates import (
    Failed,
    Finished,
    Progress,
    Released,
    RequestUpdate,
    Started,
)

FAR_BEHIND: Final = 256
"""Tokens nobody has read at which no more are computed until somebody reads."""


class Generation:
    """An asynchronous iterator over the text of one completion.

    Text that has come since the last pull is one `Delta`. A slow reader holds up nobody but itself:
    `FAR_BEHIND` tokens ahead of it, its completion stands still. Belongs to the loop that submitted
    the request.

    Raises (from iteration):
        EngineError: The request was refused or failed. Text that came before is delivered first.
    """

    def __init__(
        self,
        request_id: str,
        cancel: Callable[[], None],
        hold: Callable[[bool], None] = lambda _held: None,
    ) -> None:
        """For the engine only.

        Args:
            request_id: Whose completion this is.
            cancel: Stops generating; called once at most.
            hold: Stops computing for the time being (True), or goes on (False).
        """
        self.request_id = request_id
        self.prompt_tokens: int | None = None
        """Known once the prompt was read; before the first `Delta` at the latest."""
        self.finish_reason: FinishReason | None = None
        """Set when the completion is whole; stays None if it was cancelled or failed."""
        self.stop_sequence: str | None = None
        """The stop string that ended it, if one did."""
        self.prompt_end = ""
        """How the rendered prompt ends; known when `prompt_tokens` is."""
        self._cancel = cancel
        self._hold = hold
        self._held = False
        self._unread_from = 0
        """The token with which what waits to be read began."""
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._completion_tokens = 0
        self._error: EngineError | None = None
        self._ended = False
        self._wake = asyncio.Event()
        self._released = asyncio.Event()

    @property
    def usage(self) -> Usage:
        """Tokens so far; final after the iterator has ended."""
        return Usage(self.prompt_tokens or 0, self._completion_tokens)

    @property
    def ended(self) -> bool:
        """Whether it was cancelled, failed or is whole."""
        return self._ended

    def cancel(self) -> None:
        """Stop generating. Idempotent; without effect on a completion that is whole already.

        The iterator ends at once and delivers nothing more. The engine lets go of the request
        within two of its steps, see `released`.
        """
        if self._ended:
            return
        self._ended = True
        self._pieces.clear()
        self._logprobs.clear()
        self._wake.set()
        self._cancel()

    async def released(self) -> None:
        """Wait until the engine holds nothing of this request any more."""
        await self._released.wait()

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Delta:
        while not self._pieces and not self._logprobs:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        if self._held:
            self._held = False
            if not self._ended:
                self._hold(False)
        delta = Delta("".join(self._pieces), self._completion_tokens, tuple(self._logprobs))
        self._pieces.clear()
        self._logprobs.clear()
        return delta

    def apply(self, update: RequestUpdate) -> None:
        """Take in what the engine says. Called by the engine, in the loop's thread."""
        match update:
            case Started(prompt_tokens=prompt_tokens, prompt_end=prompt_end):
                self.prompt_tokens = prompt_tokens
                self.prompt_end = prompt_end
            case Progress(text=text, completion_tokens=completion_tokens, logprobs=logprobs):
                self._completion_tokens = completion_tokens
                if not self._ended:
                    self._take(text, logprobs)
            case Finished(reason=reason, usage=usage, stop=stop):
                self._completion_tokens = usage.completion_tokens
                if not self._ended:
                    self.finish_reason = reason
                    self.stop_sequence = stop
                self._end()
            case Failed(error=error):
                if not self._ended:
                    self._error = error
                self._end()
            case Released():
                self._end()
        self._wake.set()

    def _take(self, text: str, logprobs: Sequence[TokenLogprob]) -> None:
        # Counted from what can be read: a reader whom no text has reached yet is not behind.
        if not self._pieces and not self._logprobs:
            self._unread_from = self._completion_tokens
        self._logprobs += logprobs
        if text:
            self._pieces.append(text)
        unread = bool(self._pieces or self._logprobs)
        behind = self._completion_tokens - self._unread_from
        if unread and behind >= FAR_BEHIND and not self._held:
            self._held = True
            self._hold(True)

    def _end(self) -> None:
        self._ended = True
        self._released.set()
