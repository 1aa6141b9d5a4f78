"""From a request to what the engine's thread takes: a read prompt, and a guide if it asks for one.

Reading a very long prompt takes seconds, and so does compiling a hard schema. Both happen beside
the engine's thread and beside the event loop, in the order of arrival: each model reads prompts in
a thread of its own, one at a time, which also bounds the memory that takes; schemas of all models
are compiled in another, so that a hard one holds up other structured requests at most.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from darkbloom_provider.engine import channels, prompt
from darkbloom_provider.engine.breaker import Breaker
from darkbloom_provider.engine.errors import EngineError, GenerationFailedError
from darkbloom_provider.engine.parsers.choice import choose
from darkbloom_provider.engine.prompt import EncodedPrompt, Tokenizer
from darkbloom_provider.engine.requests import GenerationRequest
from darkbloom_provider.engine.side_thread import InterruptedCallError, SideThread

if TYPE_CHECKING:
    from darkbloom_provider.engine.structure import Grammars, Guide


@dataclass(frozen=True, slots=True)
class PromptReader:
    """What preparing needs of a model. Neither part is for the engine's thread."""

    tokenizer: Tokenizer
    grammars: Grammars


def prompt_reader(
    tokenizer: Tokenizer, *, chat_template: str | None, vocabulary_size: int
) -> PromptReader:
    """The reader of a model that was just loaded."""
    from darkbloom_provider.engine.structure import Grammars  # noqa: PLC0415 - numpy
    from darkbloom_provider.engine.thoughts import markers  # noqa: PLC0415 - for the above only
    from darkbloom_provider.engine.token_bytes import token_data  # noqa: PLC0415 - likewise

    vocabulary = tokenizer.get_added_vocab()
    writes = choose(chat_template or "", vocabulary.__contains__)
    return PromptReader(
        tokenizer,
        Grammars(
            tokenizer,
            vocabulary_size,
            markers(writes.thinking, vocabulary, token_data(tokenizer)),
            in_channels=writes.channels and channels.known(vocabulary),
        ),
    )


@dataclass(frozen=True, slots=True)
class Prepared:
    """Ready for the batch."""

    prompt: EncodedPrompt = field(repr=False)
    guide: Guide | None = field(default=None, repr=False)


class Preparing:
    """Prepares the requests to one model. Belongs to the event loop's thread.

    Args:
        reader: Of the model.
        reading: Where its prompts are read.
        compiling: Where schemas are compiled.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        reader: PromptReader,
        reading: SideThread,
        compiling: SideThread,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self.reader = reader
        self.reading = reading
        self.breaker = Breaker()
        """Opens when prompt after prompt has to be given up."""
        self._compiling = compiling

    def start(
        self, request: GenerationRequest, done: Callable[[Prepared | EngineError], None]
    ) -> Preparation:
        """Prepare a request and tell `done`, in the event loop, what came of it."""
        return Preparation(self, self._compiling, request, done)

    def took(self, error: BaseException | None) -> None:
        """A prompt was read, or could not be, because of `error`."""
        if isinstance(error, InterruptedCallError):
            self.breaker.failed(self._clock(), "reading prompt after prompt takes for ever")
        else:
            self.breaker.completed()


class Preparation:
    """Of one request."""

    def __init__(
        self,
        preparing: Preparing,
        compiling: SideThread,
        request: GenerationRequest,
        done: Callable[[Prepared | EngineError], None],
    ) -> None:
        self._preparing = preparing
        self._reader = reader = preparing.reader
        self._compiling = compiling
        self._request = request
        self._done = done
        self._cancelled = False
        self._call: Future[EncodedPrompt] | Future[Guide] = preparing.reading.start(
            functools.partial(prompt.read, reader.tokenizer, request), self._read
        )

    def cancel(self) -> bool:
        """Go no further. True if nothing is under way; else `done` is still called."""
        self._cancelled = True
        return self._call.cancel()

    def _read(self, call: Future[EncodedPrompt]) -> None:
        error = call.exception()
        self._preparing.took(error)
        if error is not None:
            self._done(_failure(error, "the prompt could not be read"))
            return
        read, structure = call.result(), self._request.structure
        if structure is None or self._cancelled:
            self._done(Prepared(read))
            return
        end = None if self._request.messages is None else read.end
        work = functools.partial(self._reader.grammars.compile, structure, end)
        self._call = self._compiling.start(work, functools.partial(self._compiled, read))

    def _compiled(self, read: EncodedPrompt, call: Future[Guide]) -> None:
        error = call.exception()
        if error is not None:
            self._done(_failure(error, "response_format could not be prepared"))
        else:
            self._done(Prepared(read, call.result()))


def _failure(error: BaseException, message: str) -> EngineError:
    if isinstance(error, EngineError):
        return error
    if isinstance(error, InterruptedCallError):
        return GenerationFailedError(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            message,
            why="it took too long",
            next_step="send a shorter one",
        )
    # The kind only: an exception's text may quote what it choked on.
    return GenerationFailedError(
        HTTPStatus.INTERNAL_SERVER_ERROR, message, why=type(error).__name__
    )
