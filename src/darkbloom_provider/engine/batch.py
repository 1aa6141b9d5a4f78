"""One model's continuous batch: requests join and leave between steps. Engine thread only.

mlx-lm's `BatchGenerator` does the arithmetic. This wraps it with what a service needs: a waiting
line, limits, text instead of tokens, and the rule that a step which raised is never continued:
its batch is corrupt, so everything in it is failed and a new one is built.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, StopSequences
from mlx_lm.models.cache import make_prompt_cache

from darkbloom_provider.engine.breaker import Breaker
from darkbloom_provider.engine.entry import Entry, Intake, failure
from darkbloom_provider.engine.errors import (
    EngineError,
    OutOfServiceError,
)
from darkbloom_provider.engine.ledger import Ledger, ModelMemory
from darkbloom_provider.engine.loading import Weights
from darkbloom_provider.engine.pace import PrefillPace
from darkbloom_provider.engine.penalties import Array
from darkbloom_provider.engine.prompt_cache import Layer, PromptCache
from darkbloom_provider.engine.requests import (
    EngineSettings,
    FinishReason,
    GenerationRequest,
    SlotSnapshot,
)
from darkbloom_provider.engine.sampling import Samplers
from darkbloom_provider.engine.sharing import (
    Contents,
    Sharing,
    Start,
    always_trimmable,
)
from darkbloom_provider.engine.speeds import Speedometer
from darkbloom_provider.engine.structure import Guide, guide_failure
from darkbloom_provider.engine.updates import (
    Failed,
    Finished,
    Progress,
    Released,
    RequestUpdate,
    Started,
)

_PROMPTS_AT_ONCE = 8
"""Prompts that are computed together; mlx-lm's own default."""
_PROBE_STEPS = 8
_PROMPT_END = 16
"""Tokens of a prompt's end that are told: enough for the markers that templates end in."""


class _PromptResponse(Protocol):
    """What mlx-lm says of one prompt."""

    uid: int
    progress: tuple[int, int]
    end_of_segment: bool
    end_of_prompt: bool


class _TokenResponse(Protocol):
    """What mlx-lm says of one token."""

    uid: int
    token: int
    logprobs: Array
    finish_reason: FinishReason | None
    prompt_cache: list[Layer] | None
    all_tokens: list[int] | None


class Batch:
    """Decodes up to `settings.max_running` requests of one model together.

    Args:
        weights: The loaded model.
        settings: Bounds.
        samplers: Where samplers come from.
        limit_wired: Called after every new `BatchGenerator`, which raises the limit by itself.
        clock: Monotonic seconds.
        cache: What prompts have been through the model already; None keeps nothing.
        memory: Lets requests in; None lets in all.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        settings: EngineSettings,
        samplers: Samplers,
        limit_wired: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        cache: PromptCache | None = None,
        memory: ModelMemory | None = None,
    ) -> None:
        self._weights = weights
        self._settings = settings
        self._samplers = samplers
        self._limit_wired = limit_wired
        self._clock = clock
        self._pace = PrefillPace(
            busy_s=settings.step_busy_s,
            idle_s=settings.step_idle_s,
            busy_tokens=settings.prefill_step_busy,
            idle_tokens=settings.prefill_step_idle,
        )
        self._speedometer = Speedometer()
        self._waiting: deque[Entry] = deque()
        self._running: dict[int, Entry] = {}
        self._sharing = Sharing(
            PromptCache(0) if cache is None else cache,
            trimmable=always_trimmable(make_prompt_cache(weights.model)),
        )
        self._memory = Ledger(PromptCache(0), lambda: 0).of("") if memory is None else memory
        self._intake = Intake(weights, memory=self._memory, unasked_tokens=settings.unasked_tokens)
        self._generator = self._new_generator()
        self._breaker = Breaker()
        self.tokens_generated = 0
        self.progress = 0
        """Tokens that came out and tokens of prompts that went in. Standing still means trouble."""

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._running or self._waiting) or self.probe_in == 0

    @property
    def probe_in(self) -> float | None:
        """Seconds until a model that is out of service is tried again; None while it serves."""
        return self._breaker.probe_in(self._clock())

    def snapshot(self, model: str) -> SlotSnapshot:
        """The figures of now."""
        running = self._running.values()
        return SlotSnapshot(
            model=model,
            state="crashed" if self._breaker.open else "running",
            problem=self._breaker.problem,
            running=len(self._running),
            waiting=len(self._waiting),
            active_tokens=sum(len(entry.prompt) + entry.completion_tokens for entry in running),
            max_tokens_potential=sum(entry.limit for entry in running),
            context_length=self._weights.context_length,
            speed=self._speedometer.speed,
        )

    def add(
        self, key: int, request: GenerationRequest, guide: Guide | None = None
    ) -> list[RequestUpdate]:
        """Read the prompt and put the request at the end of the line, or refuse it alone."""
        if self._breaker.problem is not None:
            return [Failed(key, OutOfServiceError(request.model, self._breaker.problem))]
        try:
            entry = self._intake.read(key, request, guide)
        except EngineError as error:
            return [Failed(key, error)]
        self._waiting.append(entry)
        return [Started(key, len(entry.prompt), self._intake.text(entry.prompt[-_PROMPT_END:]))]

    def cancel(self, key: int) -> list[RequestUpdate]:
        """Let go of a request in whatever phase it is; nothing if it has left already."""
        for entry in self._waiting:
            if entry.key == key:
                self._waiting.remove(entry)
                return [Released(key)]
        for uid, entry in self._running.items():
            if entry.key == key:
                self._leave(uid)
                return [Released(key)]
        return []

    def step(self) -> list[RequestUpdate]:
        """Let waiting requests in, then one decode step and one piece of prompts for all."""
        if self._breaker.open:
            self._probe()
            return []
        updates = self._admit()
        decoding = any(entry.decoding for entry in self._running.values())
        reading = sum(not entry.decoding for entry in self._running.values())
        at_once = min(reading, _PROMPTS_AT_ONCE)
        self._generator.prefill_step_size = min(
            self._pace.slice_tokens(at_once, decoding=decoding),
            max(1, self._memory.piece() // max(1, at_once)),
        )
        began = self._clock()
        try:
            prompts, tokens = self._generator.next()
        except Exception as error:  # noqa: BLE001 - whatever it is, this batch is corrupt
            return [*updates, *self._start_anew(error)]
        seconds = self._clock() - began
        prompt_tokens = self._prompt_tokens(prompts)
        self._pace.learn(seconds, prompt_tokens=prompt_tokens, decoding=decoding)
        self.progress += prompt_tokens + len(tokens)
        self._speedometer.step(
            seconds, decoding=len(tokens), reading=reading, prompt_tokens=prompt_tokens
        )
        for response in prompts:
            entry = self._running.get(response.uid)
            if entry is None:
                continue
            if response.end_of_prompt:
                entry.decoding = True
                self._sharing.decoding(entry.key)
            elif response.end_of_segment:
                self._sharing.reached(entry.key, self._contents)
        for response in tokens:
            updates += self._take(response)
        return updates

    def fail_all(self, error: EngineError) -> list[RequestUpdate]:
        """Fail everything, running or waiting, with `error`."""
        entries = [*self._running.values(), *self._waiting]
        if self._running:
            self._generator.remove(list(self._running))
        self._let_go()
        self._waiting.clear()
        return [Failed(entry.key, error) for entry in entries]

    def close(self) -> None:
        """Give back what the generator holds."""
        self._generator.close()

    # ------------------------------------------------------------ inside a step

    def _admit(self) -> list[RequestUpdate]:
        updates: list[RequestUpdate] = []
        for entry, start in self._startable():
            if isinstance(start, EngineError):
                updates.append(Failed(entry.key, start))
                continue
            try:
                [uid] = self._generator.insert_segments(
                    [start.segments],
                    max_tokens=[entry.limit],
                    caches=[start.layers],
                    all_tokens=[start.done],
                    samplers=[self._samplers.get(entry.request.sampling)],
                    logits_processors=[entry.processors(self._weights.vocabulary_size)],
                    stop_sequences=[StopSequences()] if entry.request.ignore_eos else None,
                )
            except Exception as error:  # noqa: BLE001 - nothing was inserted; others are unharmed
                self._sharing.left(entry.key)
                self._memory.leave(entry.key)
                updates.append(Failed(entry.key, failure(error)))
            else:
                self._running[uid] = entry
        return updates

    def _startable(self) -> Iterator[tuple[Entry, Start | EngineError]]:
        """Take requests out of the line, but for those whose beginning is being computed."""
        for entry in tuple(self._waiting):
            if len(self._running) >= self._settings.max_running:
                return
            try:
                if not self._memory.enter(entry.key, entry.tokens):
                    return  # not to be overtaken, or a large request would wait for ever
            except EngineError as error:
                self._waiting.remove(entry)
                yield entry, error
                continue
            behind = [other.candidate for other in self._waiting if other.key > entry.key]
            start = self._sharing.begin(entry.candidate, behind, self._contents)
            if start is None:
                self._memory.leave(entry.key)
                continue
            self._waiting.remove(entry)
            yield entry, start

    def _contents(self, key: int) -> Contents | None:
        """What the row of a running request holds, copied out of the batch."""
        uid = next((uid for uid, entry in self._running.items() if entry.key == key), None)
        found = self._generator.extract_cache([] if uid is None else [uid]).get(uid)
        if found is None:
            return None
        layers, tokens = found
        _compute(layers)
        return layers, tuple(tokens)

    def _prompt_tokens(self, responses: Sequence[_PromptResponse]) -> int:
        """Tokens of prompts that a step computed, padding included: rows are equally long."""
        longest = rows = 0
        for response in responses:
            entry = self._running.get(response.uid)
            if entry is not None and not response.end_of_prompt:
                rows += 1
                longest = max(longest, response.progress[0] - entry.prompt_computed)
                entry.prompt_computed = response.progress[0]
        return longest * rows

    def _take(self, response: _TokenResponse) -> list[RequestUpdate]:
        """One token of one request."""
        entry = self._running.get(response.uid)
        if entry is None:
            return []
        entry.completion_tokens += 1
        self.tokens_generated += 1
        reason = response.finish_reason
        if entry.guide is not None and entry.guide.failed is not None:
            self._leave(response.uid, finished=reason is not None)
            return [Failed(entry.key, guide_failure(entry.guide.failed))]
        try:
            # The token that ends a turn is no text.
            text, logprobs = (
                ("", ())
                if reason == "stop"
                else entry.output.add(response.token, response.logprobs)
            )
        except Exception as error:  # noqa: BLE001 - a tokenizer's fault in one text ends that text
            self._leave(response.uid, finished=reason is not None)
            return [Failed(entry.key, failure(error))]
        left = reason is not None
        stops = entry.output.stops
        if stops.matched:
            reason = "stop"
        elif left:
            rest, more = entry.output.flush()
            text, logprobs = text + rest, logprobs + more
        updates: list[RequestUpdate] = [
            Progress(entry.key, text, entry.completion_tokens, logprobs)
        ]
        if reason is not None:
            self._remember(entry, response)
            self._leave(response.uid, finished=left)
            self._breaker.completed()
            updates.append(Finished(entry.key, reason, entry.usage, stops.found))
        return updates

    def _remember(self, entry: Entry, response: _TokenResponse) -> None:
        """Keep what the model has read and written, for the next turn of the conversation."""
        layers, tokens = response.prompt_cache, response.all_tokens
        if (
            layers is None or tokens is None
        ):  # ended by a stop string, which mlx-lm knows nothing of
            self._sharing.finished(entry.key, lambda: self._contents(entry.key))
        else:
            whole = layers, tuple(tokens)
            if self._sharing.finished(entry.key, lambda: whole):
                _compute(layers)

    def _leave(self, uid: int, *, finished: bool = False) -> None:
        key = self._running.pop(uid).key
        if not finished:
            self._generator.remove([uid])
        self._sharing.left(key)
        self._memory.leave(key)

    def _let_go(self) -> None:
        """Nothing runs any more."""
        for entry in self._running.values():
            self._memory.leave(entry.key)
        self._running.clear()
        self._sharing.clear()

    def reset(self, problem: str | None) -> None:
        """Forget everything in flight and build a new generator.

        Args:
            problem: Why the model is to be left alone for a while; None if it is not to blame.
        """
        if problem is not None:
            self._breaker.trip(self._clock(), problem)
        self._let_go()
        self._waiting.clear()
        self._generator.close()
        self._generator = self._new_generator()

    def _start_anew(self, error: Exception) -> list[RequestUpdate]:
        self._breaker.failed(self._clock(), f"its steps fail ({type(error).__name__})")
        lost = [*self._running.values()]
        waiting = self._waiting.copy()
        self.reset(None)
        if self._breaker.open:
            lost += waiting
        else:
            self._waiting = waiting
        problem = failure(error)
        return [Failed(entry.key, problem) for entry in lost]

    def _probe(self) -> None:
        """Compute two tokens for nobody, and serve again if that works."""
        if self.probe_in != 0:
            return
        try:
            self._generator.close()
            self._generator = self._new_generator()
            self._generator.insert([[0, 0]], max_tokens=[2])
            for _ in range(_PROBE_STEPS):
                if any(token.finish_reason for token in self._generator.next()[1]):
                    self._breaker.probed()
                    return
            self._breaker.failed(self._clock(), "its steps bring nothing out")
        except Exception as error:  # noqa: BLE001 - that is the answer to the probe
            self._breaker.failed(self._clock(), f"its steps fail ({type(error).__name__})")

    def _new_generator(self) -> BatchGenerator:
        settings = self._settings
        generator = BatchGenerator(
            self._weights.model,
            stop_tokens=[[token] for token in sorted(self._weights.tokenizer.eos_token_ids)],
            completion_batch_size=settings.max_running,
            prefill_batch_size=min(settings.max_running, _PROMPTS_AT_ONCE),
            prefill_step_size=settings.prefill_step_idle,
            # The thread's own stream: arrays that are not evaluated yet cannot cross threads.
            stream=mx.default_stream(mx.default_device()),
        )
        self._limit_wired()
        return generator


def _compute(layers: Sequence[Layer]) -> None:
    """Begin to copy what was taken out of a batch, or it would hold on to the whole of it."""
    mx.async_eval([layer.state for layer in layers])  # type: ignore[no-untyped-call] # mlx's stubs
