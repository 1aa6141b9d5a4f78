"""How much of the waiting prompts one step may take on. Pure: times and counts in, a size out.

A step is one decode step for the running streams and then one slice of the prompts, so the slice
is what the streams wait for. How many tokens fit into a given time depends on the machine, the
model and how long the prompts are already: it is learnt from the steps themselves.
"""

from __future__ import annotations

_SMALLEST = 32
"""Tokens of a slice, whatever it costs: below that, a step's fixed costs are most of it."""
_GRAIN = 8
_FIRST = 128
"""Tokens of the first slice, before anything was measured."""
_WEIGHT = 0.5
"""How much the latest measurement counts. Prompts grow dearer with every slice, so: a lot."""
_LEAST_S = 1e-9
"""Seconds a token takes at least, also for a clock that stands still."""
_PROMPTS_SHARE = 0.5
"""Least part of a step's time that goes to prompts, however slow the streams' part is."""


class PrefillPace:
    """Keeps steps as long as they should be.

    Args:
        busy_s: Seconds a step may take while streams run: their longest stall.
        idle_s: The same while nothing is being decoded: how long newcomers and cancellations wait.
        busy_tokens: Most tokens of all prompts in a slice while streams run.
        idle_tokens: The same while nothing is being decoded. Bounds the memory of a slice.
    """

    def __init__(self, *, busy_s: float, idle_s: float, busy_tokens: int, idle_tokens: int) -> None:
        self._busy_s = busy_s
        self._idle_s = idle_s
        self._busy_tokens = busy_tokens
        self._idle_tokens = idle_tokens
        self._decode_s = 0.0
        self._token_s: float | None = None

    def slice_tokens(self, prompts: int, *, decoding: bool) -> int:
        """Tokens of each of `prompts` prompts that the next step should compute."""
        most = self._busy_tokens if decoding else self._idle_tokens
        if prompts == 0:
            return most
        most = max(most // prompts, 1)
        if self._token_s is None:
            return min(most, max(_FIRST // prompts, 1))
        if decoding:
            seconds = max(self._busy_s - self._decode_s, self._busy_s * _PROMPTS_SHARE)
        else:
            seconds = self._idle_s
        tokens = max(int(seconds / self._token_s), _SMALLEST) // prompts
        return max(1, min(most, tokens // _GRAIN * _GRAIN or tokens))

    def learn(self, seconds: float, *, prompt_tokens: int, decoding: bool) -> None:
        """Take in how long a step took that computed `prompt_tokens` tokens of prompts."""
        if prompt_tokens == 0:
            if decoding:
                self._decode_s = _blend(self._decode_s or None, seconds)
            return
        if prompt_tokens < _SMALLEST // 2:
            return  # mostly fixed costs: it says nothing about a token
        spent = max(seconds - (self._decode_s if decoding else 0.0), seconds * 0.1)
        self._token_s = max(_blend(self._token_s, spent / prompt_tokens), _LEAST_S)


def _blend(known: float | None, measured: float) -> float:
    return measured if known is None else known + _WEIGHT * (measured - known)
