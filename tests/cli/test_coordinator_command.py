"""`darkbloom coordinator`: keys and approvals without a browser, beside a running coordinator."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from darkbloom_provider.cli.main import darkbloom
from darkbloom_provider.coordinator.accounts.device_login import DeviceLoginError
from darkbloom_provider.errors import UsageError
from support.network import network


def run(*arguments: str) -> Result:
    return CliRunner().invoke(darkbloom, ["coordinator", *arguments], catch_exceptions=True)


def key_of(result: Result) -> str:
    return next(line.split()[-1] for line in result.output.splitlines() if "API key" in line)


def test_a_key_for_a_new_user_with_credit(tmp_path: Path) -> None:
    first = run("key", "--email", "a@example.org", "--credit", "1.25", "--data", str(tmp_path))
    assert first.exit_code == 0, first.output
    assert "New user" in first.output
    assert "$1.250000" in first.output
    again = run("key", "--email", "A@example.org", "--credit", "0.75", "--data", str(tmp_path))
    assert "New user" not in again.output
    assert "$2.000000" in again.output
    assert key_of(first) != key_of(again)


@pytest.mark.parametrize("credit", ["-1", "lots", "0.0000001", "nan"])
def test_credit_that_is_no_amount_is_refused(tmp_path: Path, credit: str) -> None:
    result = run("key", "--email", "a@example.org", f"--credit={credit}", "--data", str(tmp_path))
    assert result.exit_code == 2
    assert "--credit" in result.output
    assert list(tmp_path.iterdir()) == []


async def test_a_key_made_beside_a_running_coordinator_works_there(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        result = await asyncio.to_thread(
            run, "key", "--email", "b@example.org", "--credit", "2", "--data", str(tmp_path)
        )
        assert result.exit_code == 0, result.exception
        headers = {"Authorization": f"Bearer {key_of(result)}"}
        held = await net.http.get("/v1/payments/balance", headers=headers)
        assert held.json()["balance_micro_usd"] == 2_000_000


async def test_a_machine_is_approved_from_the_command_line(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        code = (await net.http.post("/v1/device/code")).json()
        arguments = ("approve", code["user_code"], "--email", "b@example.org")
        result = await asyncio.to_thread(run, *arguments, "--data", str(tmp_path))
        assert result.exit_code == 0, result.exception
        linked = await net.http.post("/v1/device/token", json={"device_code": code["device_code"]})
        assert linked.json()["status"] == "authorized"
        again = await asyncio.to_thread(run, *arguments, "--data", str(tmp_path))
        assert isinstance(again.exception, DeviceLoginError)


def test_an_empty_admin_key_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("\n")
    result = run("serve", "--admin-key-file", str(file), "--data", str(tmp_path / "state"))
    assert isinstance(result.exception, UsageError)


def test_other_machines_are_let_in_only_with_an_admin_key(tmp_path: Path) -> None:
    result = run("serve", "--host", "0.0.0.0", "--data", str(tmp_path))  # noqa: S104 - the point
    assert isinstance(result.exception, UsageError)
    assert "--admin-key-file" in str(result.exception.next_step)


def test_a_hash_that_can_match_nothing_is_refused() -> None:
    for option in ("--python-hash", "--runtime-hash"):
        result = run("serve", option, "ABC")
        assert result.exit_code == 2
        assert "not 64 hex digits" in result.output


@pytest.mark.parametrize("address", ["*", "proxy.example.org", "10.0.0.1/8", ""])
def test_a_proxy_is_named_by_its_address(address: str) -> None:
    result = run("serve", "--proxy", address)
    assert result.exit_code == 2
    assert "127.0.0.1 or 10.0.0.0/8" in result.output


@pytest.mark.parametrize(
    "address", ["example.org", "ftp://a", "https://a/b", "https://me@a", "https://"]
)
def test_a_console_address_that_is_no_origin_is_refused(address: str) -> None:
    result = run("serve", "--console-url", address)
    assert result.exit_code == 2
    assert "https://console.example.org" in result.output
