"""Frames to messages and back. Bytes in, a message or a typed error out; nothing else escapes."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, NoReturn, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.protocol.messages import CoordinatorMessage, ProviderMessage, Register

MAX_PROVIDER_FRAME: Final = 10_485_760
"""Bytes of the largest message a coordinator takes; one more and it closes with 1009."""
MAX_COORDINATOR_FRAME: Final = 64 * 1024 * 1024
"""Bytes of the largest message a provider takes."""
MAX_FRAME_VALUES: Final = 100_000
"""Commas and brackets of a frame. No message of this protocol has a fraction of them, and millions
would keep the parser, and with it everyone, busy for seconds."""


class FrameError(DarkbloomError):
    """A frame that is not a message of this protocol. The connection goes on without it."""


class MalformedFrameError(FrameError):
    """Not JSON, not an object, or a field of the wrong type."""

    def __init__(self, reason: str, *, kind: str | None = None) -> None:
        super().__init__("A malformed frame was ignored", why=reason)
        self.kind = kind
        """The frame's `type`, if it could be read."""


class UnknownMessageError(FrameError):
    """A well-formed frame whose `type` this version does not know."""

    def __init__(self, kind: str | None) -> None:
        super().__init__(
            "A message of unknown type was ignored",
            why="it has no type" if kind is None else f"type {kind[:40]!r}",
            next_step="a newer version of darkbloom may know it",
        )
        self.kind = kind


Message = TypeVar("Message")

_FROM_PROVIDER: TypeAdapter[ProviderMessage] = TypeAdapter(
    Annotated[ProviderMessage, Field(discriminator="type")]
)
_FROM_COORDINATOR: TypeAdapter[CoordinatorMessage] = TypeAdapter(
    Annotated[CoordinatorMessage, Field(discriminator="type")]
)


def encode(message: ProviderMessage | CoordinatorMessage) -> str:
    """The message as one compact JSON object. The attestation's raw bytes travel untouched."""
    if isinstance(message, Register) and message.attestation is not None:
        text = message.model_dump_json(exclude_none=True, exclude={"attestation"})
        return f'{text[:-1]},"attestation":{message.attestation}}}'
    return message.model_dump_json(exclude_none=True)


def decode_from_provider(frame: str | bytes) -> ProviderMessage:
    """What a provider said.

    Raises:
        UnknownMessageError: The type is missing or none of ours.
        MalformedFrameError: Not JSON, or a field of the wrong JSON type.
    """
    text, document = _parse(frame)
    if document.get("type") == "register" and document.get("attestation") is not None:
        document["attestation"] = raw_member(text, "attestation")
    return _validate(_FROM_PROVIDER, document)


def decode_from_coordinator(frame: str | bytes) -> CoordinatorMessage:
    """What a coordinator said. Raises as `decode_from_provider`."""
    return _validate(_FROM_COORDINATOR, _parse(frame)[1])


def raw_member(text: str, key: str) -> str | None:
    """The exact text of the value of `key` in the JSON object `text`; the last one if repeated.

    For signed parts: what was signed are the bytes as they travelled, not what they mean.
    `text` must be valid JSON.
    """
    found: str | None = None
    position = _skip_space(text, text.index("{") + 1)
    while text[position] != "}":
        name, position = _DECODER.raw_decode(text, position)
        start = _skip_space(text, _skip_space(text, position) + 1)
        _, end = _DECODER.raw_decode(text, start)
        if name == key:
            found = text[start:end]
        position = _skip_space(text, end)
        if text[position] == ",":
            position = _skip_space(text, position + 1)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _skip_space(text: str, position: int) -> int:
    while text[position] in " \t\r\n":
        position += 1
    return position


def _parse(frame: str | bytes) -> tuple[str, dict[str, Any]]:
    try:
        text = frame if isinstance(frame, str) else frame.decode()
        if text.count(",") + text.count("[") + text.count("{") > MAX_FRAME_VALUES:
            raise MalformedFrameError("too many values")
        document = _DECODER.decode(text)
        if "\\u" in text:
            # Half of a surrogate pair is valid JSON, but no text that could be sent on.
            json.dumps(document, ensure_ascii=False).encode()
    except RecursionError:
        raise MalformedFrameError("nested too deeply") from None
    except ValueError as error:
        # The position is safe to show; the text around it might be a consumer's.
        reason = f"not JSON (character {error.pos})" if hasattr(error, "pos") else "not JSON"
        raise MalformedFrameError(reason) from None
    if not isinstance(document, dict):
        raise MalformedFrameError("not a JSON object")
    return text, _without_nulls(document) if "null" in text else document


def _without_nulls(document: dict[str, Any]) -> dict[str, Any]:
    return {key: _clean(value) for key, value in document.items() if value is not None}


def _clean(value: Any) -> Any:  # noqa: ANN401 — any JSON value
    if isinstance(value, dict):
        return _without_nulls(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value


def _validate(adapter: TypeAdapter[Message], document: dict[str, Any]) -> Message:
    kind = document.get("type")
    try:
        return adapter.validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        known = kind if isinstance(kind, str) else None
        if first["type"].startswith("union_tag"):
            raise UnknownMessageError(known) from None
        location = ".".join(str(part) for part in first["loc"][1:])
        raise MalformedFrameError(f"{kind}.{location}: {first['msg']}", kind=known) from None
    except RecursionError:
        raise MalformedFrameError("nested too deeply") from None
