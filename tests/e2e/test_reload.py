"""What an owner changes while the provider runs takes effect without a restart or a cut stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.control.client import DaemonClient
from darkbloom_provider.coordinator.accounts import device_login
from support.device_login import log_in
from support.network import CHAT, SLOW, Network, network, said
from support.processes import darkbloom, environment, running, until
from support.provider_home import MODEL, journal_rows, link, provider_home, until_served
from support.tiny_gguf import build_tiny_gguf

ASKED: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "hello"}],
    "temperature": 0,
    "max_tokens": 600,
}


async def test_login_and_logout_take_effect_while_it_runs_and_cut_no_stream(
    tmp_path: Path, home_root: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_login, "POLL_INTERVAL_S", 1)
    async with network(tmp_path / "coordinator", timing=SLOW) as net:
        home = provider_home(home_root, net.ws_url, tiny_model)
        token, owner = await net.link()
        with running("provider", "serve", home=home.root) as provider:
            await until_served(net, provider)
            daemon, unlinked = DaemonClient(home.control_socket), registered_at(net)

            # A token appears in the middle of a stream: the stream ends as it would have.
            payloads: list[str] = []
            async with net.http.stream("POST", CHAT, json=ASKED | {"stream": True}) as reply:
                async for line in reply.aiter_lines():
                    if line and not payloads:
                        link(home, net.ws_url, token, owner)
                        told = await asyncio.to_thread(daemon.reload_account)
                    payloads += [line.removeprefix("data: ")] if line else []
            assert (told.linked, told.changed, told.in_flight) == (True, True, 1)
            assert payloads[-1] == "[DONE]"
            assert len(said(payloads)) > 100

            await until(registered_anew(net, unlinked), "the registration", of=provider)
            # What the wallet had earned moves to the account, once.
            assert await net.balance(owner) == await net.spent() > 0
            await ask(net)
            earned = await net.balance(owner)
            assert earned == await net.spent()

            linked = registered_at(net)
            out = await asyncio.to_thread(darkbloom, "logout", home=home.root)
            assert "The running provider earns under its own wallet address from now on" in (
                out.stdout
            )
            await until(registered_anew(net, linked), "the registration", of=provider)
            await ask(net)
            assert await net.balance(owner) == earned < await net.spent()

            left = registered_at(net)
            code, shown = await log_in(net.coordinator, environment(home.root), "owner@example.org")
            assert code == 0
            assert "The running provider earns for this account from now on" in shown
            await until(registered_anew(net, left), "the registration", of=provider)
            assert await net.balance(owner) == await net.spent()
            await until(lambda: len(journal_rows(home)) == 3, "the journal", of=provider)
        assert [row.linked for row in reversed(journal_rows(home))] == [False, True, False]


async def test_an_imported_model_is_served_while_it_runs_and_cuts_no_stream(
    tmp_path: Path, home_root: Path, tiny_model: Path
) -> None:
    async with network(tmp_path / "coordinator", timing=SLOW) as net:
        home = provider_home(home_root, net.ws_url, tiny_model)
        source = build_tiny_gguf(tmp_path / "tiny.gguf")
        with running("provider", "serve", home=home.root) as provider:
            await until_served(net, provider)
            before = registered_at(net)
            asked = asyncio.create_task(net.http.post(CHAT, json=ASKED))
            imported = await asyncio.to_thread(
                darkbloom, "models", "import", str(source), "--id", "me/tiny", home=home.root
            )
            assert "The running provider serves it as soon as it is loaded." in imported.stdout

            async def ready() -> bool:
                told = await asyncio.to_thread(darkbloom, "status", "--json", home=home.root)
                models = json.loads(told.stdout)["models"]
                return {"me/tiny": "ready"}.items() <= {m["id"]: m["state"] for m in models}.items()

            await until(ready, "the model to be loaded", of=provider)
            assert (await asked).status_code == 200
            await until(registered_anew(net, before), "the registration", of=provider)
            await ask(net)
        assert await net.job_states() == ["settled", "settled"]


async def ask(net: Network) -> None:
    reply = await net.http.post(CHAT, json=ASKED | {"max_tokens": 20})
    assert reply.status_code == 200
    await net.idle()


def registered_anew(net: Network, before: datetime) -> Callable[[], bool]:
    """Whether the provider has registered since, and gets work."""
    return lambda: net.verified() == 1 and registered_at(net) > before


def registered_at(net: Network) -> datetime:
    (session,) = net.coordinator.hub.registry
    return session.registered_at
