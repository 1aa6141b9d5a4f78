"""Rendering a model's chat template, a program of the model's author, in a sandbox.

Templates are written for transformers and find here what they find there: its sandbox, its options,
filters and names. Source: `transformers.utils.chat_template_utils` of 5.23, with which the tests
compare every output.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names that a message's reasoning goes by; templates read the first, gpt-oss's the second."""


def compiled(source: str, now: Callable[[], dt.datetime] = dt.datetime.now) -> jinja2.Template:
    """A template, ready to `render`.

    Args:
        source: Jinja.
        now: Local time, for templates that write the date.

    Raises:
        jinja2.TemplateError: It is not one.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise,
        strftime_now=lambda form: now().strftime(form),
        dict=_Dictionary(),
        namespace=_Namespace,
    )
    return environment.from_string(source)


def render(
    template: jinja2.Template,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    *,
    add_generation_prompt: bool,
    variables: Mapping[str, object],
) -> str:
    """The text of a conversation.

    Args:
        template: Of the model.
        messages: The conversation; fields that are None count as absent.
        tools: JSON schemas of functions.
        add_generation_prompt: Whether to go on to where the assistant begins.
        variables: More for the template: special tokens by their names, the consumer's arguments.

    Raises:
        Exception: Whatever the template raises.
    """
    return template.render(
        messages=[_with_reasoning(_plain(_present(message))) for message in messages],
        tools=_plain(tools),
        documents=None,
        add_generation_prompt=add_generation_prompt,
        **{name: _plain(value) for name, value in variables.items()},
    )


def _present(message: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if value is not None}


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON
    """JSON of plain types alone: methods of others are a way out of the sandbox."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    raise TypeError(f"a template takes JSON only, not {type(value).__name__}")


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is. The filter of Jinja would write it for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


class _GenerationBlocks(Extension):
    """`{% generation %}` marks for training what the assistant said; here it is what it holds."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's interface

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call, which gives it a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Macro) -> str:
        return str(caller())


class _Dictionary:
    """`dict` without the attributes of the class."""

    def __call__(self, *arguments: Any, **named: Any) -> dict[Any, Any]:  # noqa: ANN401 - of `dict`
        return dict(*arguments, **named)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:  # noqa: ANN401 - of `dict.fromkeys`
        """As in `dict`."""
        return dict.fromkeys(*arguments)


class _Namespace(Namespace):
    """Jinja's, without names that begin with an underscore."""

    def __init__(*arguments: Any, **named: Any) -> None:  # noqa: ANN401 - so that `self` may be a name
        self, *rest = arguments
        attributes = dict(*rest, **named)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:  # noqa: ANN401 - whatever templates keep
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError("a namespace keeps no names that begin with an underscore")
