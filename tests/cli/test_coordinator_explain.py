"""`darkbloom coordinator explain`: the operator asks why, and is told what to do."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from darkbloom_provider.cli import coordinator_explain
from darkbloom_provider.cli.main import darkbloom
from darkbloom_provider.coordinator.beside import ADDRESS_FILE
from darkbloom_provider.coordinator.routing.advice import TODO
from darkbloom_provider.coordinator.routing.costs import CostTerms
from darkbloom_provider.errors import ExitCode, ModelError, UnreachableError
from support.network import Network, network
from support.scripted_provider import MODEL, Job, scripted_provider


async def idle(job: Job) -> None:
    del job


def run(directory: Path, *arguments: str, columns: int = 80) -> Result:
    runner = CliRunner(env={"COLUMNS": str(columns), "NO_COLOR": "1"})
    return runner.invoke(
        darkbloom, ["coordinator", "explain", *arguments, "--data", str(directory)]
    )


async def explained(net: Network, *arguments: str, columns: int = 80) -> Result:
    directory = net.coordinator.settings.state_directory
    return await asyncio.to_thread(run, directory, *arguments, columns=columns)


@pytest.mark.parametrize("columns", [40, 80, 120])
async def test_it_says_who_gets_it_what_it_costs_and_why_not_the_others(
    tmp_path: Path, columns: int
) -> None:
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, idle, decode_tps=100.0),
        scripted_provider(net.ws_url, idle, encrypted_response_chunks=False),
    ):
        await net.until(lambda: net.verified() == 2)
        result = await explained(net, MODEL, "--max-tokens", "1000", columns=columns)
        assert result.exit_code == 0, result.exception
        shown = " ".join(result.output.split())
        assert "One provider would get it." in shown
        assert "writing the answer 10.00 s" in shown
        assert "does not encrypt its answers (update darkbloom" in shown
        assert max(len(line) for line in result.output.splitlines()) <= columns


async def test_it_works_without_an_administrator_or_an_admin_key(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        assert net.coordinator.settings.admin_key is None
        result = await explained(net, MODEL)
        assert result.exit_code == 0
        assert "No provider is connected" in result.output
        assert "darkbloom serve --coordinator" in result.output


async def test_as_json_it_is_what_the_coordinator_answers(tmp_path: Path) -> None:
    async with network(tmp_path) as net, scripted_provider(net.ws_url, idle):
        await net.until(lambda: net.verified() == 1)
        result = await explained(net, MODEL, "--json", "--prompt-tokens", "7")
        document = json.loads(result.output)
        assert document["prompt_tokens"] == 7
        assert document["providers"][0]["chosen"]
        assert set(document["providers"][0]["cost_terms_ms"]) == set(CostTerms._fields)


async def test_a_model_that_is_not_known_is_an_error_with_those_that_are(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        result = await explained(net, "unheard-of")
        assert isinstance(result.exception, ModelError)
        assert MODEL in (result.exception.why or "")


def test_without_a_coordinator_it_says_what_to_type_and_makes_nothing(tmp_path: Path) -> None:
    result = run(tmp_path / "none", MODEL)
    assert isinstance(result.exception, UnreachableError)
    assert result.exception.exit_code == ExitCode.UNREACHABLE
    assert f"darkbloom coordinator serve --data {tmp_path / 'none'}" in (
        result.exception.next_step or ""
    )
    assert list(tmp_path.iterdir()) == []


async def test_one_that_was_killed_is_told_apart_from_one_that_runs(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        left = (tmp_path / ADDRESS_FILE).read_text()
        assert left.strip() == net.coordinator.base_url
    assert not (tmp_path / ADDRESS_FILE).exists()
    (tmp_path / ADDRESS_FILE).write_text(left)
    result = await asyncio.to_thread(run, tmp_path, MODEL)
    assert isinstance(result.exception, UnreachableError)
    assert "darkbloom coordinator serve" in (result.exception.next_step or "")


async def test_what_a_provider_calls_itself_cannot_steer_the_terminal(tmp_path: Path) -> None:
    hardware = {"chip_name": "M4\x1b[2J", "memory_gb": 64}
    async with network(tmp_path) as net, scripted_provider(net.ws_url, idle) as provider:
        register = {"type": "register", "hardware": hardware, "public_key": "x"}
        await provider.send_raw(json.dumps(register))
        hub = net.coordinator.hub
        await net.until(lambda: any(s.hardware.chip_name != "Apple M4 Max" for s in hub.registry))
        result = await explained(net, MODEL)
        assert "\x1b" not in result.output


def test_every_term_of_the_cost_has_words() -> None:
    assert set(coordinator_explain._TERMS) == set(CostTerms._fields)


def test_every_command_that_is_advised_exists() -> None:
    advised = [command for text in TODO.values() for command in re.findall("`(.*?)`", text)]
    assert advised
    for command in advised:
        program, *words = shlex.split(command)
        assert program == "darkbloom"
        group: click.Command = darkbloom
        context = click.Context(group)
        for word in words:
            if word.startswith("-"):
                assert any(word in option.opts for option in group.params), command
                break
            assert isinstance(group, click.Group)
            found = group.get_command(context, word)
            assert found is not None, command
            group = found
