"""How much a request may cost before anyone has counted its tokens.

Two figures for the prompt. The network's own estimate, a quarter of the UTF-8 bytes of what is
asked, is what routing expects. It is too low to reserve by: the chat template comes on top, tools
are not in it, and digits and many scripts have a token a byte; the owner would lose the difference.
So the reservation is a bound that no honest count exceeds, and what is not used comes back at the
settlement. The consumer's own limit bounds the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from darkbloom_provider.protocol.openai import (
    DEFAULT_MAX_TOKENS,
    InvalidRequestError,
    max_tokens_of,
)
from darkbloom_provider.protocol.signed import canonical

BYTES_PER_TOKEN = 4
MAX_CHOICES = 128
TEMPLATE_TOKENS = 512
"""Room for what chat templates add by themselves: a default system prompt, how to call tools."""

_ASKED = ("messages", "input", "prompt")


def prompt_tokens(document: Mapping[str, Any]) -> int:
    """Estimated prompt tokens of a request body.

    >>> prompt_tokens({"messages": [{"role": "user", "content": "hello"}]})
    8
    """
    total = sum(tokens_of(document[name]) for name in _ASKED if document.get(name) is not None)
    return total or tokens_of(document)


def most_prompt_tokens(document: Mapping[str, Any]) -> int:
    """The most tokens that the prompt of a request body can have.

    A tokenizer makes at most one token of a byte of text, and the marks a template puts around a
    message are fewer than the bytes that its JSON has around the text.
    """
    return len(canonical_bytes(document)) + TEMPLATE_TOKENS


def tokens_of(value: object) -> int:
    """Estimated tokens of one JSON value: none for empty text, else at least one."""
    data = value.encode() if isinstance(value, str) else canonical_bytes(value)
    return max(1, len(data) // BYTES_PER_TOKEN) if data else 0


def output_tokens(document: Mapping[str, Any]) -> int:
    """The most tokens the answer may have: the consumer's limit, times the choices asked for.

    Raises:
        InvalidRequestError: The limit or `n` is not a whole number, or not positive.
    """
    choices = document.get("n")
    if choices is None:
        choices = 1
    if isinstance(choices, bool) or not isinstance(choices, int) or choices < 1:
        raise InvalidRequestError("n must be a whole number of at least 1", param="n")
    if choices > MAX_CHOICES:
        raise InvalidRequestError(f"n must be at most {MAX_CHOICES}", param="n")
    return (max_tokens_of(document) or DEFAULT_MAX_TOKENS) * choices


def canonical_bytes(value: object) -> bytes:
    """Compact JSON with sorted keys and Go's escapes, as the network measures it."""
    return canonical({"v": value})[len('{"v":') : -1]
