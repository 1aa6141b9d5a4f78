"""mlx-lm serves without transformers, and is all there for whoever asks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LOADED = (
    "[name for name in ('transformers', 'mlx_lm.generate', 'mlx_lm.tokenizer_utils')"
    " if name in sys.modules]"
)


def said(program: str, *arguments: object) -> list[object]:
    """What a program prints in a fresh process, line by line, as JSON."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


PREPARED = """
import json, sys
from pathlib import Path
from darkbloom_provider.engine import runtime
runtime.prepare({})
folder = Path(sys.argv[1])
def tell(thing): print(json.dumps(thing))
"""


def test_a_model_is_loaded_and_prompted_without_transformers(tiny_model: Path) -> None:
    program = f"""{PREPARED}
from darkbloom_provider.engine import library, loading, prompt
from darkbloom_provider.engine.requests import GenerationRequest
steps = loading.load_steps(folder, 1 << 20)
try:
    while True: next(steps)
except StopIteration as end:
    weights = end.value
ask = GenerationRequest("1", "tiny", messages=({{"role": "user", "content": "light"}},))
tell(len(prompt.encode(weights.tokenizer, ask)) > 5)
tell({LOADED})
"""
    assert said(program, tiny_model) == [True, []]


def test_a_tokenizer_that_takes_transformers_gets_it_when_it_is_loaded(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).symlink_to(file)
    settings = json.loads((tiny_model / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").unlink()
    settings["tokenizer_class"] = "GPT2Tokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    program = f"""{PREPARED}
from darkbloom_provider.engine import loading
steps = loading.load_steps(folder, 1 << 20)
try:
    while True: next(steps)
except StopIteration as end:
    weights = end.value
tell(type(weights.tokenizer).__name__)
tell({LOADED})
"""
    assert said(program, folder) == ["TokenizerWrapper", ["transformers", "mlx_lm.tokenizer_utils"]]


def test_the_package_is_whole_for_whoever_asks_for_a_name(tiny_model: Path) -> None:
    program = f"""{PREPARED}
import mlx_lm
tell([hasattr(mlx_lm, "__wrapped__"), {LOADED}])
from mlx_lm import generate, load
model, tokenizer = load(str(folder))
tell(len(generate(model, tokenizer, "light", max_tokens=3)) > 0)
tell(mlx_lm.__version__[:2])
tell(hasattr(mlx_lm, "no_such_thing"))
"""
    assert said(program, tiny_model) == [[False, []], True, "0.", False]


def test_a_process_that_has_imported_mlx_lm_keeps_it_as_it_is() -> None:
    program = """
import json
import mlx_lm
before = dict(vars(mlx_lm))
from darkbloom_provider.engine import mlx_lm_package
mlx_lm_package.prepare()
mlx_lm_package.prepare()
import sys
print(json.dumps(sys.modules["mlx_lm"] is mlx_lm and vars(mlx_lm) == before))
"""
    assert said(program) == [True]


def test_without_mlx_lm_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
import importlib.util, json, sys
from darkbloom_provider.engine import mlx_lm_package
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "mlx_lm" else find(name)
try:
    mlx_lm_package.prepare()
except ImportError as error:
    print(json.dumps([str(error), "mlx_lm" in sys.modules]))
"""
    assert said(program) == [["mlx_lm is not installed", False]]
