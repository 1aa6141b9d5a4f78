"""A structure within harmony's channels: free thoughts in `analysis`, the answer in `final`. Pure.

The whole completion is one grammar of llguidance, the headers of the messages among it. Source:
OpenAI's harmony response format.
"""

from __future__ import annotations

import json
from collections.abc import Container

from darkbloom_provider.engine.parsers.scan import LAYOUT

_ANSWER = "answer"
_MESSAGES = f"""start: thought* <|channel|> "final" <|message|> @{_ANSWER}
thought: <|channel|> "analysis" <|message|> TEXT <|end|> <|start|> "assistant"
TEXT: /(.|\\n)*/
"""
"""Tokens that have a meaning of their own are no text: only `<|end|>` ends a thought."""
_TOKENS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>")


def known(vocabulary: Container[str]) -> bool:
    """Whether each marker is one token of a model.

    Args:
        vocabulary: The tokens that have a meaning of their own.
    """
    return all(token in vocabulary for token in _TOKENS)


def opens(prompt_end: str) -> bool:
    """Whether what continues a prompt with this end begins with a message's header."""
    return not prompt_end.rstrip(LAYOUT).endswith("<|message|>")


def around(grammar: str) -> str:
    """The grammar of a completion whose answer obeys `grammar`, llguidance's for one schema."""
    [answer] = json.loads(grammar)["grammars"]
    return json.dumps({"grammars": [{"lark_grammar": _MESSAGES}, {**answer, "name": _ANSWER}]})
