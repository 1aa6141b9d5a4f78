from __future__ import annotations

import json
import os
import shutil
import signal
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from darkbloom_provider.cli import benchmark as command
from darkbloom_provider.cli.main import darkbloom
from darkbloom_provider.daemon.instance import single_instance
from darkbloom_provider.engine import benchmark, card
from darkbloom_provider.engine.benchmark import Plan
from darkbloom_provider.engine.card import BatchRates
from darkbloom_provider.errors import DarkbloomError, ModelError, UsageError
from darkbloom_provider.host import bandwidth
from darkbloom_provider.paths import Home
from support.processes import Program, until

TINY = Plan(batches=(1, 2), prompt_tokens=40, output_tokens=4, rounds=1)


@pytest.fixture
def home(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("DARKBLOOM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(benchmark, "QUICK", TINY)
    monkeypatch.setattr(bandwidth, "copied_gbs", lambda: 20.0)
    made = Home(tmp_path / "home")
    made.models.mkdir(parents=True)
    shutil.copytree(tiny_model, made.models / "tiny")
    return made


def run(*arguments: str) -> Result:
    return CliRunner().invoke(darkbloom, ["benchmark", *arguments], catch_exceptions=False)


def test_a_card_shows_the_limit_with_its_numbers_and_then_what_changed(home: Home) -> None:
    first = run("--quick").stdout
    assert first.splitlines()[0] == "Model:       tiny (quick run)"
    assert " GB/s / 0.000 GB read per token" in first
    assert "= 20.0 GB/s" in first
    assert "measured by copying a large array; the key-value cache is neglected" in first
    assert "Last run:" not in first
    assert stat.S_IMODE(home.benchmarks.stat().st_mode) == 0o600

    [kept] = card.history(home.benchmarks)
    slow = tuple(BatchRates(batch=r.batch, prefill_tps=1, decode_tps=1) for r in kept.rates)
    home.benchmarks.write_text(f"{kept.model_copy(update={'rates': slow}).model_dump_json()}\n")
    second = run("--quick").stdout
    assert f"Last run:    {kept.at:%Y-%m-%d %H:%M} UTC: prefill at 1 +" in second


def test_json_is_one_object_for_programs(home: Home) -> None:
    shown = json.loads(run("--quick", "--json").stdout)
    assert shown["model"] == "tiny"
    assert [rates["batch"] for rates in shown["rates"]] == [1, 2]
    assert shown["limit"]["bandwidth_source"] == "measured copy"
    expected = 20e9 / shown["limit"]["bytes_per_token"]
    assert shown["limit_tps"] == pytest.approx(expected)
    assert shown["previous"] is None
    assert json.loads(run("--quick", "--json").stdout)["previous"]["changes"]


def test_it_does_not_disturb_a_provider_unless_told_to(home: Home) -> None:
    with single_instance(home.pid_file, os.getpid()):
        with pytest.raises(DarkbloomError, match="A provider is serving") as caught:
            run("--quick")
        assert str(os.getpid()) in str(caught.value)
        assert "--force" in str(caught.value.next_step)
        assert not home.benchmarks.exists()
        assert run("--quick", "--force").exit_code == 0
    assert home.benchmarks.exists()


def test_which_model_is_meant_must_be_clear(home: Home, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, home.models / "other")
    with pytest.raises(UsageError) as several:
        run("--quick")
    assert several.value.next_step == "run: darkbloom benchmark --model other"
    with pytest.raises(ModelError, match="nothing is not installed"):
        run("--quick", "--model", "nothing")
    assert run("--quick", "--model", "other").stdout.startswith("Model:       other")
    shutil.rmtree(home.models)
    with pytest.raises(ModelError, match="There is no model"):
        run("--quick")


def test_figures_are_shown_even_where_they_cannot_be_kept(home: Home) -> None:
    home.benchmarks.mkdir()
    result = run("--quick")
    assert result.exit_code == 0
    assert "Tokens/s:" in result.stdout
    assert "cannot be written" in result.stderr


def test_a_mac_below_half_of_its_limit_is_told_what_to_look_for(home: Home) -> None:
    run("--quick")
    [kept] = card.history(home.benchmarks)
    slow = kept.model_copy(
        update={
            "memory": kept.memory.model_copy(update={"source": "metal"}),
            "rates": (BatchRates(batch=1, prefill_tps=1, decode_tps=0.1),),
            "refused": (16,),
            "limit": kept.limit.model_copy(update={"experts": (8, 64)}),
        }
    )
    shown = "\n".join(value for _, value in command.lines(slow, kept))
    assert "Low Power Mode" in shown
    assert "16  does not fit" in shown
    assert "8 of 64 experts are read" in shown


async def test_ctrl_c_is_clean_and_records_nothing(tmp_path: Path, tiny_model: Path) -> None:
    home = Home(tmp_path / "h")
    home.models.mkdir(parents=True)
    (home.models / "tiny").symlink_to(tiny_model, target_is_directory=True)
    program = Program("benchmark", "benchmark", home=home.root)
    try:
        await until(lambda: "batch of 1" in program.output, "a measurement", of=program)
        program.signal(signal.SIGINT)
        assert await program.ended() == 130, program.output
    finally:
        program.kill()
    assert "Traceback" not in program.output
    assert "Stopped. Nothing was recorded." in program.output
    assert not home.benchmarks.exists()
