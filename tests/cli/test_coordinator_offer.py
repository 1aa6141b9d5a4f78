"""`darkbloom coordinator price|model`: as an operator types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from darkbloom_provider.cli.main import darkbloom
from darkbloom_provider.errors import DarkbloomError

MODEL = "smollm2-135m-instruct"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "state"


def run(data: Path, *arguments: str) -> Result:
    return CliRunner().invoke(darkbloom, ["coordinator", *arguments, "--data", str(data)])


def json_of(data: Path, *arguments: str) -> Any:
    result = run(data, *arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def test_a_price_is_shown_set_and_reset(data: Path) -> None:
    assert run(data, "price", MODEL).output == (
        f"{MODEL}: $0.0500 read, $0.2000 written, per million tokens\n"
    )
    changed = {"model": MODEL, "input_price": 70_000, "output_price": 300_000}
    assert json_of(data, "price", MODEL, "0.07", "0.3") == {"prices": [changed]}
    assert changed in json_of(data, "price")["prices"]
    assert "$0.0500" in run(data, "price", MODEL, "--default").output


def test_a_model_is_added_priced_listed_and_removed(data: Path) -> None:
    assert "not listed here yet" in run(data, "price", "mine/m", "1", "2").output
    added = run(data, "model", "add", "mine/m", "--size-gb", "2.5", "--min-ram-gb", "8")
    assert "darkbloom coordinator price mine/m IN OUT" in added.output
    rows = {row["model"]: row for row in json_of(data, "model", "list")["models"]}
    assert rows["mine/m"] == {
        "model": "mine/m",
        "input_price": 1_000_000,
        "output_price": 2_000_000,
        "display_name": "mine/m",
        "size_gb": 2.5,
        "min_ram_gb": 8,
        "active": True,
    }
    for model in ("mine/m", MODEL):
        assert run(data, "model", "remove", model).exit_code == 0
        assert isinstance(run(data, "model", "remove", model).exception, DarkbloomError)
    assert {row["model"] for row in json_of(data, "model", "list")["models"]}.isdisjoint(
        {"mine/m", MODEL}
    )


@pytest.mark.parametrize(
    "words",
    [
        ("price", MODEL, "1"),
        ("price", MODEL, "one", "2"),
        ("price", MODEL, "-1", "2"),
        ("price", MODEL, "0", "2"),
        ("price", MODEL, "1", "2", "--default"),
        ("price", "--default"),
        ("price", "nothing/such"),
        ("model", "remove", "nothing/such"),
        ("model", "add", "m", "--weight-hash", "abc"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_changes(
    data: Path, words: tuple[str, ...]
) -> None:
    before = json_of(data, "model", "list")
    result = run(data, *words)
    assert result.exit_code == click.UsageError.exit_code or isinstance(
        result.exception, DarkbloomError
    ), result.output
    assert json_of(data, "model", "list") == before
