"""What a consumer got of an answer, for the case that it leaves."""

from __future__ import annotations

from dataclasses import dataclass

from darkbloom_provider.coordinator.providers.attempts import Piece
from darkbloom_provider.protocol.messages import Usage


@dataclass(slots=True)
class Meter:
    """Tokens that have been relayed to a consumer."""

    usage: Usage
    """At first the estimate of the prompt; from the first count of the provider on, its figure."""
    pieces: int = 0

    def relayed(self, piece: Piece) -> None:
        """One more piece has been written: the provider's running count, else one token."""
        self.pieces += 1
        ours, said = self.usage.completion_tokens, piece.usage
        if said is None:
            self.usage = self.usage.model_copy(update={"completion_tokens": ours + 1})
        elif said.completion_tokens >= ours:
            self.usage = said
        else:
            self.usage = said.model_copy(update={"completion_tokens": ours})
