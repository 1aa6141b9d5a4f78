"""From a request to the events of its answer: one path for the network and the local endpoint.

A request is one generation or more (`n`, lists of prompts). The text of each goes through the
model's parser into the shape of the request's dialect; where the events go then, sealed into
chunks or over HTTP, is up to the caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from darkbloom_provider.daemon.generations import generations_of
from darkbloom_provider.daemon.tally import Tally
from darkbloom_provider.daemon.terms import Generation, Inference, Offer, RefusedError
from darkbloom_provider.engine import requests as engine
from darkbloom_provider.engine.errors import EngineError
from darkbloom_provider.engine.parsers.choice import PLAIN, ParserFactory, choose
from darkbloom_provider.engine.parsers.forced import ForcedCallParser
from darkbloom_provider.engine.parsers.parser import Parser
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.protocol.answers.answer import Answer, answer_to
from darkbloom_provider.protocol.answers.gathered import TokenLogprob
from darkbloom_provider.protocol.messages import Usage
from darkbloom_provider.protocol.output import Piece, ToolCallEnded
from darkbloom_provider.protocol.requests.document import InvalidRequestError, parse_object
from darkbloom_provider.protocol.requests.read import request_of
from darkbloom_provider.protocol.requests.request import TextRequest

_News = tuple["_Choice", "engine.Delta | Exception | None"]
"""More of a choice, the reason why it failed, or None at its end."""


class Answers:
    """Reads requests and begins their answers.

    Args:
        inference: The engine.
        offer: What may be asked for.
        tally: Counts parameters nobody knows.
        tasks: Where the readers of requests with several answers run.
        now: The time, for the answers' dates.
    """

    def __init__(
        self,
        inference: Inference,
        offer: Offer,
        tally: Tally,
        tasks: asyncio.TaskGroup,
        now: Callable[[], dt.datetime],
    ) -> None:
        self._inference = inference
        self._offer = offer
        self._tally = tally
        self._tasks = tasks
        self._now = now
        self._writes: dict[str, tuple[engine.LoadedModel, ParserFactory]] = {}

    def read(self, body: bytes, endpoint: str | None = None) -> TextRequest:
        """Read and check a request.

        Args:
            body: The JSON text.
            endpoint: Where it was sent to; None if the body says so itself.

        Raises:
            InvalidRequestError: With the parameter's name and the HTTP status to answer.
            RefusedError: 404, the model is not served.
        """
        document = parse_object(body)
        if endpoint is not None:
            document["endpoint"] = endpoint
        request = request_of(document, self._offer.served)
        if request.model not in self._offer.models():
            raise RefusedError("the model is not served here", HTTPStatus.NOT_FOUND)
        if request.choices > self._offer.max_choices:
            raise InvalidRequestError(
                f"{request.choices} answers are too many for one request, "
                f"{self._offer.max_choices} are served",
                param="prompt" if request.n == 1 else "n",
            )
        self._tally.ignored(request.ignored)
        return request

    async def begin(
        self, request_id: str, request: TextRequest, *, native: bool = False
    ) -> Answering:
        """Have the model in memory and start all generations, or none. See `answer_to`.

        Raises:
            RefusedError: 503, the model could not be loaded.
            EngineError: The engine does not take it.
        """
        try:
            await self._offer.prepare(request.model)
        except EngineError:
            raise
        except DarkbloomError:
            raise RefusedError(
                "the model could not be loaded", HTTPStatus.SERVICE_UNAVAILABLE
            ) from None
        choices: list[_Choice] = []
        try:
            for index, wanted in enumerate(generations_of(request_id, request)):
                choices.append(_Choice(index, self._inference.submit(wanted)))
        except BaseException:
            for choice in choices:
                choice.generation.cancel()
            raise
        created = int(self._now().timestamp())
        answer = answer_to(request, request_id=request_id, created=created, native=native)
        factory = self._factory(request)

        def parser_for(choice: _Choice) -> Parser:
            call_id = _call_ids(request, request_id, choice.index)
            parser = factory.parser(
                call_id=call_id,
                tools=request.tools,
                thinking_open=factory.thinking_open(choice.generation.prompt_end),
            )
            if request.tool_choice.mode == "required":
                return ForcedCallParser(request.tools, request.tool_choice.name, call_id, parser)
            return parser

        return Answering(request, answer, choices, parser_for, self._tasks)

    def _factory(self, request: TextRequest) -> ParserFactory:
        # A prompt is continued as it stands: markers mean nothing there.
        if request.prompts:
            return PLAIN
        model = self._inference.loaded(request.model)
        if model is None:
            return PLAIN
        known = self._writes.get(request.model)
        if known is None or known[0] is not model:
            factory = choose(model.chat_template or "", model.special_tokens.__contains__)
            known = self._writes[request.model] = (model, factory)
        structured = request.response_format is not None or request.tool_choice.mode == "required"
        return known[1].held_to_a_structure if structured else known[1]


@dataclass(slots=True, eq=False)
class _Choice:
    index: int
    generation: Generation
    completion_tokens: int = 0
    """Up to the text that was taken."""
    parser: Parser | None = field(default=None, repr=False)
    cut: bool = False
    """Ended by us: it has said all that was asked for."""


class Answering:
    """One answer under way. `close` it in any case; what still generates is then cancelled."""

    def __init__(
        self,
        request: TextRequest,
        answer: Answer,
        choices: Sequence[_Choice],
        parser_for: Callable[[_Choice], Parser],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._request = request
        self._answer = answer
        self._choices = choices
        self._parser_for = parser_for
        self._open = len(choices)
        self._begun = False
        self._single: AsyncIterator[engine.Delta] | None = None
        self._readers: list[asyncio.Task[None]] = []
        # Holds one: what comes while nobody takes it is coalesced by the generations.
        self._mailbox: asyncio.Queue[_News] = asyncio.Queue(maxsize=1)
        if len(choices) == 1:
            self._single = aiter(choices[0].generation)
        else:
            self._readers = [
                tasks.create_task(self._read(choice), name=f"choice {choice.index}")
                for choice in choices
            ]

    @property
    def over(self) -> bool:
        """Whether everything was told."""
        return not self._open

    @property
    def usage(self) -> Usage:
        """Tokens up to the events told so far. A prompt with several answers counts once."""
        return Usage(
            prompt_tokens=sum(
                choice.generation.usage.prompt_tokens
                for choice in self._choices[:: self._request.n]
            ),
            completion_tokens=sum(choice.completion_tokens for choice in self._choices),
        )

    async def next(self) -> list[str]:
        """The next events of the answer; empty when it is over.

        Raises:
            EngineError: The engine refused or failed.
            RefusedError: 500, a generation ended without being whole.
        """
        while self._open:
            events = self._take(*await self._news())
            if events:
                return events
        return []

    async def pause(self, seconds: float) -> None:
        """Let text gather for so long, or until there is no more to come."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for choice in self._choices:
                    await choice.generation.released()

    def cancel(self) -> None:
        """Stop generating; `next` then ends with an error. Idempotent."""
        for choice in self._choices:
            choice.generation.cancel()

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        self.cancel()
        for reader in self._readers:
            reader.cancel()

    # ------------------------------------------------------------ from the generations

    async def _news(self) -> _News:
        if self._single is None:
            return await self._mailbox.get()
        try:
            return self._choices[0], await anext(self._single)
        except StopAsyncIteration:
            return self._choices[0], None

    async def _read(self, choice: _Choice) -> None:
        try:
            async for delta in choice.generation:
                await self._mailbox.put((choice, delta))
            await self._mailbox.put((choice, None))
        except Exception as error:  # noqa: BLE001 — whatever it is, it ends this answer only
            await self._mailbox.put((choice, error))

    # ------------------------------------------------------------ into events

    def _take(self, choice: _Choice, news: engine.Delta | Exception | None) -> list[str]:
        if isinstance(news, Exception):
            raise news
        if choice.parser is None:
            choice.parser = self._parser_for(choice)
        if news is None:
            return self._finish(choice, choice.parser)
        choice.completion_tokens = news.completion_tokens
        pieces = choice.parser.feed(news.text)
        if not self._request.parallel_tool_calls:
            pieces = self._up_to_one_call(choice, pieces)
        return self._begin() + self._answer.pieces(pieces, choice.index, _logprobs(news.logprobs))

    def _begin(self) -> list[str]:
        if self._begun:
            return []
        self._begun = True
        return self._answer.start(self.usage.prompt_tokens)

    def _finish(self, choice: _Choice, parser: Parser) -> list[str]:
        generation = choice.generation
        reason = "stop" if choice.cut else generation.finish_reason
        if reason is None:
            raise RefusedError("the answer was cut short", HTTPStatus.INTERNAL_SERVER_ERROR)
        choice.completion_tokens = generation.usage.completion_tokens
        pieces = [] if choice.cut else parser.finish()
        if not self._request.parallel_tool_calls:
            pieces = self._up_to_one_call(choice, pieces)
        events = self._begin() + self._answer.pieces(pieces, choice.index)
        events += self._answer.finish(reason, choice.index, generation.stop_sequence)
        self._open -= 1
        if not self._open:
            events += self._answer.end(self.usage)
        return events

    def _up_to_one_call(self, choice: _Choice, pieces: list[Piece]) -> list[Piece]:
        """Nothing may follow a call where one at a time was asked for: there it is cut."""
        if choice.cut:
            return []
        for position, piece in enumerate(pieces, start=1):
            if isinstance(piece, ToolCallEnded):
                choice.cut = True
                choice.generation.cancel()
                return pieces[:position]
        return pieces


def _call_ids(request: TextRequest, request_id: str, choice: int) -> Callable[[int], str]:
    prefix = "toolu_" if request.dialect == "messages" else "call_"

    def call_id(index: int) -> str:
        name = f"{request_id}/{choice}/{index}".encode()
        return prefix + hashlib.blake2b(name, digest_size=12).hexdigest()

    return call_id


def _logprobs(tokens: Iterable[engine.TokenLogprob]) -> list[TokenLogprob]:
    return [
        TokenLogprob(
            text=_text(token.chosen.data),
            logprob=token.chosen.logprob,
            top=tuple(TokenLogprob(_text(t.data), t.logprob, data=t.data) for t in token.top),
            data=token.chosen.data,
        )
        for token in tokens
    ]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
