"""A batch driven step by step in this thread, and what it said of each request."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

from darkbloom_provider.engine.batch import Batch
from darkbloom_provider.engine.errors import EngineError
from darkbloom_provider.engine.ledger import ModelMemory
from darkbloom_provider.engine.loading import Weights
from darkbloom_provider.engine.prompt import read
from darkbloom_provider.engine.prompt_cache import PromptCache
from darkbloom_provider.engine.requests import EngineSettings, GenerationRequest, TokenLogprob
from darkbloom_provider.engine.sampling import Samplers
from darkbloom_provider.engine.updates import (
    Failed,
    Finished,
    Progress,
    Released,
    RequestUpdate,
    Started,
)

SETTINGS = EngineSettings(max_running=4, prefill_step_busy=8, prefill_step_idle=32)
_MOST_STEPS = 10_000


@dataclass
class Outcome:
    """What came of one request."""

    text: str = ""
    prompt_tokens: int | None = None
    finished: Finished | None = None
    error: EngineError | None = None
    released: bool = False
    counts: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.finished is not None or self.error is not None or self.released


class Counting:
    """A model, with the positions that went through it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.positions = 0

    def __call__(self, tokens: Any, **options: Any) -> Any:
        self.positions += tokens.size
        return self._model(tokens, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class Run:
    """A batch and what it said. Without a `cache`, nothing is kept.

    Its clock is the work that the model has done, at a millisecond a position, so that nothing
    depends on how fast a machine is.
    """

    def __init__(
        self,
        weights: Weights,
        settings: EngineSettings = SETTINGS,
        *,
        cache: PromptCache | None = None,
        memory: ModelMemory | None = None,
    ) -> None:
        self.weights = weights
        self.cache = cache
        self.most = settings.max_running
        self.model = Counting(weights.model)
        self.batch = Batch(
            replace(weights, model=self.model),
            settings=settings,
            samplers=Samplers(itertools.count(1).__next__),
            clock=lambda: self.model.positions / 1000,
            cache=cache,
            memory=memory,
        )
        self.outcomes: dict[int, Outcome] = {}

    def add(self, key: int, request: GenerationRequest) -> None:
        self.outcomes[key] = Outcome()
        self.take(self.batch.add(key, request, read(self.weights.tokenizer, request)))

    def cancel(self, key: int) -> None:
        self.take(self.batch.cancel(key))

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.take(self.batch.step())

    def to_the_end(self) -> dict[int, Outcome]:
        for _ in range(_MOST_STEPS):
            if not self.batch.busy:
                return self.outcomes
            self.step()
        raise AssertionError("the batch never comes to an end")

    def take(self, updates: list[RequestUpdate]) -> None:
        for update in updates:
            outcome = self.outcomes[update.key]
            assert not outcome.over
            match update:
                case Started(prompt_tokens=prompt_tokens):
                    outcome.prompt_tokens = prompt_tokens
                case Progress(text=text, completion_tokens=completion_tokens):
                    outcome.text += text
                    outcome.logprobs += update.logprobs
                    outcome.counts.append(completion_tokens)
                case Finished():
                    outcome.finished = update
                case Failed(error=error):
                    outcome.error = error
                case Released():
                    outcome.released = True


PHASES = ("waiting", "prompt", "decoding", "last")
"""Where a request can be when it is cancelled; `last` is decoding after all others have ended."""


def reach(run: Run, key: int, phase: str) -> None:
    """Step until the request is in the phase, with the batch full around it but for `last`."""
    for _ in range(_MOST_STEPS):
        assert not run.outcomes[key].over
        slot = run.batch.snapshot("m")
        full = slot.running == run.most
        written = bool(run.outcomes[key].counts)
        if {
            "waiting": slot.waiting == 1,
            "prompt": full and not written,
            "decoding": full and written,
            "last": slot.running == 1 and written,
        }[phase]:
            return
        run.step()
    raise AssertionError(f"never {phase}")


def ask(prompt: str = "hello", max_tokens: int = 30, **options: Any) -> GenerationRequest:
    return GenerationRequest("r", "m", prompt=prompt, max_tokens=max_tokens, **options)


def alone(weights: Weights, request: GenerationRequest) -> Outcome:
    run = Run(weights)
    run.add(0, request)
    return run.to_the_end()[0]


def weights_of(steps: Any) -> Weights:
    """What `load_steps` returns once it has come to its end."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: Weights = done.value
            return result
