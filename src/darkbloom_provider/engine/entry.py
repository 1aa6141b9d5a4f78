"""One request in the batch, and how it comes to be one. Engine thread only."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from darkbloom_provider.engine.errors import GenerationFailedError, InvalidGenerationError
from darkbloom_provider.engine.ledger import ModelMemory
from darkbloom_provider.engine.loading import Weights
from darkbloom_provider.engine.output import Output
from darkbloom_provider.engine.penalties import LogitsProcessor, processors
from darkbloom_provider.engine.prompt import EncodedPrompt, decoder
from darkbloom_provider.engine.prompt_cache import Space
from darkbloom_provider.engine.requests import GenerationRequest, Usage
from darkbloom_provider.engine.sharing import Candidate
from darkbloom_provider.engine.structure import Guide
from darkbloom_provider.engine.text import Detokenizer, StopMatcher
from darkbloom_provider.engine.token_bytes import token_data


@dataclass(slots=True)
class Entry:
    """A request in the waiting line or in the batch."""

    key: int
    request: GenerationRequest
    prompt: list[int]
    limit: int
    output: Output
    guide: Guide | None = None
    completion_tokens: int = 0

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(len(self.prompt), self.completion_tokens)

    @property
    def tokens(self) -> int:
        """What it comes to at most."""
        return len(self.prompt) + self.limit

    @property
    def candidate(self) -> Candidate:
        """What the prompt cache is asked about."""
        return Candidate(self.key, Space(self.request.model, self.request.tenant), self.prompt)

    def processors(self, vocabulary_size: int) -> list[LogitsProcessor]:
        """What changes its logits, in order. Made anew: they count its tokens."""
        found: list[LogitsProcessor] = [*processors(self.request, vocabulary_size)]
        # Last, so that nothing gives a token back that it has ruled out.
        return found if self.guide is None else [*found, self.guide]


class Intake:
    """Makes entries of requests to one model.

    Args:
        weights: The loaded model.
        memory: Refuses what can never fit.
        unasked_tokens: Longest completion of a request that sets no limit.
    """

    def __init__(self, weights: Weights, *, memory: ModelMemory, unasked_tokens: int) -> None:
        self._weights = weights
        self._memory = memory
        self._unasked_tokens = unasked_tokens
        self._text = decoder(weights.tokenizer)
        self._token_data = token_data(weights.tokenizer)

    def admit(
        self, key: int, request: GenerationRequest, prompt: EncodedPrompt, guide: Guide | None
    ) -> Entry:
        """Check a request whose prompt was read.

        Raises:
            InvalidGenerationError: The model cannot answer it.
            InsufficientMemoryError: It would not fit into memory.
        """
        tokens = prompt.tokens
        self._check_vocabulary(request, tokens)
        entry = Entry(
            key=key,
            request=request,
            prompt=tokens,
            limit=self._limit(len(tokens), request.max_tokens),
            output=Output(
                Detokenizer(self._text, tokens),
                StopMatcher(request.stop),
                request.logprobs,
                self._token_data,
            ),
            guide=guide,
        )
        self._memory.check(entry.tokens)
        return entry

    def _check_vocabulary(self, request: GenerationRequest, prompt: list[int]) -> None:
        # MLX checks no index: one beyond an array reads, or writes, what is not its own.
        size = self._weights.vocabulary_size
        if any(token >= size for token, _ in request.logit_bias):
            raise InvalidGenerationError(
                HTTPStatus.BAD_REQUEST, f"logit_bias names a token beyond this model's {size}"
            )
        if max(prompt) >= size:
            raise InvalidGenerationError(
                HTTPStatus.BAD_REQUEST,
                f"the prompt has a token beyond this model's {size}",
                why="the model's tokenizer has tokens that the model itself does not know",
                next_step="leave special tokens out of the text",
            )

    def _limit(self, prompt_tokens: int, max_tokens: int | None) -> int:
        context = self._weights.context_length
        room = context - prompt_tokens
        if room < 1:
            raise InvalidGenerationError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the prompt has {prompt_tokens} tokens, and this model reads {context} "
                "with the completion",
                next_step="shorten the prompt",
            )
        if max_tokens is not None:
            return min(max_tokens, room)
        room = min(room, self._unasked_tokens)
        return max(1, self._memory.most_tokens(prompt_tokens + room) - prompt_tokens)


def failure(error: Exception) -> GenerationFailedError:
    """What a request is told whose generation broke on `error`."""
    # The kind only: an exception's text may quote what it choked on.
    return GenerationFailedError(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "the engine failed while generating",
        why=type(error).__name__,
        next_step="send the request again",
    )
