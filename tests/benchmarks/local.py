"""`darkbloom serve --local` against `mlx_lm.server`: same model, same client, both streaming.

Both are processes of their own with their defaults, and both are up the whole time: the one that is
not asked costs nothing. Prompts never come twice, so that neither server's prompt cache helps it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx

from benchmarks import consumer, model, ours
from benchmarks.consumer import Round, Server
from benchmarks.figure import Figure, Measure, in_turn, percentile
from benchmarks.scale import Scale
from darkbloom_provider.engine.runtime import preload_blas
from support.processes import environment, free_port, running, until
from support.provider_home import MODEL, provider_home

CLIENTS = (1, 4, 8, 16)
FIRST_TOKEN = (4, 8, 16)
TAIL = (4,)


def measure(scale: Scale) -> list[Figure]:
    """Tokens per second, and seconds to the first token, of so many clients at once."""
    with ours.model_folder(scale) as folder, ours.short_directory() as directory:
        return asyncio.run(_measure(folder, directory, scale))


async def _measure(folder: Path, directory: Path, scale: Scale) -> list[Figure]:
    figures = []
    async with _mlx_lm_server(folder, directory) as peer, _our_server(folder, directory) as mine:
        sides = [(server, model.Prompts()) for server in (mine, peer)]
        for clients in CLIENTS:
            measures = [_round(server, line, clients, scale) for server, line in sides]
            figures += _figures(clients, *await in_turn(measures, scale))
    return sorted(figures, key=lambda figure: figure.name)


def _round(server: Server, line: model.Prompts, clients: int, scale: Scale) -> Measure[Round]:
    async def load() -> Round:
        prompts = [line.some(scale.requests_each, scale.tokens_in) for _ in range(clients)]
        return await consumer.load(server, prompts, scale.tokens_out)

    return load


def _figures(clients: int, mine: list[Round], theirs: list[Round]) -> list[Figure]:
    rates = [statistics.median(r.tokens_per_second for r in side) for side in (mine, theirs)]
    firsts = [[first for r in side for first in r.first_token] for side in (mine, theirs)]
    figures = [Figure(f"local.tps.c{clients}", rates[0], "tokens/s", rates[1])]
    if clients in FIRST_TOKEN:
        middle = [statistics.median(side) for side in firsts]
        figures.append(Figure(f"local.ttft_p50.c{clients}", middle[0], "s", middle[1]))
    if clients in TAIL:
        late = [percentile(side, 0.95) for side in firsts]
        figures.append(Figure(f"local.ttft_p95.c{clients}", late[0], "s", late[1]))
    return figures


@contextlib.asynccontextmanager
async def _our_server(folder: Path, directory: Path) -> AsyncIterator[Server]:
    home = provider_home(directory / "home", "http://127.0.0.1:9", folder)
    with running("local", "serve", "--local", "--port", "0", home=home.root) as program:
        await until(lambda: "Try it:" in program.output, "the server", of=program)
        base_url = re.findall(r"Endpoint: +(http://[^/\s]+)", program.output)[0]
        yield Server(base_url, MODEL, home.local_key.read_text().strip())


@contextlib.asynccontextmanager
async def _mlx_lm_server(folder: Path, directory: Path) -> AsyncIterator[Server]:
    port = free_port()
    with _peer_process(folder, directory, port) as running_still:
        server = Server(f"http://127.0.0.1:{port}", "default_model")
        async with httpx.AsyncClient(base_url=server.base_url, trust_env=False) as http:

            async def answers() -> bool:
                running_still()
                with contextlib.suppress(httpx.TransportError):
                    return (await http.get("/health")).is_success
                return False

            await until(answers, "mlx_lm.server to answer")
        yield server


@contextlib.contextmanager
def _peer_process(folder: Path, directory: Path, port: int) -> Iterator[Callable[[], None]]:
    blas = preload_blas()
    # It has no way of its own to the fast library; without this it would lose by a factor.
    extra = {} if blas is None else {"LD_PRELOAD": blas}
    log = directory / "mlx_lm_server.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlx_lm", "server", "--model", str(folder), "--port", str(port)],
            env=environment(directory / "peer", HF_HUB_OFFLINE="1", **extra),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )

    def running_still() -> None:
        if process.poll() is not None:
            raise RuntimeError(f"mlx_lm.server ended: {log.read_text()}")

    try:
        yield running_still
    finally:
        process.kill()
        process.wait()
