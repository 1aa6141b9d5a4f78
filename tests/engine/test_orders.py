"""Requests that come, run, stand still and leave in any order, in little memory: as if alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from darkbloom_provider.engine.admission import Limits, Load, worst
from darkbloom_provider.engine.ledger import Ledger
from darkbloom_provider.engine.loading import Weights, load_steps
from darkbloom_provider.engine.prompt_cache import PromptCache
from darkbloom_provider.engine.requests import GenerationRequest
from darkbloom_provider.models.memory import Footprint, LayerShape
from support.batch_run import SETTINGS, Run, alone, ask, weights_of
from support.families import FAMILIES, build_family

SYSTEM = "the stone and the river " * 9
PROMPTS = (
    "a",
    "water",
    SYSTEM,
    SYSTEM + "then look",
    SYSTEM + "then look after the water and come back",
    SYSTEM[: len(SYSTEM) * 3 // 4],
    "give " * 40,
)
LONGEST = 20
"""Tokens of a completion."""
PATIENCE = 3
"""Steps that may pass without a token of a prompt or of an answer."""


@dataclass(frozen=True)
class Add:
    prompt: int
    max_tokens: int


@dataclass(frozen=True)
class Step:
    count: int


@dataclass(frozen=True)
class Cancel:
    which: int
    """Counted from the latest."""


@dataclass(frozen=True)
class Hold:
    """Its reader falls far behind, or comes back."""

    which: int
    held: bool


Order = Add | Step | Cancel | Hold


@dataclass(frozen=True)
class Machine:
    """How little there is of everything."""

    max_running: int
    rows: int
    """The longest requests that fit into memory together."""
    prompt_cache: int
    """Bytes."""


ORDERS = st.lists(
    st.one_of(
        st.builds(Add, st.integers(0, len(PROMPTS) - 1), st.integers(1, LONGEST)),
        st.builds(Step, st.integers(1, 6)),
        st.builds(Cancel, st.integers(0, 5)),
        st.builds(Hold, st.integers(0, 5), st.booleans()),
    ),
    min_size=4,
    max_size=24,
)
MACHINES = st.builds(
    Machine, st.integers(1, 4), st.integers(1, 3), st.sampled_from((0, 40_000, 120_000, 10**8))
)


class Trial:
    """One order of events on one machine."""

    def __init__(self, weights: Weights, machine: Machine, expected: list[list[str]]) -> None:
        footprint = Footprint(0, (LayerShape(512),), 1, 0, fused=True, vocabulary=1)
        longest = Load(footprint, (180 + LONGEST,) * machine.rows)
        self.cache = PromptCache(machine.prompt_cache)
        ledger = Ledger(self.cache, lambda: 0)
        ledger.load("m", footprint, make_room=False)
        limits = Limits(piece_tokens=64, row_piece_tokens=32)
        ledger.limits = replace(limits, ceiling=worst({"m": longest}, limits))
        self.run = Run(
            weights,
            replace(SETTINGS, max_running=machine.max_running),
            cache=self.cache,
            memory=ledger.of("m"),
        )
        self.requests: dict[int, GenerationRequest] = {}
        self.expected = expected

    def follow(self, orders: list[Order]) -> None:
        for order in orders:
            match order:
                case Add():
                    key = len(self.requests)
                    self.requests[key] = ask(PROMPTS[order.prompt], order.max_tokens)
                    self.run.add(key, self.requests[key])
                case Step():
                    self.steps(order.count)
                case Cancel() if self.requests:
                    self.run.cancel(self.latest(order.which))
                case Hold() if self.requests:
                    self.run.batch.hold(self.latest(order.which), held=order.held)
        for key in self.requests:
            self.run.batch.hold(key, held=False)
        while self.run.batch.busy:
            self.steps(PATIENCE)

    def latest(self, which: int) -> int:
        return max(0, len(self.requests) - 1 - which)

    def steps(self, count: int) -> None:
        batch = self.run.batch
        before, idle = batch.progress, not batch.busy
        self.run.step(count)
        assert idle or count < PATIENCE or batch.progress > before, "it stalls"
        assert self.cache.nbytes <= self.cache.limit

    def check(self) -> None:
        """Everybody is gone, with the text that a lonely request gets."""
        for key, request in self.requests.items():
            outcome = self.run.outcomes[key]
            assert outcome.over
            assert outcome.error is None
            assert request.prompt is not None
            if not outcome.released:
                assert outcome.counts == list(range(1, (request.max_tokens or 0) + 1))
            whole = self.expected[PROMPTS.index(request.prompt)]
            assert outcome.text == "".join(whole[: len(outcome.counts)])
        slot = self.run.batch.snapshot("m")
        assert (slot.running, slot.waiting) == (0, 0)


def try_orders(weights: Weights, examples: int) -> None:
    expected = [
        [entry.chosen.data.decode() for entry in alone(weights, request).logprobs]
        for request in (ask(prompt, LONGEST, logprobs=0) for prompt in PROMPTS)
    ]

    @hypothesis_settings(max_examples=examples)
    @given(orders=ORDERS, machine=MACHINES)
    def every_order(orders: list[Order], machine: Machine) -> None:
        trial = Trial(weights, machine, expected)
        trial.follow(orders)
        trial.check()

    every_order()


def test_in_any_order_every_request_ends_with_the_text_it_gets_alone(tiny_model: Path) -> None:
    try_orders(weights_of(load_steps(tiny_model, step_bytes=10**9)), examples=60)


@pytest.mark.chaos
@pytest.mark.parametrize("family", FAMILIES)
def test_so_it_is_with_every_kind_of_cache(tiny_model: Path, family: str) -> None:
    try_orders(build_family(family, tiny_model), examples=150)
