"""A tokenizer as `tokenizer.json` and `tokenizer_config.json` describe it, without transformers.

It does what mlx-lm's wrapper of transformers' tokenizer does, as far as the engine asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import jinja2
from tokenizers import Tokenizer

from darkbloom_provider.engine import chat_template

ChatTemplates = Mapping[str, str]
"""By name; the one that is used if no other is asked for is called `default`."""
DEFAULT: Final = "default"
WITH_TOOLS: Final = "tool_use"

_THINKING: Final = (
    ("<think>", "</think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|think:start|>", "<|think:end|>"),
    ("<|channel>", "<channel|>"),
    ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
)
"""Tokens by which mlx-lm knows a vocabulary of a model that thinks (`tokenizer_utils`, 0.32)."""


class JsonTokenizer:
    """Texts to tokens and back, and conversations to tokens. May be shared by threads.

    Args:
        backend: Read from `tokenizer.json`. It is this object's own from now on.
        special_tokens: Texts by the names that templates know them by, such as `bos_token`.
        templates: The chat templates; none if the model has none.
        eos_token_ids: Tokens that end a completion.
    """

    def __init__(
        self,
        backend: Tokenizer,
        *,
        special_tokens: Mapping[str, str],
        templates: ChatTemplates,
        eos_token_ids: set[int],
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend_tokenizer = backend
        self.eos_token_ids = eos_token_ids
        self._special_tokens = dict(special_tokens)
        self._templates = dict(templates)
        self._compiled: dict[str, jinja2.Template] = {}
        self._thinks = any(
            all(backend.token_to_id(token) is not None for token in tokens) for tokens in _THINKING
        )

    @property
    def has_chat_template(self) -> bool:
        """Whether it can render conversations."""
        return bool(self._templates)

    @property
    def chat_template(self) -> dict[str, str]:
        """The sources of all templates, by name."""
        return dict(self._templates)

    def get_added_vocab(self) -> Mapping[str, int]:
        """The tokens that have a meaning of their own, by their text."""
        added = self.backend_tokenizer.get_added_tokens_decoder()
        return {str(token.content): int(id_) for id_, token in added.items()}

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with those the model wants at its beginning."""
        return list(self.backend_tokenizer.encode(text).ids)

    def decode(
        self,
        tokens: Sequence[int],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """The text of tokens. Spaces stay as they are: nothing here wants them cleaned up."""
        if clean_up_tokenization_spaces:
            raise NotImplementedError("spaces are not cleaned up")
        return str(
            self.backend_tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)
        )

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **variables: object,
    ) -> list[int]:
        """The tokens of a conversation.

        Raises:
            ValueError: There is no conversation, or no template for it.
            Exception: Whatever the template raises.
        """
        if not messages:
            raise ValueError("a conversation has at least one message")
        text = chat_template.render(
            self._template(with_tools=tools is not None),
            messages,
            tools,
            add_generation_prompt=add_generation_prompt,
            variables={**self._special_tokens, "enable_thinking": self._thinks, **variables},
        )
        return list(self.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def _template(self, *, with_tools: bool) -> jinja2.Template:
        name = WITH_TOOLS if with_tools and WITH_TOOLS in self._templates else DEFAULT
        if name not in self._templates:
            raise ValueError("none of the model's chat templates is the default")
        if name not in self._compiled:
            self._compiled[name] = chat_template.compiled(self._templates[name])
        return self._compiled[name]
