"""What a real provider proves to a coordinator, and tells its owner about it."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from pathlib import Path

from darkbloom_provider.coordinator.settings import Policy
from support.network import SLOW, network
from support.processes import darkbloom, running
from support.provider_home import MODEL, provider_home, until_served


async def test_the_hashes_that_the_command_prints_are_those_the_provider_is_taken_by(
    tmp_path: Path, home_root: Path, tiny_model: Path
) -> None:
    printed = await asyncio.to_thread(darkbloom, "runtime", "hash", "--json", home=home_root)
    found = json.loads(printed.stdout)
    policy = Policy(
        accepted_python_hashes=frozenset({found["python_hash"]}),
        accepted_runtime_hashes=frozenset({found["runtime_hash"]}),
    )
    async with network(tmp_path / "c", timing=SLOW, policy=policy) as net:
        home = provider_home(home_root, net.ws_url, tiny_model)
        with running("provider", "serve", home=home.root) as provider:
            await until_served(net, provider)
            assert (await net.ask(model=MODEL, max_tokens=2)).status_code == HTTPStatus.OK
            examined = await asyncio.to_thread(darkbloom, "doctor", "--json", home=home.root)
    findings = json.loads(examined.stdout)["findings"]
    flags = {f["check"]: f for f in findings if f["evidence"].startswith("process ")}
    assert {f["verdict"] for f in flags.values()} == {"ok"}
    assert {"text_backend_inprocess", "anti_debug_enabled", "env_scrubbed"} <= set(flags)
