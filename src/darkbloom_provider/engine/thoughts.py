"""Where a completion's thoughts end, token by token. Pure.

A structure holds for the answer, not for the thoughts before it: those are told apart here by the
markers of the model's family, as the parsers do on the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from darkbloom_provider.engine.parsers.scan import LAYOUT
from darkbloom_provider.engine.parsers.tagged import Thinking


class Phase(Enum):
    """How far a completion's thoughts have come."""

    POSSIBLE = auto()
    """Nothing was said yet; the model may open its thoughts."""
    OPEN = auto()
    OVER = auto()


@dataclass(frozen=True, slots=True)
class Markers:
    """The markers of thoughts, in one model's vocabulary."""

    thinking: Thinking
    opener: int | None
    """The token that opens thoughts; None if the vocabulary has none, and then the model gets no
    chance to open them by itself."""
    token_data: Callable[[int], bytes]
    """What a token writes."""

    def thoughts(self, prompt_end: str) -> Thoughts:
        """The thoughts of a completion that continues a prompt with this end."""
        end = prompt_end.rstrip(LAYOUT)
        if end.endswith(self.thinking.opens):
            return Thoughts(self, Phase.OPEN)
        if self.opener is None or end.endswith(self.thinking.closes):
            return Thoughts(self, Phase.OVER)
        return Thoughts(self, Phase.POSSIBLE)


def markers(
    thinking: Thinking | None,
    vocabulary: Mapping[str, int],
    token_data: Callable[[int], bytes],
) -> Markers | None:
    """The markers of a family that thinks; None for one that does not.

    Args:
        thinking: The family's markers.
        vocabulary: The tokens that have a meaning of their own.
        token_data: What a token writes.
    """
    if thinking is None:
        return None
    return Markers(thinking, vocabulary.get(thinking.token), token_data)


class Thoughts:
    """Of one completion."""

    __slots__ = ("_closes", "_markers", "_tail", "phase")

    def __init__(self, markers: Markers, phase: Phase) -> None:
        self._markers = markers
        self._closes = markers.thinking.closes.encode()
        self._tail = b""
        self.phase = phase

    @property
    def opener(self) -> int | None:
        """The token that may open them now."""
        return self._markers.opener if self.phase is Phase.POSSIBLE else None

    def take(self, token: int) -> bool:
        """Whether a token belongs to the thoughts, their markers included.

        Raises:
            ValueError: The token closes the thoughts and begins the answer as well.
        """
        match self.phase:
            case Phase.OVER:
                return False
            case Phase.POSSIBLE:
                self.phase = Phase.OPEN if token == self._markers.opener else Phase.OVER
                return self.phase is Phase.OPEN
            case Phase.OPEN:
                self._read(self._markers.token_data(token))
                return True

    def _read(self, data: bytes) -> None:
        text = self._tail + data
        at = text.find(self._closes)
        if at < 0:
            self._tail = text[-len(self._closes) :]
            return
        self.phase = Phase.OVER
        if text[at + len(self._closes) :].strip(LAYOUT.encode()):
            raise ValueError("the thoughts' end has no token of its own")
