"""The local endpoint: OpenAI's and Anthropic's dialects over HTTP, from this machine's own engine.

No network is involved and nobody is paid. Requests take the same path to their events as those of
the network; here the events go out as they come, without the pauses that a coordinator needs.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote

from starlette.types import Receive, Scope, Send

from darkbloom_provider import logs
from darkbloom_provider.control.models import JobCounts
from darkbloom_provider.daemon import local_door
from darkbloom_provider.daemon.answers import Answering, Answers
from darkbloom_provider.daemon.local_caller import Caller, CallerLeftError
from darkbloom_provider.daemon.tally import Tally
from darkbloom_provider.daemon.terms import MAX_JOBS, RefusedError
from darkbloom_provider.engine.errors import EngineClosedError, EngineError
from darkbloom_provider.logs import Secret
from darkbloom_provider.protocol.answers.chat_read import Retelling
from darkbloom_provider.protocol.answers.failure import Failure
from darkbloom_provider.protocol.answers.responses import (
    StreamedResponse,
    WholeResponse,
    repeated,
)
from darkbloom_provider.protocol.requests.document import InvalidRequestError, parse_object
from darkbloom_provider.protocol.requests.request import (
    CHAT_ENDPOINT,
    COMPLETIONS_ENDPOINT,
    MESSAGES_ENDPOINT,
    RESPONSES_ENDPOINT,
    Dialect,
    TextRequest,
)
from darkbloom_provider.protocol.requests.responses import responses_as_chat

MODELS_PATH: Final = "/v1/models"
HEALTH_PATH: Final = "/health"

_DIALECTS: Final[Mapping[str, Dialect]] = {
    CHAT_ENDPOINT: "chat",
    COMPLETIONS_ENDPOINT: "completions",
    MESSAGES_ENDPOINT: "messages",
    # Read as a chat, and told as what it is.
    RESPONSES_ENDPOINT: "chat",
}
_DATA: Final = "data: "
_DONE: Final = f"{_DATA}[DONE]\n\n"

_log = logs.get("daemon.local")


@dataclass(slots=True, eq=False)
class _Held:
    model: str | None = None
    answering: Answering | None = None


class LocalApi:
    """The endpoint as an ASGI application, and the work it has under way.

    Args:
        answers: The path from requests to events.
        tally: Counts what becomes of requests.
        key: What callers must bring.
        models: Ids of the models that can answer.
        new_id: A new request's id.
        tasks: Where callers are watched.
        created: When the models were first served, in Unix seconds.
        now: The time, for responses.
    """

    def __init__(
        self,
        answers: Answers,
        tally: Tally,
        key: Secret,
        *,
        models: Callable[[], Collection[str]],
        new_id: Callable[[], str],
        tasks: asyncio.TaskGroup,
        created: int,
        now: Callable[[], dt.datetime],
        max_jobs: int = MAX_JOBS,
    ) -> None:
        self._answers = answers
        self._tally = tally
        self._key = key
        self._models = models
        self._new_id = new_id
        self._tasks = tasks
        self._created = created
        self._now = now
        self._max_jobs = max_jobs
        self._held: set[_Held] = set()
        self._closed_because: str | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self.broken = asyncio.Event()
        """Set when the engine has died: only a new start helps."""

    # ------------------------------------------------------------ what the supervisor calls

    def close(self, because: str) -> None:
        """Refuse new requests from now on; those that run go on."""
        self._closed_because = because

    def abort_all(self, cause: str) -> None:
        """Stop everything that runs; its callers are told that their answer was cut short."""
        if self._held:
            _log.warning("requests aborted", cause=cause, requests=len(self._held))
        for held in self._held:
            if held.answering is not None:
                held.answering.cancel()

    async def idle(self) -> None:
        """Wait until no request is being served."""
        await self._idle.wait()

    def counts(self) -> JobCounts:
        """Requests and tokens since the start."""
        return self._tally.counts(len(self._held))

    def in_flight(self) -> Mapping[str, int]:
        """Requests being served, by model."""
        return Counter(held.model for held in self._held if held.model is not None)

    # ------------------------------------------------------------ what callers send

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"]
        dialect = _DIALECTS.get(path)
        caller = Caller(receive, send, dialect or "chat", self._new_id())
        key = None if path == HEALTH_PATH else self._key
        refused = local_door.refusal(scope["headers"], key)
        if refused is not None:
            await caller.fail(refused)
        elif dialect is not None and method == "POST":
            await self._serve(caller, path)
        elif dialect is None and (method in {"GET", "HEAD"} or not _is_told(path)):
            await self._tell(caller, path)
        else:
            await caller.fail(Failure(HTTPStatus.METHOD_NOT_ALLOWED, f"{method} is not served"))

    async def _tell(self, caller: Caller, path: str) -> None:
        if path == HEALTH_PATH:
            await caller.answer(_json({"status": "ok"}))
            return
        models = {model: self._model(model) for model in self._models()}
        if path == MODELS_PATH:
            await caller.answer(_json({"object": "list", "data": list(models.values())}))
        elif path.startswith(f"{MODELS_PATH}/"):
            model = models.get(unquote(path.removeprefix(f"{MODELS_PATH}/")))
            if model is None:
                await caller.fail(Failure(HTTPStatus.NOT_FOUND, "the model is not served here"))
            else:
                await caller.answer(_json(model))
        else:
            await caller.fail(Failure(HTTPStatus.NOT_FOUND, "there is nothing at this address"))

    def _model(self, model_id: str) -> dict[str, object]:
        return {
            "id": model_id,
            "object": "model",
            "created": self._created,
            "owned_by": "darkbloom",
        }

    # ------------------------------------------------------------ one request

    async def _serve(self, caller: Caller, endpoint: str) -> None:
        if self._closed_because is not None or len(self._held) >= self._max_jobs:
            self._tally.failed()
            why = self._closed_because or "this provider is busy"
            await caller.fail(Failure(HTTPStatus.SERVICE_UNAVAILABLE, why))
            return
        held = _Held()
        self._held.add(held)
        self._idle.clear()
        try:
            failure = await self._answer(caller, held, endpoint)
            if caller.left:
                self._tally.cancelled()
            elif failure is not None:
                self._tally.failed()
                _log.info("request refused or failed", code=failure.status)
                await caller.fail(failure)
        finally:
            self._held.discard(held)
            if not self._held:
                self._idle.set()

    async def _answer(self, caller: Caller, held: _Held, endpoint: str) -> Failure | None:
        """Answer, and count it; or say why not."""
        try:
            request, response = self._read(await caller.body(), endpoint, caller.request_id)
            held.model = request.model
            await self._generate(caller, held, request, response)
        except CallerLeftError:
            caller.left = True
        except InvalidRequestError as error:
            return Failure(error.status_code, error.what, error.param)
        except (RefusedError, EngineError) as error:
            if isinstance(error, EngineClosedError) and self._closed_because is None:
                self.broken.set()
            return Failure(error.status_code, error.what)
        except Exception as error:  # noqa: BLE001 — a fault in one request must not end the others
            # The text of a foreign exception may quote the request: its type is all that is told.
            _log.error("request failed", error=type(error).__name__)
            return Failure(HTTPStatus.INTERNAL_SERVER_ERROR, "the request could not be served")
        return None

    def _read(
        self, body: bytes, endpoint: str, request_id: str
    ) -> tuple[TextRequest, Retelling | None]:
        """The request, and how its answer is told if it asks for a response."""
        if endpoint != RESPONSES_ENDPOINT:
            return self._answers.read(body, endpoint), None
        document = parse_object(body)
        request = self._answers.read(_json(responses_as_chat(document)), CHAT_ENDPOINT)
        shape = StreamedResponse if request.stream else WholeResponse
        name, created = request_id.replace("-", ""), int(self._now().timestamp())
        answer = shape(name, created, request.model, repeated=repeated(document))
        return request, Retelling(answer, prompt_tokens=0)

    async def _generate(
        self, caller: Caller, held: _Held, request: TextRequest, response: Retelling | None
    ) -> None:
        answering = held.answering = await self._answers.begin(
            caller.request_id, request, native=True
        )
        watcher = self._tasks.create_task(caller.watch(answering.cancel), name="caller")
        try:
            while events := await answering.next():
                if response is not None:
                    events = _retold(events, response, answering)
                if request.stream:
                    done = answering.over and response is None and request.dialect != "messages"
                    await caller.write(_stream(events, done=done), last=answering.over)
                else:
                    (event,) = events
                    await caller.answer(event.removeprefix(_DATA).encode())
        finally:
            watcher.cancel()
            answering.close()
        if not caller.left:
            self._tally.served(answering.usage)


def _is_told(path: str) -> bool:
    """Whether there is something to be read at an address."""
    return path in {HEALTH_PATH, MODELS_PATH} or path.startswith(f"{MODELS_PATH}/")


def _retold(events: list[str], response: Retelling, answering: Answering) -> list[str]:
    """What events of a chat come to in a response."""
    chats = (json.loads(event.removeprefix(_DATA)) for event in events)
    told = [event for chat in chats for event in response.hear(chat)]
    return told + response.end(answering.usage) if answering.over else told


def _stream(events: list[str], *, done: bool) -> bytes:
    text = "".join(f"{event}\n\n" for event in events)
    return (text + _DONE if done else text).encode()


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
