"""Completions that must be JSON, held to it token by token with llguidance.

A schema is compiled in a thread of its own, before the request reaches the engine's. In the batch
a `Guide` is a logits processor: it rules out every token after which the text could no longer
become what was asked for. It has to know the token chosen last, so it waits for the step under
way; that costs its batch a little, and is why nobody else reads values there.
"""

from __future__ import annotations

import copy
import re
import threading
from http import HTTPStatus
from typing import Any

import numpy as np
import numpy.typing as npt

from darkbloom_provider.engine import channels
from darkbloom_provider.engine.errors import EngineError, InvalidGenerationError
from darkbloom_provider.engine.prompt import Tokenizer
from darkbloom_provider.engine.requests import Structure
from darkbloom_provider.engine.thoughts import Markers, Phase, Thoughts

Array = Any
"""`mlx.core.array`."""

MAX_SCHEMA = 256 * 1024
"""Characters of a schema. Larger ones take seconds to compile."""
_OBJECT = '{"type":"object"}'
_OPTIONS = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{0,32}"}
"""Room for a line break and an indent. Unlimited, some models write white space for ever."""
_UNIMPLEMENTED = re.compile(r'Unimplemented keys: \[((?:"[a-zA-Z$]{1,24}"(?:, )?)+)\]\Z')


class Grammars:
    """Compiles structures for one model's vocabulary. Not for the engine's thread: it takes time.

    Args:
        tokenizer: The model's.
        vocabulary_size: Width of the model's logits.
        markers: Of the thoughts that may come before an answer; None if the model has none.
        in_channels: Whether the model writes in harmony's channels.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocabulary_size: int,
        markers: Markers | None = None,
        *,
        in_channels: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._markers = markers
        self._in_channels = in_channels
        self._vocabulary: Any = None
        self._building = threading.Lock()

    def compile(self, structure: Structure, prompt_end: str | None = None) -> Guide:
        """A guide for one completion.

        Args:
            structure: What the answer must be.
            prompt_end: How the rendered conversation ends; None where a plain prompt is continued,
                which has neither thoughts nor channels.

        Raises:
            InvalidGenerationError: 400; the schema is no schema, uses what cannot be enforced or is
                too large, or the model's tokenizer is of a kind that cannot be guided.
        """
        import llguidance  # noqa: PLC0415 - most processes never need it

        schema = structure.schema if structure.kind == "json_schema" else _OBJECT
        if len(schema) > MAX_SCHEMA:
            raise _refused(structure, f"is longer than {MAX_SCHEMA} characters")
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, defaults=_OPTIONS)
        except ValueError:
            raise _refused(structure, "is not a JSON object") from None
        if self._in_channels and prompt_end is not None and channels.opens(prompt_end):
            grammar = channels.around(grammar)
        limits = llguidance.LLParserLimits(verbose_errors=False)
        matcher = llguidance.LLMatcher(
            self._vocabulary_of(structure), grammar, log_level=0, limits=limits
        )
        if matcher.is_error():
            raise _refused(structure, _reason(matcher.get_error()))
        markers = self._markers
        thoughts = None if prompt_end is None or markers is None else markers.thoughts(prompt_end)
        ends = frozenset(self._tokenizer.eos_token_ids)
        return Guide(matcher, self._vocabulary_size, ends, thoughts)

    def _vocabulary_of(self, structure: Structure) -> Any:  # noqa: ANN401 - llguidance is typed only where it is imported
        import llguidance  # noqa: PLC0415 - most processes never need it

        with self._building:
            if self._vocabulary is None:
                try:
                    self._vocabulary = llguidance.LLTokenizer(
                        _written(self._tokenizer),
                        n_vocab=self._vocabulary_size,
                        eos_token=sorted(self._tokenizer.eos_token_ids) or None,
                    )
                except Exception as error:
                    # Foreign vocabularies are refused in all kinds of ways; none is the request's.
                    raise InvalidGenerationError(
                        HTTPStatus.BAD_REQUEST,
                        f"{structure.source} is not supported with this model",
                        why=type(error).__name__,
                    ) from error
            return self._vocabulary


def _written(tokenizer: Tokenizer) -> str:
    """The whole tokenizer as a `tokenizer.json`, with nothing in it that would cut or pad."""
    backend = copy.copy(getattr(tokenizer, "backend_tokenizer", None))
    if backend is None:
        raise TypeError("this tokenizer is a program")
    backend.no_padding()
    backend.no_truncation()
    return str(backend.to_str())


class Guide:
    """The logits processor of one completion. Once made, it belongs to the engine's thread.

    Thoughts are free, but may not end the completion; the structure begins after them. It never
    raises: an exception would take the whole batch with it. If it cannot go on, `failed` says why
    and the logits pass unchanged; whoever reads the token looks there first.
    """

    __slots__ = (
        "_ended",
        "_ends",
        "_matcher",
        "_started",
        "_thoughts",
        "_vocabulary_size",
        "failed",
    )

    def __init__(
        self,
        matcher: Any,  # noqa: ANN401 - see above
        vocabulary_size: int,
        ends: frozenset[int],
        thoughts: Thoughts | None = None,
    ) -> None:
        self._matcher = matcher
        self._vocabulary_size = vocabulary_size
        self._ends = ends
        self._thoughts = thoughts
        self._started = False
        self._ended = False
        self.failed: str | None = None

    def __call__(self, tokens: Array, logits: Array) -> Array:
        """One row of logits, minus infinity where the text would go wrong."""
        if self._ended or self.failed is not None:
            return logits
        try:
            return self._masked(tokens, logits)
        except Exception as error:  # noqa: BLE001 - see the class
            self.failed = type(error).__name__
            return logits

    def _masked(self, tokens: Array, logits: Array) -> Array:
        import mlx.core as mx  # noqa: PLC0415 - this module is imported before MLX is prepared

        if self._started:
            self._read(int(tokens[-1].item()))
            if self._ended or self.failed is not None:
                return logits
        self._started = True
        allowed = self._allowed()
        if self._matcher.is_error() or not allowed.any():
            self.failed = "no token is allowed"
            return logits
        return mx.where(mx.array(allowed), logits, -mx.inf).astype(logits.dtype)

    def _read(self, token: int) -> None:
        if self._thoughts is not None and self._thoughts.take(token):
            return
        if token in self._ends:
            self._ended = True
        elif not self._matcher.consume_token(token):
            self.failed = "the text left the grammar"

    def _allowed(self) -> npt.NDArray[np.bool_]:
        """For each token, whether it may come next."""
        thoughts = self._thoughts
        if thoughts is not None and thoughts.phase is Phase.OPEN:
            free = np.ones(self._vocabulary_size, np.bool_)
            free[[end for end in self._ends if end < free.size]] = False
            return free
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little", count=self._vocabulary_size)
        if thoughts is not None and thoughts.opener is not None:
            allowed[thoughts.opener] = 1
        return allowed.view(np.bool_)


def guide_failure(reason: str) -> EngineError:
    """What the consumer hears when a guide could not go on."""
    return EngineError(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "the answer could not be held to response_format",
        why=reason,
        next_step="simplify the schema",
    )


def _reason(message: str) -> str:
    """What may be said of llguidance's message: it may quote the schema, keywords are harmless."""
    found = _UNIMPLEMENTED.match(message.strip())
    if found is None:
        return "cannot be enforced"
    return "uses keywords that cannot be enforced: " + found[1].replace('"', "")


def _refused(structure: Structure, reason: str) -> InvalidGenerationError:
    message = f"the schema of {structure.source} {reason}"
    return InvalidGenerationError(HTTPStatus.BAD_REQUEST, message)
