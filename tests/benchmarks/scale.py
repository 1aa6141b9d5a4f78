"""How large the measurements are."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import model


@dataclass(frozen=True)
class Scale:
    """Sizes of all benchmarks. The defaults are those that the figures are quoted for."""

    rounds: int = 5
    """Counted; medians are taken over them."""
    warm_ups: int = 1
    """Rounds before them that are not counted."""
    tokens_in: int = 64
    tokens_out: int = 64
    requests_each: int = 3
    """What each client of a server asks in one round, one after the other."""
    long_prompt: int = 1_536
    """Tokens of the prompt that running streams have to live with."""
    prefix: int = 1_000
    """Tokens of the beginning that prompts have in common."""
    load_s: float = 3.0
    """How long many streams run at once through one link."""
    idle_s: float = 50.0
    """How long an idle daemon is watched: less than the minute after which its model goes."""
    unload: bool = True
    """Whether to wait until it has let go of its idle model, which takes more than a minute."""
    sessions: int = 1_000
    """Providers that are connected at once."""
    decisions: int = 2_000
    """Choices among them in one round."""
    earnings: int = 1_000_000
    """Jobs of a year."""
    shape: model.Shape = model.FULL


FULL = Scale()
SLICE = Scale(
    rounds=1,
    warm_ups=0,
    tokens_in=12,
    tokens_out=6,
    requests_each=1,
    long_prompt=300,
    prefix=96,
    load_s=0.1,
    idle_s=0.2,
    unload=False,
    sessions=20,
    decisions=20,
    earnings=2_000,
    shape=model.TINY,
)
"""Small enough for the tests: shows that the measuring works, and measures nothing."""
