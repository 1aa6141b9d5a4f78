"""What decoding has to read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from darkbloom_provider.errors import ModelError
from darkbloom_provider.models.weights_read import WeightsRead, reckon, weights_read

LAYER = [("model.layers.0.self_attn.q_proj.weight", 100), ("model.norm.weight", 4)]
EMBEDDING = [("model.embed_tokens.weight", 1000), ("model.embed_tokens.scales", 10)]
EXPERTS = [
    ("model.layers.0.mlp.switch_mlp.gate_proj.weight", 6400),
    ("model.layers.0.mlp.gate.weight", 50),
    ("model.layers.0.mlp.shared_expert.up_proj.weight", 30),
]


def test_a_table_that_also_makes_the_output_is_read_whole() -> None:
    assert reckon([*LAYER, *EMBEDDING], {}) == WeightsRead(1114, 1114)


def test_a_table_for_the_input_alone_costs_nothing() -> None:
    tensors = [*LAYER, *EMBEDDING, ("lm_head.weight", 2000)]
    assert reckon(tensors, {}) == WeightsRead(3114, 2104)


@pytest.mark.parametrize(
    "config",
    [
        {"num_experts": 64, "num_experts_per_tok": 8},
        {"num_local_experts": 64, "num_experts_per_tok": 8},
        {"n_routed_experts": 64, "num_experts_per_tok": 8},
        {"text_config": {"num_experts": 64, "top_k_experts": 8}},
    ],
)
def test_of_experts_only_those_visited_are_read(config: dict[str, object]) -> None:
    read = reckon([*LAYER, *EXPERTS], config)
    assert read.experts == (8, 64)
    assert read.per_token == 104 + 800 + 50 + 30
    assert read.total == 104 + 6480


@pytest.mark.parametrize("name", ["model.layers.0.experts.switch_glu.up_proj.weight"])
def test_gemmas_experts_are_found_by_their_name(name: str) -> None:
    assert reckon([(name, 640)], {"num_experts": 64, "top_k_experts": 8}).per_token == 80


def test_other_senses_and_draft_heads_are_not_read() -> None:
    tensors = [*LAYER, ("vision_tower.blocks.0.weight", 500), ("mtp.layers.0.weight", 70)]
    assert reckon(tensors, {}).per_token == 104


@pytest.mark.parametrize("count", [None, True, "8", 0, 65])
def test_counts_that_make_no_sense_are_no_experts(count: object) -> None:
    config = {"num_experts": 64, "num_experts_per_tok": count}
    assert reckon(EXPERTS, config).experts is None


def test_a_folder_is_reckoned_from_its_headers(tiny_model: Path) -> None:
    read = weights_read(tiny_model)
    assert 0 < read.per_token < read.total < (tiny_model / "model.safetensors").stat().st_size


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match="cannot be read"):
        weights_read(tmp_path)
