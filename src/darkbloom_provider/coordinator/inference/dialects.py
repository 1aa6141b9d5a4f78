"""What a provider's answer becomes in the dialect its consumer asked in. Pure.

Chat is what every provider speaks, and passes with the network's fix-ups. Completions and messages
pass as they are where the provider wrote them so; from one that answers everything as a chat they
are told again. A response is always told again: providers only ever see a chat. A whole answer has
the shape of the dialect that was asked for; answers of our own provider carry both shapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from darkbloom_provider.coordinator.inference import relay
from darkbloom_provider.protocol.answers.answer import Answer
from darkbloom_provider.protocol.answers.anthropic import StreamedMessage, WholeMessage
from darkbloom_provider.protocol.answers.chat_read import Retelling
from darkbloom_provider.protocol.answers.completions import StreamedCompletion, WholeCompletion
from darkbloom_provider.protocol.answers.failure import Failure
from darkbloom_provider.protocol.answers.responses import StreamedResponse, WholeResponse
from darkbloom_provider.protocol.messages import InferenceComplete
from darkbloom_provider.protocol.openai import error_body, event, usage

Dialect = Literal["chat", "completions", "messages", "responses"]
"""Whose shapes a consumer reads."""

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """What shapes need to know of the request."""

    dialect: Dialect
    model: str
    prompt_tokens: int
    """Estimated."""
    include_usage: bool = False
    repeated: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What a response says again of its request."""


class Stream(Protocol):
    """One streamed answer. Every method gives whole events, often none."""

    def begin(self) -> list[bytes]:
        """The provider has begun to answer."""
        ...

    def events(self, chunk: str) -> list[bytes]:
        """It said this."""
        ...

    def end(self, completion: InferenceComplete) -> list[bytes]:
        """It has answered, and is paid."""
        ...


def stream(asked: Asked, *, job_id: str, created: int) -> Stream:
    """How a streamed answer is told. `created` is in Unix seconds."""
    match asked.dialect:
        case "chat":
            return _Chat()
        case "completions":
            streamed = StreamedCompletion(
                f"cmpl-{job_id}", created, asked.model, asked.include_usage
            )
            return _Completion(Retelling(streamed, asked.prompt_tokens))
        case "messages":
            message = StreamedMessage(f"msg_{job_id}", asked.model)
            return _Message(Retelling(message, asked.prompt_tokens))
        case "responses":
            return _Response(asked, _plain(job_id), created)


def whole(
    asked: Asked,
    chunks: Sequence[str],
    completion: InferenceComplete,
    *,
    job_id: str,
    created: int,
) -> Document:
    """The one object of an answer that is not streamed, with the usage that was billed."""
    own = _own(asked, chunks)
    if own is not None:
        return own | relay.receipt(completion)
    chat = relay.reply(
        chunks, model=asked.model, job_id=job_id, created=created, completion=completion
    )
    if asked.dialect == "chat":
        return chat
    made = _either(asked, chat) or _retold(_whole(asked, job_id, created), chat, completion)
    return made | _billed(asked, made, completion) | relay.receipt(completion)


def error_document(dialect: Dialect, status: int, kind: str, message: str) -> Document:
    """The body of an error. Anthropic's client tells errors apart by Anthropic's types."""
    if dialect == "messages":
        return Failure(status, message).document("messages")
    return error_body(kind, message)


def error_event(dialect: Dialect, status: int, kind: str, message: str) -> bytes:
    """The event that ends a stream which failed. Nothing follows it."""
    match dialect:
        case "messages":
            return relay.event_bytes(Failure(status, message).event("messages"))
        case "responses":
            error = {"type": kind, "code": kind, "message": message, "param": None}
            document = {"type": "error", "sequence_number": 0, "error": error}
            return relay.event_bytes(event(document))
        case _:
            return relay.error_event(kind, message)


# ---------------------------------------------------------------- streams


class _Chat:
    def begin(self) -> list[bytes]:
        return []

    def events(self, chunk: str) -> list[bytes]:
        event = relay.stream_event(chunk)
        return [] if event is None else [event]

    def end(self, completion: InferenceComplete) -> list[bytes]:
        receipt = relay.receipt_event(completion)
        return [relay.DONE] if receipt is None else [receipt, relay.DONE]


class _Completion:
    _NATIVE = '"text_completion"'
    """Within a text of JSON it would have backslashes."""

    def __init__(self, retelling: Retelling) -> None:
        self._retelling = retelling

    def begin(self) -> list[bytes]:
        return []

    def events(self, chunk: str) -> list[bytes]:
        if self._NATIVE in chunk:
            return _Chat().events(chunk)
        return _hear(self._retelling, chunk)

    def end(self, completion: InferenceComplete) -> list[bytes]:
        return [*_end(self._retelling, completion), *_Chat().end(completion)]


class _Message:
    def __init__(self, retelling: Retelling) -> None:
        self._retelling = retelling
        self._native = False

    def begin(self) -> list[bytes]:
        return []

    def events(self, chunk: str) -> list[bytes]:
        if chunk.startswith("event:"):
            self._native = True
            return _Chat().events(chunk)
        return _hear(self._retelling, chunk)

    def end(self, completion: InferenceComplete) -> list[bytes]:
        # A message ends by itself, without `[DONE]`. Clients pass over events without a name.
        events = [] if self._native else _all(self._retelling.end(completion.usage))
        receipt = relay.receipt(completion)
        return [*events, relay.event_bytes(event(dict(receipt)))] if receipt else events


class _Response:
    def __init__(self, asked: Asked, job: str, created: int) -> None:
        self._more = dict(asked.repeated)
        answer = StreamedResponse(job, created, asked.model, self._more)
        self._retelling = Retelling(answer, asked.prompt_tokens)

    def begin(self) -> list[bytes]:
        return _all(self._retelling.begin())

    def events(self, chunk: str) -> list[bytes]:
        return _hear(self._retelling, chunk)

    def end(self, completion: InferenceComplete) -> list[bytes]:
        self._more.update(relay.receipt(completion))
        return _all(self._retelling.end(completion.usage))


def _hear(retelling: Retelling, chunk: str) -> list[bytes]:
    document = relay.object_of(chunk)
    return [] if document is None else _all(retelling.hear(document))


def _end(retelling: Retelling, completion: InferenceComplete) -> list[bytes]:
    # What passed as it was has ended by itself.
    return _all(retelling.end(completion.usage)) if retelling.begun else []


def _all(events: Sequence[str]) -> list[bytes]:
    return [relay.event_bytes(event) for event in events]


# ---------------------------------------------------------------- whole answers


def _own(asked: Asked, chunks: Sequence[str]) -> Document | None:
    """The answer, if the provider wrote it in the dialect and as nothing else."""
    document = relay.object_of(chunks[0]) if len(chunks) == 1 else None
    if document is None:
        return None
    match asked.dialect, document:
        case ("completions", {"object": "text_completion"}) | ("messages", {"type": "message"}):
            if document.get("object") != "chat.completion":
                return document | {"model": asked.model}
    return None


_TEXT_CHOICE: Final = ("index", "text", "logprobs", "finish_reason")
_MESSAGE: Final = ("id", "type", "role", "model", "content", "stop_reason", "stop_sequence")


def _either(asked: Asked, chat: Document) -> Document | None:
    """The dialect's part of an answer that reads right as a chat and as itself."""
    match asked.dialect, chat:
        case "completions", {"choices": [*choices]}:
            if choices and all(isinstance(c, dict) and "text" in c for c in choices):
                own = [{name: c[name] for name in _TEXT_CHOICE if name in c} for c in choices]
                envelope = {name: chat.get(name) for name in ("id", "created", "model")}
                return {**envelope, "object": "text_completion", "choices": own}
        case "messages", {"type": "message", "content": list()}:
            return {name: chat.get(name) for name in _MESSAGE}
    return None


def _whole(asked: Asked, job_id: str, created: int) -> Answer:
    match asked.dialect:
        case "messages":
            return WholeMessage(f"msg_{job_id}", created, asked.model)
        case "responses":
            return WholeResponse(_plain(job_id), created, asked.model, repeated=asked.repeated)
        case _:
            return WholeCompletion(f"cmpl-{job_id}", created, asked.model)


def _retold(answer: Answer, chat: Document, completion: InferenceComplete) -> Document:
    retelling = Retelling(answer, completion.usage.prompt_tokens)
    retelling.hear(chat)
    (told,) = retelling.end(completion.usage)
    document: Document = json.loads(told.removeprefix(relay.PREFIX))
    return document


def _billed(asked: Asked, made: Document, completion: InferenceComplete) -> Document:
    """The usage that was billed, in the shape of the dialect."""
    if "usage" in made:
        return {}
    used = completion.usage
    if asked.dialect == "messages":
        return {
            "usage": {
                "input_tokens": used.prompt_tokens,
                "output_tokens": used.completion_tokens,
            }
        }
    return {"usage": usage(used.prompt_tokens, used.completion_tokens)}


def _plain(job_id: str) -> str:
    return job_id.replace("-", "")
