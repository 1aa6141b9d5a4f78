"""A private network as its owner sets it up: only commands, only what they print."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
from pathlib import Path

import httpx

from support.network import CHAT
from support.processes import Program, darkbloom, running, until
from support.provider_home import MODEL, provider_home

CANARY = "heliotrope-canary-4711"
QUESTION = {
    "model": MODEL,
    "messages": [{"role": "user", "content": f"Say {CANARY}"}],
    "max_tokens": 60,
    "temperature": 0,
}


async def test_from_an_empty_machine_to_earned_money_with_the_command_line(
    home_root: Path, tiny_model: Path
) -> None:
    operator = home_root / "operator"
    with running("coordinator", "coordinator", "serve", "--port", "0", home=operator) as network:
        await until(lambda: "Ctrl-C stops it." in network.output, "the coordinator", of=network)
        base = re.findall(r"Coordinator: (http://\S+)", network.output)[0]
        home = provider_home(home_root, base, tiny_model)

        made = darkbloom(
            "coordinator", "key", "--email", "consumer@example.org", "--credit", "5", home=operator
        )
        (key,) = re.findall(r"eigeninference-[0-9a-f]{64}", made.stdout)

        assert darkbloom("status", home=home.root).returncode == 3

        with running("login", "login", home=home.root) as login:
            await until(lambda: "enter the code" in login.output, "the code", of=login)
            code = re.findall(r"[A-Z2-9]{4}-[A-Z2-9]{4}", login.output)[0]
            approved = darkbloom(
                "coordinator", "approve", code, "--email", "owner@example.org", home=operator
            )
            assert approved.returncode == 0, approved.stderr
            assert await login.ended() == 0
            assert str(home.credentials) in login.output, "where the token went is said aloud"
        assert stat.S_IMODE(home.credentials.stat().st_mode) == 0o600

        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=base, headers=headers, timeout=30) as http:

            async def routable() -> bool:
                return bool((await http.get("/v1/models")).json()["data"])

            with running("provider", "serve", home=home.root) as provider:
                await until(routable, "the provider to be routable", of=provider)
                reply = await http.post(CHAT, json=QUESTION)
                assert reply.status_code == 200

                status = json.loads(darkbloom("status", "--json", home=home.root).stdout)
                assert status["coordinator"]["phase"] == "registered"
                assert status["account"]["linked"]
                assert status["models"][0]["id"] == MODEL
                assert status["jobs"]["served"] == 1
                assert status["jobs"]["completion_tokens"] == 60
                shown = darkbloom("status", home=home.root).stdout
                assert base.removeprefix("http") in shown
                assert MODEL in shown
                directory = home.control_socket.parent
                assert stat.S_IMODE(home.control_socket.stat().st_mode) == 0o600
                assert stat.S_IMODE(directory.stat().st_mode) == 0o700

                second = darkbloom("serve", home=home.root)
                assert second.returncode == 1
                assert str(provider.pid) in second.stderr

                earned = darkbloom("earnings", home=home.root)
                assert earned.returncode == 0
                assert "  Jobs served:   1\n" in earned.stdout

                assert darkbloom("logout", home=home.root).returncode == 0
                unlinked = darkbloom("earnings", home=home.root)
                assert "darkbloom login" in unlinked.stdout

            assert_nowhere(CANARY, home_root)
            assert_nowhere(key, home.root, but=operator)


def assert_nowhere(text: str, root: Path, but: Path | None = None) -> None:
    """No file below `root` holds `text`: logs, journal, ledger, state."""
    for path in root.rglob("*"):
        if path.is_file() and not (but is not None and path.is_relative_to(but)):
            assert text.encode() not in path.read_bytes(), f"{path} holds it"


def test_a_taken_port_is_named_with_what_to_type(home_root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = darkbloom("coordinator", "serve", "--port", str(port), home=home_root)
    assert refused.returncode == 1
    assert str(port) in refused.stderr
    assert f"--port {port + 1}" in refused.stderr


def test_a_wrong_setting_starts_nothing_and_names_its_line(home_root: Path) -> None:
    settings = home_root / "config" / "darkbloom" / "provider.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text("[backend]\nidle_timeout_mins = -5\n")
    for command in ("serve", "start", "earnings", "login"):
        refused = darkbloom(command, home=home_root)
        assert refused.returncode == 2, command
        assert f"{settings}, line 2" in refused.stderr
        assert "Next:" in refused.stderr
    assert not (home_root / "run").exists()


def test_serving_without_a_model_says_how_to_get_one(home_root: Path) -> None:
    refused = darkbloom("serve", home=home_root)
    assert refused.returncode == 1
    assert "darkbloom models import" in refused.stderr


def test_earnings_offline_shows_local_estimates_and_exits_3(home_root: Path) -> None:
    offline = darkbloom("earnings", "--coordinator", "http://127.0.0.1:9", home=home_root)
    assert offline.returncode == 3
    assert "Coordinator: offline (http://127.0.0.1:9)" in offline.stdout
    assert "local estimates" in offline.stdout


async def test_a_revoked_token_is_explained_and_exits_4(home_root: Path) -> None:
    operator = home_root / "operator"
    with running("coordinator", "coordinator", "serve", "--port", "0", home=operator) as network:
        await until(lambda: "Ctrl-C stops it." in network.output, "the coordinator", of=network)
        base = re.findall(r"Coordinator: (http://\S+)", network.output)[0]
        home = provider_home(home_root, base, home_root)
        home.credentials.write_text(
            json.dumps({"coordinators": {base: {"token": "eigeninference-pt-" + "0" * 64}}})
        )
        refused = darkbloom("earnings", home=home.root)
    assert refused.returncode == 4
    assert "darkbloom login" in refused.stderr
    assert "0" * 64 not in refused.stderr + refused.stdout


async def test_ctrl_c_at_the_login_poll_is_clean(home_root: Path) -> None:
    operator = home_root / "operator"
    with running("coordinator", "coordinator", "serve", "--port", "0", home=operator) as network:
        await until(lambda: "Ctrl-C stops it." in network.output, "the coordinator", of=network)
        base = re.findall(r"Coordinator: (http://\S+)", network.output)[0]
        login = Program("login", "login", "--coordinator", base, home=home_root)
        await until(lambda: "enter the code" in login.output, "the code", of=login)
        login.signal(signal.SIGINT)
        assert await login.ended() == 130
    assert "Traceback" not in login.output
    assert "darkbloom login" in login.output
