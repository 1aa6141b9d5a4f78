"""One model's continuous batch: requests join and leave between steps. Engine thread only.

`Line` says who is next, `Reading` computes prompts, `Decoding` computes answers. This puts them
together into steps, and adds what a service needs: limits, text instead of tokens, and the rule
that a step which raised is never continued: its batch is corrupt, so everything in it is failed and
a new one is built.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from mlx_lm.models.cache import make_prompt_cache

from darkbloom_provider.engine import trial
from darkbloom_provider.engine.breaker import Breaker
from darkbloom_provider.engine.decoding import Decoding, Row, Token
from darkbloom_provider.engine.entry import Entry, Intake, failure
from darkbloom_provider.engine.errors import (
    EngineError,
    OutOfServiceError,
)
from darkbloom_provider.engine.extraction import begin_to_copy
from darkbloom_provider.engine.held import Held
from darkbloom_provider.engine.ledger import Ledger, ModelMemory
from darkbloom_provider.engine.line import Line
from darkbloom_provider.engine.loading import Weights
from darkbloom_provider.engine.pace import PrefillPace, without_padding
from darkbloom_provider.engine.prompt import EncodedPrompt
from darkbloom_provider.engine.prompt_cache import PromptCache
from darkbloom_provider.engine.reading import Reading
from darkbloom_provider.engine.requests import (
    EngineSettings,
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


class Batch:
    """Decodes up to `settings.max_running` requests of one model together.

    Args:
        weights: The loaded model.
        settings: Bounds.
        samplers: Where samplers come from.
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
        clock: Callable[[], float] = time.monotonic,
        cache: PromptCache | None = None,
        memory: ModelMemory | None = None,
    ) -> None:
        self._weights = weights
        self._ends = frozenset(weights.tokenizer.eos_token_ids)
        self._settings = settings
        self._samplers = samplers
        self._clock = clock
        self._pace = PrefillPace(
            busy_s=settings.step_busy_s,
            idle_s=settings.step_idle_s,
            busy_tokens=settings.prefill_step_busy,
            idle_tokens=settings.prefill_step_idle,
        )
        self._speedometer = Speedometer()
        self._running: dict[int, Entry] = {}
        self._held = Held()
        self._sharing = Sharing(
            PromptCache(0) if cache is None else cache,
            trimmable=always_trimmable(make_prompt_cache(weights.model)),
        )
        self._memory = Ledger(PromptCache(0), lambda: 0).of("") if memory is None else memory
        self._line = Line(self._memory, self._sharing)
        self._intake = Intake(weights, memory=self._memory, unasked_tokens=settings.unasked_tokens)
        self._reading, self._decoding = self._new_batch()
        self._breaker = Breaker()
        self.tokens_generated = 0
        self._has_read = False
        """Whether the step that is under way was begun after a piece of a prompt."""
        self.progress = 0
        """Tokens that came out and tokens of prompts that went in. Standing still means trouble."""

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        if len(self._running) > len(self._held) or self.probe_in == 0:
            return True
        return bool(self._line) and not self._held

    @property
    def blocked(self) -> bool:
        """Whether requests wait that may have to wait for the readers of others."""
        return bool(self._line) and not self.busy

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
            waiting=len(self._line),
            active_tokens=sum(len(entry.prompt) + entry.completion_tokens for entry in running),
            max_tokens_potential=sum(entry.limit for entry in running),
            context_length=self._weights.context_length,
            speed=self._speedometer.speed,
        )

    def add(
        self,
        key: int,
        request: GenerationRequest,
        prompt: EncodedPrompt,
        guide: Guide | None = None,
    ) -> list[RequestUpdate]:
        """Put a request at the end of the line, or refuse it alone."""
        if self._breaker.problem is not None:
            return [Failed(key, OutOfServiceError(request.model, self._breaker.problem))]
        try:
            entry = self._intake.admit(key, request, prompt, guide)
        except EngineError as error:
            return [Failed(key, error)]
        self._line.add(entry)
        return [Started(key, len(entry.prompt), prompt.end)]

    def cancel(self, key: int) -> list[RequestUpdate]:
        """Let go of a request in whatever phase it is; nothing if it has left already."""
        if self._line.remove(key):
            return [Released(key)]
        if key in self._running:
            self._leave([key])
            return [Released(key)]
        return []

    def hold(self, key: int, *, held: bool) -> None:
        """Compute no more of a running request for now, or go on with it.

        It keeps its memory and leaves its place. Nothing is copied while it has no company.
        """
        if held and key in self._running:
            self._held.hold(key)
        else:
            self._held.go_on(key)

    def step(self) -> list[RequestUpdate]:
        """Let waiting requests in, then compute: a piece of their prompts, a token for the others.

        What the streams are owed is handed out before they wait for a piece of a prompt: such a
        step does nothing else.
        """
        if self._breaker.open:
            self._probe()
            return []
        updates: list[RequestUpdate] = []
        left: list[int] = []
        try:
            self._held.bring_back(self._decoding)
            self._admit(updates)
            for token in self._put_aside() or self._compute():
                updates += self._take(token, left)
            self._leave(left)
        except Exception as error:  # noqa: BLE001 - whatever it is, this batch is corrupt
            self._forget(left)
            updates += self._start_anew(error)
        return updates

    def fail_all(self, error: EngineError) -> list[RequestUpdate]:
        """Fail everything, running or waiting, with `error`."""
        entries = [*self._running.values(), *self._line.clear()]
        self._let_go()
        return [Failed(entry.key, error) for entry in entries]

    # ------------------------------------------------------------ inside a step

    def _admit(self, updates: list[RequestUpdate]) -> None:
        for entry, start in self._line.startable(self._fits, self._contents):
            if isinstance(start, EngineError):
                updates.append(Failed(entry.key, start))
                continue
            self._reading.join(self._row(entry, start), start.layers, start.segments)
            self._running[entry.key] = entry

    def _put_aside(self) -> list[Token]:
        """Take those that are held out of the batch; the tokens that this brings to light.

        A row's token that is on its way is told first, and the row leaves with the next step.
        """
        if not self._held.waits_for(self._decoding):
            return []
        if self._decoding.unread:
            return self._timed_decoding(self._decoding.flush)
        self._held.put_aside(self._decoding)
        return []

    def _fits(self, tokens: int, overtaking: bool) -> bool:
        """Whether a prompt of which so many tokens are to be computed may join now."""
        left = len(self._reading) + len(self._line)
        return self._has_place and self._pace.joins(
            tokens,
            self._reading.left,
            self._line.prompt_tokens,
            begun=self._reading.begun,
            overtaking=overtaking,
            outnumbered=left <= len(self._decoding),
        )

    @property
    def _has_place(self) -> bool:
        if not self._weights.keeps_company:
            return not self._running
        return len(self._running) - len(self._held) < self._settings.max_running

    def _row(self, entry: Entry, start: Start) -> Row:
        request = entry.request
        return Row(
            key=entry.key,
            tokens=start.done,
            limit=entry.limit,
            ends=frozenset() if request.ignore_eos else self._ends,
            sampler=self._samplers.get(request.sampling),
            processors=entry.processors(self._weights.vocabulary_size),
            wants_logprobs=request.logprobs is not None,
        )

    def _compute(self) -> list[Token]:
        # A first token is told as soon as it is there, and streams that waited for a piece get
        # theirs before the next step: beginning that one first would be a step's time later.
        if self._decoding.unread and (self._reading or self._has_read):
            self._has_read = False
            return self._timed_decoding(self._decoding.flush)
        if self._reading:
            self._read()
            self._has_read = True
            return self._decoding.step()  # which has nothing to tell yet: see above
        self._join()
        return self._timed_decoding(self._decoding.step)

    def _read(self) -> None:
        """Compute a piece of the prompts that are under way; those that are done join."""
        reading = len(self._reading)
        most = max(1, self._memory.piece() // reading)
        slice_ = min(self._pace.slice_tokens(reading, decoding=len(self._decoding) > 0), most)
        tokens = without_padding(slice_, self._reading.pieces)
        began = self._clock()
        piece = self._reading.read(tokens)
        seconds = self._clock() - began
        self._pace.learn_reading(seconds, piece.tokens)
        self._speedometer.read(seconds, piece.tokens, rows=reading, streams=len(self._decoding))
        self.progress += piece.tokens
        for key in piece.boundaries:
            self._sharing.reached(key, self._contents)
        self._join()

    def _join(self) -> None:
        for ready in self._reading.take_ready():
            for row in ready.rows:
                self._sharing.decoding(row.key)
            self._decoding.join(ready.rows, ready.layers, ready.inputs)

    def _timed_decoding(self, work: Callable[[], list[Token]]) -> list[Token]:
        began = self._clock()
        tokens = work()
        seconds = self._clock() - began
        self.progress += len(tokens)
        if tokens:
            self._pace.learn_decoding(seconds)
            if not self._reading:
                self._speedometer.decode(seconds, rows=len(tokens))
        return tokens

    def _contents(self, key: int) -> Contents | None:
        """What the row of a running request holds, copied; None for one out of the batch."""
        found = self._reading.contents(key) or self._decoding.contents(key)
        if found is None:
            return None
        layers, tokens = found
        begin_to_copy(layers)
        return layers, tuple(tokens)

    def _take(self, token: Token, left: list[int]) -> list[RequestUpdate]:
        """One token of one request; keys of those that leave are added to `left`."""
        entry = self._running[token.key]
        entry.completion_tokens += 1
        self.tokens_generated += 1
        reason = token.reason
        if entry.guide is not None and entry.guide.failed is not None:
            left.append(entry.key)
            return [Failed(entry.key, guide_failure(entry.guide.failed))]
        try:
            # The token that ends a turn is no text.
            text, logprobs = (
                ("", ()) if reason == "stop" else entry.output.add(token.token, token.logprobs)
            )
        except Exception as error:  # noqa: BLE001 - a tokenizer's fault in one text ends that text
            left.append(entry.key)
            return [Failed(entry.key, failure(error))]
        stops = entry.output.stops
        if stops.matched:
            reason = "stop"
        elif reason is not None:
            rest, more = entry.output.flush()
            text, logprobs = text + rest, logprobs + more
        updates: list[RequestUpdate] = [
            Progress(entry.key, text, entry.completion_tokens, logprobs)
        ]
        if reason is not None:
            # What was read and written is kept for the next turn of the conversation.
            self._sharing.finished(entry.key, lambda: self._contents(entry.key))
            left.append(entry.key)
            self._breaker.completed()
            updates.append(Finished(entry.key, reason, entry.usage, stops.found))
        return updates

    def _leave(self, keys: Sequence[int]) -> None:
        self._decoding.leave(keys)
        for key in keys:
            self._reading.leave(key)
        self._forget(keys)

    def _forget(self, keys: Sequence[int]) -> None:
        for key in keys:
            self._held.forget(key)
            if self._running.pop(key, None) is not None:
                self._sharing.left(key)
                self._memory.leave(key)

    def _let_go(self) -> None:
        """Nothing runs any more."""
        for key in self._running:
            self._memory.leave(key)
        self._running.clear()
        self._held.clear()
        self._sharing.clear()
        self._reading, self._decoding = self._new_batch()

    def reset(self, problem: str | None) -> None:
        """Forget everything in flight and begin with an empty batch.

        Args:
            problem: Why the model is to be left alone for a while; None if it is not to blame.
        """
        if problem is not None:
            self._breaker.trip(self._clock(), problem)
        self._line.clear()
        self._let_go()

    def _start_anew(self, error: Exception) -> list[RequestUpdate]:
        self._breaker.failed(self._clock(), f"its steps fail ({type(error).__name__})")
        lost = [*self._running.values()]
        self._let_go()
        if self._breaker.open:
            lost += self._line.clear()
        problem = failure(error)
        return [Failed(entry.key, problem) for entry in lost]

    def _probe(self) -> None:
        """Compute two tokens for nobody, and serve again if that works."""
        if self.probe_in != 0:
            return
        problem = trial.problem(self._weights.model)
        if problem is None:
            self._breaker.probed()
        else:
            self._breaker.failed(self._clock(), problem)

    def _new_batch(self) -> tuple[Reading, Decoding]:
        model = self._weights.model
        return Reading(model, lambda: make_prompt_cache(model)), Decoding(model)
