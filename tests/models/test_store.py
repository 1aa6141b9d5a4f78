from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.errors import ModelError
from darkbloom_provider.models import store


@pytest.fixture
def models_dir(tmp_path: Path, tiny_model: Path) -> Path:
    shutil.copytree(tiny_model, tmp_path / "models" / store.folder_name("owner/tiny"))
    return tmp_path / "models"


@given(st.text(min_size=1, max_size=15).filter(lambda text: text.isprintable()))
def test_a_folder_name_is_one_visible_component_and_tells_the_id_again(model_id: str) -> None:
    name = store.folder_name(model_id)
    assert Path(name).name == name
    assert not name.startswith(".")
    assert store.model_id_of(name) == model_id


@pytest.mark.parametrize("model_id", ["", "x" * 201])
def test_an_id_that_cannot_be_a_folder_is_refused(model_id: str) -> None:
    with pytest.raises(ModelError):
        store.folder_name(model_id)


def test_a_whole_model_is_listed_with_its_figures(models_dir: Path) -> None:
    [model] = store.installed(models_dir)
    assert model.id == "owner/tiny"
    assert (model.model_type, model.quantization) == ("llama", "float32")
    assert model.size_bytes == sum(file.stat().st_size for file in model.path.iterdir())
    assert store.find(models_dir, "owner/tiny") == model


def test_no_directory_means_no_models(tmp_path: Path) -> None:
    assert store.survey(tmp_path / "absent", tmp_path / "absent too") == store.Survey((), ())


def test_hidden_folders_are_never_models(models_dir: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, models_dir / f"{store.TEMPORARY_PREFIX}abc")
    assert [model.id for model in store.installed(models_dir)] == ["owner/tiny"]


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def _cut_in_header(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])


def _missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "names no model_type"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "cannot be read"),
        (_cut, "bytes"),
        (_cut_in_header, "cannot be read"),
        (_missing_shard, "model-00002-of-00002.safetensors is missing"),
    ],
)
def test_a_folder_that_is_not_whole_is_reported_with_the_reason_and_not_listed(
    models_dir: Path, damage: object, reason: str
) -> None:
    assert callable(damage)
    damage(models_dir / store.folder_name("owner/tiny"))
    found = store.survey(models_dir)
    assert found.installed == ()
    assert reason in found.incomplete[0].why
    with pytest.raises(ModelError, match="not complete"):
        store.find(models_dir, "owner/tiny")


def test_an_unknown_model_is_not_installed(models_dir: Path) -> None:
    with pytest.raises(ModelError, match="not installed"):
        store.find(models_dir, "other")


def _snapshot(cache: Path, repository: str, source: Path, commit: str = "abc") -> Path:
    folder = cache / repository
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    shutil.copytree(source, folder / "snapshots" / commit)
    return folder / "snapshots" / commit


def test_whole_mlx_snapshots_of_the_hugging_face_cache_count(
    tmp_path: Path, tiny_model: Path
) -> None:
    path = _snapshot(tmp_path, "models--mlx-community--Tiny-4bit", tiny_model)
    [model] = store.installed(tmp_path / "none", tmp_path)
    assert (model.id, model.path) == ("mlx-community/Tiny-4bit", path)


def test_snapshots_of_other_programs_or_half_downloaded_are_passed_over(
    tmp_path: Path, tiny_model: Path
) -> None:
    torch = _snapshot(tmp_path, "models--owner--torch", tiny_model)
    weights = torch / "model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b'"format":"mlx"', b'"format":"pt" '))
    half = _snapshot(tmp_path, "models--owner--half", tiny_model)
    (half / "model.safetensors").unlink()
    (tmp_path / "models--owner--empty").mkdir()
    assert store.survey(tmp_path / "none", tmp_path) == store.Survey((), ())


def test_our_own_copy_hides_the_one_in_the_cache(
    models_dir: Path, tmp_path: Path, tiny_model: Path
) -> None:
    _snapshot(tmp_path / "hub", "models--owner--tiny", tiny_model)
    [model] = store.installed(models_dir, tmp_path / "hub")
    assert model.path.parent == models_dir


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"HF_HUB_CACHE": "/a/b", "HF_HOME": "/c"}, Path("/a/b")),
        ({"HF_HOME": "/c"}, Path("/c/hub")),
        ({"XDG_CACHE_HOME": "/d"}, Path("/d/huggingface/hub")),
        ({}, Path.home() / ".cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_hugging_face_looks_for_it(environ: dict[str, str], path: Path) -> None:
    assert store.hub_cache(environ) == path
