"""The whole way of a token against the raw generator.

Coordinator and provider are the processes that operators and owners run: each has its own
interpreter, as on two machines, but here all of them and the consumer share the cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from benchmarks import consumer, model, ours
from benchmarks.consumer import Server
from benchmarks.figure import Figure, compared
from benchmarks.raw import raw_generator
from benchmarks.scale import Scale
from support.processes import darkbloom, running, until
from support.provider_home import MODEL, provider_home

CLIENTS = (8, 16)
COORDINATOR = (
    *("coordinator", "serve", "--port", "0", "--rate-limit", "0"),
    *("--max-requests", str(max(CLIENTS))),
)
"""By the network's own rule a machine with as little memory as a test machine gets two at once."""


def measure(scale: Scale) -> list[Figure]:
    """Tokens per second of so many consumers at once, prompts included."""
    with ours.model_folder(scale) as folder:
        return asyncio.run(_measure(folder, scale))


async def _measure(folder: Path, scale: Scale) -> list[Figure]:
    figures = []
    mine, theirs = model.Prompts(), model.Prompts()
    async with _network(folder) as server, raw_generator(folder) as raw:
        for clients in CLIENTS:

            async def path_rate(clients: int = clients) -> float:
                prompts = [[prompt] for prompt in mine.some(clients, scale.tokens_in)]
                return (await consumer.load(server, prompts, scale.tokens_out)).tokens_per_second

            async def raw_rate(clients: int = clients) -> float:
                prompts = theirs.some(clients, scale.tokens_in)
                return await raw.tokens_per_second(prompts, scale.tokens_out, chat=True)

            name = f"path.tps.c{clients}"
            figures.append(await compared(name, "tokens/s", path_rate, raw_rate, scale))
    return figures


@contextlib.asynccontextmanager
async def _network(folder: Path) -> AsyncIterator[Server]:
    """A coordinator, a provider that serves the model, and a consumer's key."""
    with ours.short_directory() as directory:
        root = directory / "home"
        operator = root / "operator"
        with running("coordinator", *COORDINATOR, home=operator) as hub:
            await until(lambda: "Ctrl-C stops it." in hub.output, "the coordinator", of=hub)
            base_url = re.findall(r"Coordinator: (http://\S+)", hub.output)[0]
            who = ("--email", "consumer@example.org", "--credit", "50")
            made = await asyncio.to_thread(darkbloom, "coordinator", "key", *who, home=operator)
            key = re.findall(r"eigeninference-[0-9a-f]{64}", made.stdout)[0]
            home = provider_home(root, base_url, folder)
            headers = {"Authorization": f"Bearer {key}"}
            with running("provider", "serve", home=home.root) as provider:
                async with httpx.AsyncClient(base_url=base_url, headers=headers) as http:

                    async def routable() -> bool:
                        return bool((await http.get("/v1/models")).json()["data"])

                    await until(routable, "the provider to be routable", of=provider)
                yield Server(base_url, MODEL, key)
