"""How many bytes of a model are read from memory for one token: no decoding is faster than that.

A dense model reads every weight once a token. Two parts are not read whole: the table of
embeddings, of which a token needs one row (unless the same table also makes the output), and
experts, of which a token visits some. Towers for pictures and sound and heads for drafting have no
part in text.

The names are those that mlx-lm's models give their tensors and that configs on the Hugging Face
hub use. The key-value cache is read too; it is small beside the weights until texts are long, and
is neglected here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darkbloom_provider.errors import ModelError
from darkbloom_provider.models import safetensors_file

_EXPERTS = re.compile(r"\b(switch_mlp|switch_glu|experts)\.")
_EMBEDDING = re.compile(r"\b(embed_tokens|wte|word_embeddings|tok_embeddings)\.")
_OUTPUT = re.compile(r"\b(lm_head|output|embed_out)\.(weight|scales|biases)$")
_OTHER_SENSES = re.compile(r"\b(vision_\w+|visual|audio_\w+|multi_modal_projector|mtp)\.")
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
_VISITED_COUNTS = (
    "num_experts_per_tok",
    "top_k_experts",
    "experts_per_token",
    "num_experts_per_token",
    "moe_topk",
)


@dataclass(frozen=True, slots=True)
class WeightsRead:
    """Sizes in bytes."""

    total: int
    """All tensors."""
    per_token: int
    """Read for one token of text, at batch 1."""
    experts: tuple[int, int] | None = None
    """Experts that a token visits in a layer, and how many there are; None for a dense model."""


def weights_read(folder: Path) -> WeightsRead:
    """Reckon from the headers of the weight files and the config.

    Raises:
        ModelError: They cannot be read.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
        headers = [
            safetensors_file.read_header(file) for file in sorted(folder.glob("model*.safetensors"))
        ]
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The weights in {folder} cannot be read",
            why=str(error),
            next_step="run: darkbloom models list",
        ) from error
    tensors = (pair for h in headers for pair in zip(h.tensors, h.sizes, strict=True))
    return reckon(tensors, config if isinstance(config, dict) else {})


def reckon(tensors: Iterable[tuple[str, int]], config: Mapping[str, Any]) -> WeightsRead:
    """As `weights_read`, from the tensors' names and sizes in bytes."""
    table = [(name, size) for name, size in tensors]
    experts = _experts(config)
    tied = not any(_OUTPUT.search(name) for name, _ in table)
    read = 0.0
    for name, size in table:
        if _OTHER_SENSES.search(name) or (_EMBEDDING.search(name) and not tied):
            continue
        if experts is not None and _EXPERTS.search(name):
            visited, there_are = experts
            read += size * visited / there_are
        else:
            read += size
    return WeightsRead(sum(size for _, size in table), round(read), experts)


def _experts(config: Mapping[str, Any]) -> tuple[int, int] | None:
    text = config.get("text_config")
    for section in (config, text if isinstance(text, dict) else {}):
        there_are = _count(section, _EXPERT_COUNTS)
        visited = _count(section, _VISITED_COUNTS)
        if there_are and visited and visited <= there_are:
            return visited, there_are
    return None


def _count(section: Mapping[str, Any], names: Iterable[str]) -> int:
    found = (section.get(name) for name in names)
    return next((n for n in found if type(n) is int and n > 0), 0)
