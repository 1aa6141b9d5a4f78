"""From a request to the tokens of its prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol

from darkbloom_provider.engine.errors import InvalidGenerationError
from darkbloom_provider.engine.requests import GenerationRequest


class Tokenizer(Protocol):
    """What is used of a model's tokenizer: `JsonTokenizer`, or mlx-lm's `TokenizerWrapper`."""

    @property
    def has_chat_template(self) -> bool:
        """Whether it can render conversations."""

    eos_token_ids: set[int]

    def get_added_vocab(self) -> Mapping[str, int]:
        """The tokens that have a meaning of their own, by their text."""

    def encode(self, text: str) -> Iterable[int]:
        """The tokens of a text, with those the model wants at its beginning."""

    def decode(
        self,
        tokens: Sequence[int],
        *,
        skip_special_tokens: bool,
        clean_up_tokenization_spaces: bool,
    ) -> str:
        """The text of tokens."""

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
        **variables: object,
    ) -> Iterable[int]:
        """The tokens of a conversation."""


_NOT_THE_CONSUMERS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Arguments of `apply_chat_template` that say how it works, not what the template sees."""


_PROMPT_END = 16
"""Tokens of a prompt's end that are told: enough for the markers that templates end in."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the model reads it."""

    tokens: list[int] = field(repr=False)
    end: str = field(default="", repr=False)
    """How its text ends; some templates open the model's thoughts there."""


def read(tokenizer: Tokenizer, request: GenerationRequest) -> EncodedPrompt:
    """The prompt of a request, and the text of its end. Takes seconds for a very long one.

    Raises:
        InvalidGenerationError: See `encode`.
    """
    tokens = encode(tokenizer, request)
    return EncodedPrompt(tokens, decoder(tokenizer)(tokens[-_PROMPT_END:]))


def decoder(tokenizer: Tokenizer) -> Callable[[Sequence[int]], str]:
    """The plainest decoder there is: special tokens written out, spaces as they are."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return lambda tokens: str(backend.decode(tokens, skip_special_tokens=False))
    return lambda tokens: str(
        tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )


def encode(tokenizer: Tokenizer, request: GenerationRequest) -> list[int]:
    """The prompt's tokens, through the model's chat template for messages.

    Args:
        tokenizer: The model's tokenizer.
        request: A checked request.

    Raises:
        InvalidGenerationError: 400 if the model has no chat template, if its template or tokenizer
            cannot render this request, or if nothing is left to answer to.
    """
    if request.messages is not None and not tokenizer.has_chat_template:
        raise _refused("this model has no chat template, so it completes prompts only")
    try:
        tokens = _render(tokenizer, request)
    except InvalidGenerationError:
        raise
    except Exception as error:  # noqa: BLE001 - see below
        # Templates are programs of the model's author and raise what they like. Their messages may
        # quote the prompt, so only the kind is told.
        raise _refused(
            "the model's chat template does not accept these messages"
            if request.messages is not None
            else "the model's tokenizer does not accept this prompt",
            why=type(error).__name__,
        ) from None
    if not tokens:
        raise _refused("the prompt is empty")
    return tokens


def _render(tokenizer: Tokenizer, request: GenerationRequest) -> list[int]:
    if request.messages is None:
        return [int(token) for token in tokenizer.encode(request.prompt or "")]
    tools = [dict(tool) for tool in request.tools] if request.tools else None
    taken = _NOT_THE_CONSUMERS.intersection(request.chat_template_kwargs)
    if taken:
        raise _refused(f"chat_template_kwargs may not set {min(taken)}")
    tokens = tokenizer.apply_chat_template(
        template_messages(request.messages),
        tools=tools,
        add_generation_prompt=True,
        **request.chat_template_kwargs,
    )
    return [int(token) for token in tokens]


def template_messages(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as chat templates expect them: text content, tool arguments as objects.

    Raises:
        InvalidGenerationError: Content that is not text.
    """
    return [_message(message) for message in messages]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    rendered = dict(message)
    content = rendered.get("content")
    if content is None:
        rendered["content"] = ""
    elif not isinstance(content, str):
        rendered["content"] = _joined(content)
    if rendered.get("role") == "developer":
        rendered["role"] = "system"
    calls = rendered.get("tool_calls")
    if calls:
        rendered["tool_calls"] = [_with_object_arguments(call) for call in calls]
    return rendered


def _joined(parts: object) -> str:
    if not isinstance(parts, list | tuple):
        raise _refused("message content must be text or a list of parts")
    texts: list[str] = []
    for part in parts:
        if not (isinstance(part, Mapping) and part.get("type") == "text"):
            raise _refused("this model reads text only")
        texts.append(str(part.get("text", "")))
    return "".join(texts)


def _with_object_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            function["arguments"] = json.loads(arguments)
        except ValueError:
            raise _refused("the arguments of a tool call are not valid JSON") from None
    return {**call, "function": function}


def _refused(message: str, *, why: str | None = None) -> InvalidGenerationError:
    return InvalidGenerationError(HTTPStatus.BAD_REQUEST, message, why=why)
