from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from darkbloom_provider.engine.errors import InvalidGenerationError
from darkbloom_provider.engine.prompt import encode, template_messages
from darkbloom_provider.engine.requests import GenerationRequest


@dataclass
class Recorder:
    """A tokenizer that remembers what its template was given."""

    has_chat_template: bool = True
    eos_token_ids: set[int] = field(default_factory=set)
    result: list[int] = field(default_factory=lambda: [1, 2])
    problem: Exception | None = None
    seen: list[Any] = field(default_factory=list)

    def encode(self, text: str) -> Iterable[int]:
        self.seen.append(text)
        return self.result

    def decode(self, tokens: Sequence[int], **_options: bool) -> str:
        return ""

    def get_added_vocab(self) -> dict[str, int]:
        return {}

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> Iterable[int]:
        if self.problem is not None:
            raise self.problem
        self.seen.append((messages, options))
        return self.result


def _chat(*messages: dict[str, Any], tools: tuple[dict[str, Any], ...] | None = None) -> Any:
    return GenerationRequest("r", "m", messages=messages, tools=tools)


USER = {"role": "user", "content": "secret words"}


def test_messages_go_through_the_template_and_prompts_do_not() -> None:
    tokenizer = Recorder()
    assert encode(tokenizer, _chat(USER)) == [1, 2]
    assert encode(tokenizer, GenerationRequest("r", "m", prompt="plain")) == [1, 2]
    chat, plain = tokenizer.seen
    assert chat == ([USER], {"tools": None, "add_generation_prompt": True})
    assert plain == "plain"


def test_tools_reach_the_template() -> None:
    tokenizer = Recorder()
    encode(tokenizer, _chat(USER, tools=({"type": "function"},)))
    assert tokenizer.seen[0][1]["tools"] == [{"type": "function"}]


def test_a_template_gets_the_consumers_variables_and_keeps_its_own_arguments() -> None:
    tokenizer = Recorder()
    request = replace(_chat(USER), chat_template_kwargs={"enable_thinking": False})
    encode(tokenizer, request)
    assert tokenizer.seen[0][1]["enable_thinking"] is False
    for name in ("chat_template", "tokenize", "tools", "conversation"):
        with pytest.raises(InvalidGenerationError, match=name):
            encode(tokenizer, replace(request, chat_template_kwargs={name: ""}))


def test_parts_are_joined_nothing_is_empty_text_and_developers_are_the_system() -> None:
    assert template_messages(
        [
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text"}]},
            {"role": "assistant", "content": None},
        ]
    ) == [{"role": "system", "content": "a"}, {"role": "assistant", "content": ""}]


def test_arguments_of_tool_calls_become_objects() -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}
    [message] = template_messages([{"role": "assistant", "content": "", "tool_calls": [call]}])
    assert message["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert call["function"] == {"name": "f", "arguments": '{"a": 1}'}


@pytest.mark.parametrize(
    ("tokenizer", "message", "reason"),
    [
        (Recorder(has_chat_template=False), USER, "no chat template"),
        (Recorder(problem=KeyError("secret words")), USER, "does not accept"),
        (Recorder(result=[]), USER, "empty"),
        (Recorder(), {"role": "user", "content": 3}, "text or a list"),
        (Recorder(), {"role": "user", "content": [{"type": "image_url"}]}, "text only"),
        (
            Recorder(),
            {"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]},
            "not valid JSON",
        ),
    ],
)
def test_what_cannot_be_rendered_is_the_consumers_mistake_and_quotes_nothing(
    tokenizer: Recorder, message: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidGenerationError, match=reason) as caught:
        encode(tokenizer, _chat(message))
    assert caught.value.status_code == 400
    assert "secret words" not in "".join(caught.value.lines())
