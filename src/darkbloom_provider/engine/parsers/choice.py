"""Which parser reads a model's answers: by its chat template and vocabulary, never by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from darkbloom_provider.engine.parsers import calls
from darkbloom_provider.engine.parsers.arguments import Tools
from darkbloom_provider.engine.parsers.calls import CallFormat
from darkbloom_provider.engine.parsers.harmony import HarmonyParser
from darkbloom_provider.engine.parsers.parser import CallId, Parser, PlainParser
from darkbloom_provider.engine.parsers.scan import LAYOUT
from darkbloom_provider.engine.parsers.tagged import (
    GEMMA_THOUGHT,
    THINK,
    TaggedParser,
    Thinking,
)


@dataclass(frozen=True, slots=True)
class ParserFactory:
    """How a model writes. Made once for a model, makes a parser for each of its answers."""

    thinking: Thinking | None = None
    calls: CallFormat | None = None
    bare_calls: bool = False
    """Whether an answer that is a JSON object may be a call."""
    channels: bool = False
    """Whether the model writes in harmony's channels."""

    @property
    def held_to_a_structure(self) -> ParserFactory:
        """The same for answers that must be JSON: thoughts come before them, calls do not."""
        return ParserFactory(thinking=self.thinking, channels=self.channels)

    @property
    def calls_tools(self) -> bool:
        """Whether a format of tool calls is known for the model."""
        return self.channels or self.calls is not None

    def thinking_open(self, prompt: str) -> bool:
        """Whether the model begins in its thoughts: the rendered prompt ends in their marker."""
        return self.thinking is not None and prompt.rstrip(LAYOUT).endswith(self.thinking.opens)

    def parser(
        self,
        *,
        call_id: CallId,
        tools: Sequence[Mapping[str, Any]] = (),
        thinking_open: bool = False,
    ) -> Parser:
        """A parser for one answer.

        Args:
            call_id: The id of the answer's call with an index.
            tools: What the request offers, in OpenAI's form. Empty: nothing is read as a call.
            thinking_open: Whether the prompt ended within thoughts, see `thinking_open`.
        """
        offered = Tools(tools)
        if self.channels:
            return HarmonyParser(tools=offered, call_id=call_id)
        if self.thinking is None and (self.calls is None or not offered):
            return PlainParser()
        return TaggedParser(
            thinking=self.thinking,
            calls=self.calls,
            tools=offered,
            call_id=call_id,
            thinking_open=thinking_open,
            bare=self.bare_calls,
        )


PLAIN = ParserFactory()
_HARMONY = ParserFactory(channels=True)
_HARMONY_TOKENS = ("<|channel|>", "<|message|>", "<|start|>")


def choose(chat_template: str, vocabulary_has: Callable[[str], bool]) -> ParserFactory:
    """The factory of parsers for a model.

    A tool format counts if the template writes calls in it, for then the model was trained on it;
    where templates are silent, a format's own tokens count.

    Args:
        chat_template: The model's template; empty if it has none.
        vocabulary_has: Whether a text is one token of the model.
    """
    if all(vocabulary_has(token) or token in chat_template for token in _HARMONY_TOKENS):
        return _HARMONY
    form = _call_format(chat_template, vocabulary_has)
    return ParserFactory(
        thinking=_thinking(chat_template, vocabulary_has),
        calls=form,
        bare_calls=form is calls.LLAMA,
    )


def _thinking(template: str, vocabulary_has: Callable[[str], bool]) -> Thinking | None:
    for thinking in (THINK, GEMMA_THOUGHT):
        if vocabulary_has(thinking.token) and vocabulary_has(thinking.closes):
            return thinking
        # Some vocabularies spell `<think>` in several tokens; then the template says it.
        if thinking.opens in template and thinking.closes in template:
            return thinking
    return None


def _call_format(template: str, vocabulary_has: Callable[[str], bool]) -> CallFormat | None:
    # GLM puts tags of its own between Qwen's markers; they are not read here.
    qwen: tuple[CallFormat, ...] = () if "<arg_key>" in template else (calls.QWEN,)
    for form in (calls.MINIMAX, calls.GEMMA4, calls.FUNCTION_GEMMA, *qwen, calls.PYTHONIC):
        if form.opens in template:
            return form
    if calls.LLAMA.opens in template or vocabulary_has(calls.LLAMA.opens):
        return calls.LLAMA
    for form in (calls.PYTHONIC, *qwen, calls.GEMMA4):
        if vocabulary_has(form.opens) and vocabulary_has(form.closes or form.opens):
            return form
    # Gemma 3 has no tokens of its own for calls; its guide asks it for a block of Python.
    return calls.TOOL_CODE if vocabulary_has("<start_of_turn>") else None
