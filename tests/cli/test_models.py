from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from darkbloom_provider.cli.main import darkbloom, main
from darkbloom_provider.models import store
from support.tiny_gguf import build_tiny_gguf


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DARKBLOOM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no cache"))
    return tmp_path / "home"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(darkbloom, ["models", *arguments], catch_exceptions=False)


@pytest.mark.parametrize("arguments", [(), ("list",)])
def test_an_empty_list_says_what_to_type_next(home: Path, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "No models on this machine yet.",
        "Next: darkbloom models import PATH.gguf",
    ]


def test_import_then_list(home: Path, tmp_path: Path) -> None:
    source = build_tiny_gguf(tmp_path / "Tiny-Llama.Q4_1.gguf")
    imported = run("import", str(source), "--precision", "keep")
    assert imported.output.splitlines() == [
        "tiny-llama is installed (0.00 GB, 4bit).",
        "Next: darkbloom serve --model tiny-llama",
    ]
    again = run("import", str(source))
    assert "was installed before" in again.output
    header, row = run("list").output.splitlines()
    assert header.split()[:2] == ["Model", "Size"]
    assert row.split() == ["tiny-llama", "0.00", "GB", "4bit", "$0.050", "/", "$0.200"]


def test_json_is_one_object_for_programs(home: Path, tmp_path: Path) -> None:
    source = build_tiny_gguf(tmp_path / "tiny.gguf")
    imported = json.loads(run("import", str(source), "--id", "me/tiny", "--json").output)
    assert (imported["id"], imported["already_there"]) == ("me/tiny", False)
    for arguments in (("--json",), ("list", "--json")):
        listed = json.loads(run(*arguments).output)
        assert [model["id"] for model in listed["models"]] == ["me/tiny"]
        assert listed["models"][0]["output_price"] == 200_000
        assert listed["incomplete"] == []


def test_a_model_that_is_not_whole_is_told_with_the_reason(home: Path, tiny_model: Path) -> None:
    folder = home / "models" / store.folder_name("me/tiny")
    shutil.copytree(tiny_model, folder)
    (folder / "config.json").unlink()
    output = run("list").output
    assert "me/tiny is not complete and is not served: it has no config.json" in output
    assert json.loads(run("--json").output)["incomplete"][0]["id"] == "me/tiny"


def test_a_failed_import_says_what_why_and_what_next(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "x.gguf"
    source.write_bytes(b"something else")
    with pytest.raises(SystemExit) as caught:
        main(["models", "import", str(source)])
    assert caught.value.code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"{source} is not a GGUF file",
        "  Why:  it does not begin with the letters GGUF",
        "  Next: give the path of a .gguf file",
    ]
