"""How much of the waiting prompts one step may take on. Pure: times and counts in, a size out.

Running streams wait for one slice of the prompts and then for their own step. How many tokens fit
into a given time depends on the machine, the model and how long the prompts are already: it is
learnt from the steps themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

_SMALLEST = 32
"""Tokens of a slice, whatever it costs: below that, a step's fixed costs are most of it."""
_GRAIN = 8
_FIRST = 128
"""Tokens of the first slice, before anything was measured."""
_WEIGHT = 0.5
"""How much the latest measurement of a decode step counts."""
_FASTER_WEIGHT = 0.25
"""How much a slice counts that cost less a token than was known. One that cost more counts wholly:
streams feel every slice that takes too long, and prompts grow dearer with each."""
_LEAST_S = 1e-9
"""Seconds a token takes at least, also for a clock that stands still."""
_PROMPTS_SHARE = 0.5
"""Least part of a step's time that goes to prompts, however slow the streams' part is."""
_TOGETHER_S = 0.12
"""Prompts that take so long together are computed together: splitting them would help nobody."""
_PADDING_SHARE = 0.25
"""Most of a slice that may be padding, because its prompts differ in what is left of them."""
_OVERTAKES = 2
"""A prompt goes along with those being computed if they have so many times as much left."""


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

    def joins(
        self,
        tokens: int,
        reading: Sequence[int],
        waiting: int,
        *,
        begun: bool = False,
        overtaking: bool = False,
        outnumbered: bool = False,
    ) -> bool:
        """Whether a prompt is computed along with others rather than after them.

        Prompts computed together get their first tokens together, at the end. One after the other,
        the last is no later and the others are sooner: first come, first served, in groups large
        enough to keep the machine busy. The larger half of a crowd comes first, then the rest, and
        no more groups: each costs those before it decode steps in small company, and four instead
        of two took a tenth of the throughput of sixteen short requests. Short ones do not wait
        behind a long one.

        Args:
            tokens: What it has to be computed of.
            reading: What is left of those that are being computed.
            waiting: Tokens of all prompts in the line, this one among them.
            begun: Whether a part of those has been computed already: a newcomer would hold them up.
            overtaking: Whether one that came before it does not join. Only short ones go before
                it then, which are done before those being computed: a steady stream of others would
                keep it waiting for ever.
            outnumbered: Whether at least as many streams run as prompts are left, computed or not:
                the rest of a crowd, which comes as one group.
        """
        if not reading or _OVERTAKES * tokens <= min(reading):
            return True
        if overtaking or begun:
            return False
        if outnumbered or sum(reading) <= waiting:
            return True
        token_s = _TOGETHER_S / _FIRST if self._token_s is None else self._token_s
        return (sum(reading) + tokens) * token_s <= _TOGETHER_S

    def learn_decoding(self, seconds: float) -> None:
        """Take in how long the streams' own part of a step took."""
        self._decode_s = _blend(self._decode_s or None, seconds)

    def learn_reading(self, seconds: float, tokens: int) -> None:
        """Take in how long it took to compute `tokens` tokens of prompts."""
        if tokens < _SMALLEST // 2:
            return  # mostly fixed costs: it says nothing about a token
        measured = max(seconds / tokens, _LEAST_S)
        if self._token_s is None or measured >= self._token_s:
            self._token_s = measured
        else:
            self._token_s += _FASTER_WEIGHT * (measured - self._token_s)


def without_padding(tokens: int, lengths: Sequence[int]) -> int:
    """Where to cut a slice of at most `tokens` of each prompt, so that little of it is padding.

    Rows of a slice are as long as its longest. Those that are nearly done would wait for the
    padding that newcomers bring them; cut where they end, they are done first.

    Args:
        tokens: Most that may be computed of each.
        lengths: What each could be computed of at once.
    """

    def little(longest: int) -> bool:
        padding = sum(max(0, longest - length) for length in lengths)
        return padding <= max(_SMALLEST, _PADDING_SHARE * longest * len(lengths))

    # The shortest always does: it needs no padding.
    cuts = sorted({min(length, tokens) for length in lengths}, reverse=True)
    return next(filter(little, cuts))


def _blend(known: float | None, measured: float) -> float:
    return measured if known is None else known + _WEIGHT * (measured - known)
