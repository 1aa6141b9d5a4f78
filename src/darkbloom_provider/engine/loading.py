"""Reading a model into memory, in steps between which running streams go on. Engine thread only."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model, load_tokenizer

from darkbloom_provider.engine import tokenizer_folder, trial
from darkbloom_provider.engine.errors import UnbatchableModelError
from darkbloom_provider.engine.layers import CannotBeBatchedError
from darkbloom_provider.engine.prompt import Tokenizer
from darkbloom_provider.errors import ModelError

Model: TypeAlias = Callable[..., Any]
"""An MLX module: arrays in, arrays out."""

DEFAULT_CONTEXT_LENGTH = 4096
"""Assumed for a model whose config does not tell. Small: better a prompt refused than nonsense."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A model ready to compute."""

    model: Model
    tokenizer: Tokenizer
    context_length: int
    weight_bytes: int
    vocabulary_size: int
    """Width of the logits; tokenizers often know fewer tokens."""
    keeps_company: bool = True
    """Whether requests can be computed together; else it answers one at a time."""
    chat_template: str | None = None
    special_tokens: frozenset[str] = frozenset()


def load_steps(path: Path, step_bytes: int) -> Generator[None, None, Weights]:
    """Load the mlx-lm folder at `path`, yielding between pieces of about `step_bytes`.

    Only local files are read, and no code that a model brings along is run.

    Raises:
        UnbatchableModelError: Its layers are of a kind that the engine cannot batch.
        ModelError: The folder is not there, is not complete, or is not a model MLX can run.
    """
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} is not a model folder", why="it has no config.json")
    try:
        model, config = load_model(path, lazy=True)
        _check_fixed_tokens(model, config)
        yield
        parameters = [array for _, array in tree_flatten(model.parameters())]
        for group in _groups(parameters, step_bytes):
            mx.eval(group)
            yield
        tokenizer = _tokenizer(path, model, config.get("eos_token_id"))
        # The first call may change the tokenizer's settings; from then on threads may share it.
        tokenizer.encode("")
        yield
        vocabulary_size = _warm_up(model)
        yield
        keeps_company = trial.keeps_company(model)
    except CannotBeBatchedError as error:
        raise UnbatchableModelError(path, error.kind) from error
    except (Exception, SystemExit) as error:
        # A damaged or foreign folder makes mlx-lm, transformers and tokenizers raise all kinds,
        # bare `Exception` among them, and one of mlx-lm's modules exits if it misses a package.
        # None of it may end the thread that serves other models.
        raise ModelError(
            f"The model in {path} cannot be loaded",
            why=_first_line(error),
            next_step="import or download it again",
        ) from error
    return Weights(
        model=model,
        tokenizer=tokenizer,
        context_length=context_length(config),
        weight_bytes=sum(array.nbytes for array in parameters),
        vocabulary_size=vocabulary_size,
        keeps_company=keeps_company,
        chat_template=_chat_template(getattr(tokenizer, "chat_template", None)),
        special_tokens=frozenset(tokenizer.get_added_vocab()),
    )


def _check_fixed_tokens(model: Model, config: dict[str, Any]) -> None:
    """Refuse a phi3small with fewer tokens than the original.

    mlx-lm's module silences tokens by numbers of its own, up to 100,351, whatever the vocabulary's
    size, and MLX checks no index: it would write beyond the logits, into the heap.
    """
    fixed = getattr(model, "_dummy_tokenizer_ids", None)
    if fixed is not None and mx.max(fixed).item() >= config["vocab_size"]:
        raise ValueError(f"mlx-lm cannot run it with a vocabulary of {config['vocab_size']}")


def _tokenizer(path: Path, model: Model, eos_token_ids: Any) -> Tokenizer:  # noqa: ANN401 - of a config
    # mlx-lm has settings of its own for the tokenizers of a few architectures.
    if not hasattr(sys.modules[type(model).__module__], "TOKENIZER_DEFAULTS"):
        plain = tokenizer_folder.read(path, eos_token_ids)
        if plain is not None:
            return plain
    full: Tokenizer = load_tokenizer(
        path,
        {"local_files_only": True, "trust_remote_code": False},
        eos_token_ids=eos_token_ids,
    )
    return full


def context_length(config: dict[str, Any]) -> int:
    """Tokens of prompt and completion together that a model was made for, from its config."""
    for section in (config, config.get("text_config") or {}):
        value = section.get("max_position_embeddings")
        if isinstance(value, int) and value > 0:
            return value
    return DEFAULT_CONTEXT_LENGTH


def _chat_template(found: object) -> str | None:
    """One template's source; of several, the one that is rendered with tools."""
    if isinstance(found, dict):
        found = found.get("tool_use") or found.get("default")
    return found if isinstance(found, str) else None


def _groups(arrays: list[Any], limit: int) -> Generator[list[Any], None, None]:
    group: list[Any] = []
    size = 0
    for array in arrays:
        group.append(array)
        size += array.nbytes
        if size >= limit:
            yield group
            group, size = [], 0
    if group:
        yield group


def _warm_up(model: Model) -> int:
    """Run one token through and return the width of the logits.

    Kernels are compiled along the way, before the first request is timed.
    """
    cache = make_prompt_cache(model)
    logits = model(mx.array([[0]]), cache=cache)
    mx.eval(logits)
    return int(logits.shape[-1])


def _first_line(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"a file is not valid JSON ({error.msg}, line {error.lineno})"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
