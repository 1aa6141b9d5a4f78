"""What a model is put through before it serves: it is served right, or refused and told why."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx_lm.models
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import phi3small
from mlx_lm.models.cache import CacheList, make_prompt_cache

from darkbloom_provider.engine.engine import Engine
from darkbloom_provider.engine.errors import UnbatchableModelError
from darkbloom_provider.engine.layers import Layer
from darkbloom_provider.engine.loading import Weights, load_steps
from darkbloom_provider.engine.prompt_cache import PromptCache
from darkbloom_provider.errors import ModelError
from support.batch_run import SETTINGS, Run, ask, weights_of
from support.families import ALONE, FAMILIES, UNBATCHABLE, build_family, save_family
from support.greedy import greedy

MODULES = Path(mlx_lm.models.__path__[0])
KINDS = {"llama4": "ChunkedKVCache", "deepseek_v41": "LayerCache"}


def load(path: Path) -> Weights:
    return weights_of(load_steps(path, step_bytes=10**9))


@pytest.mark.parametrize("family", UNBATCHABLE)
def test_a_model_whose_layers_cannot_be_batched_is_refused_when_it_is_loaded(
    family: str, tiny_model: Path, tmp_path: Path
) -> None:
    path = save_family(family, tiny_model, tmp_path / "model")
    with pytest.raises(UnbatchableModelError) as caught:
        load(path)
    assert caught.value.kind == KINDS[family]
    assert KINDS[family] in str(caught.value)
    assert "another family" in (caught.value.next_step or "")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_other_family_is_found_to_keep_company(family: str, tiny_model: Path) -> None:
    assert build_family(family, tiny_model).keeps_company


@pytest.mark.parametrize("family", ALONE)
def test_a_model_that_computes_one_row_only_answers_its_requests_one_by_one(
    family: str, tiny_model: Path, tmp_path: Path
) -> None:
    weights = load(save_family(family, tiny_model, tmp_path / "model"))
    requests = [ask("hello", 24), ask("the stone and the river " * 8, 8), ask("a", 16)]
    assert not weights.keeps_company
    run = Run(weights, SETTINGS, cache=PromptCache(10**8))
    for key, request in enumerate(requests):
        run.add(key, request)
        run.step(3)
        assert run.batch.snapshot("m").running == 1
    run.batch.hold(0, held=True)  # a slow reader keeps its place here
    run.step(3)
    assert run.batch.snapshot("m").running == 1
    run.batch.hold(0, held=False)
    outcomes = run.to_the_end()
    assert [outcomes[key].text for key in range(3)] == [
        greedy(weights, request).text for request in requests
    ]


async def test_a_module_of_mlx_lm_that_exits_ends_its_load_and_nothing_else(
    tiny_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    shutil.copytree(tiny_model, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"model_type": "olmo"}))
    async with Engine() as engine:
        with pytest.raises(ModelError, match="SystemExit"):
            await engine.load("olmo", path)
        await engine.load("tiny", tiny_model)


def test_a_model_that_would_write_beyond_its_logits_is_refused_before_it_runs(
    tiny_model: Path, tmp_path: Path
) -> None:
    """mlx-lm's phi3small silences tokens by number, also those that a smaller vocabulary lacks."""
    path = shutil.copytree(tiny_model, tmp_path / "model")
    config = {
        "model_type": "phi3small",
        "vocab_size": json.loads((path / "config.json").read_text())["vocab_size"],
        "hidden_size": 32,
        "ff_intermediate_size": 64,
        "gegelu_limit": 20.0,
        "dense_attention_every_n_layers": 2,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "layer_norm_epsilon": 1e-5,
    }
    (path / "config.json").write_text(json.dumps(config))
    parameters = phi3small.Model(phi3small.ModelArgs(**config)).parameters()
    mx.save_safetensors(
        str(path / "model.safetensors"), dict(tree_flatten(parameters)), metadata={"format": "mlx"}
    )
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load(path)
    assert f"a vocabulary of {config['vocab_size']}" in (caught.value.why or "")


# ---------------------------------------------------------------- all that mlx-lm has


def made_by(module: Path) -> set[str]:
    """The kinds of layers that a module's models ask for, by name."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    functions = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "make_cache"
    ]
    return set(re.findall(r"\b\w+Cache\b(?=\()", "\n".join(map(ast.unparse, functions))))


def kinds_of(layers: list[Layer]) -> Iterator[str]:
    for layer in layers:
        yield type(layer).__name__
        if isinstance(layer, CacheList):
            yield from kinds_of(list(layer.caches))


def test_every_kind_of_layer_that_mlx_lm_has_is_tried_here(tiny_model: Path) -> None:
    served = {
        kind
        for family in FAMILIES
        for kind in kinds_of(make_prompt_cache(build_family(family, tiny_model).model))
    }
    refused: dict[str, set[str]] = {}
    for module in sorted(MODULES.glob("*.py")):
        others = made_by(module) - served
        if others and module.stem != "cache":
            refused[module.stem] = others
    assert refused == {family: {kind} for family, kind in KINDS.items()}
