"""`darkbloom demo`: from nothing to the first earned money, on this machine alone."""

from __future__ import annotations

import asyncio
import contextlib
import io
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from pathlib import Path

import click
from rich.console import Console

from darkbloom_provider import logs
from darkbloom_provider.account.keyrings import BACKEND_VARIABLE
from darkbloom_provider.cli.context import Invocation, pass_invocation
from darkbloom_provider.demo import network as demo_network
from darkbloom_provider.demo.consumer import Consumer
from darkbloom_provider.demo.network import Network
from darkbloom_provider.earnings import render
from darkbloom_provider.host import privacy
from darkbloom_provider.host.privacy import HardeningReport
from darkbloom_provider.models import bundled
from darkbloom_provider.paths import Home
from darkbloom_provider.protocol.money import format_usd

STREAMED = "What is the capital of France?"
WHOLE = "What do plants need to grow?"
CANCELLED = "Tell me a story about a computer that worked at night."
ANSWER_TOKENS = 32
STORY_TOKENS = 64
DRAIN_S = 2.0


@click.command("demo")
@click.option("--keep", is_flag=True, help="Stay up afterwards, for requests of your own.")
@pass_invocation
def command(invocation: Invocation, *, keep: bool) -> None:
    """From nothing to the first earned money, on this machine alone.

    Starts a coordinator and a provider on loopback, links them, asks a small model three questions
    and shows what that earned. Everything is play money, and everything but the imported model is
    gone afterwards.
    """
    privacy.reexec_isolated(sys.argv[1:], invocation.environ)
    # Nothing of the demo may reach the user's keyring.
    environ = {**invocation.environ, BACKEND_VARIABLE: "keyring.backends.fail.Keyring"}
    logs.configure(verbose=invocation.verbose, stream=None if invocation.verbose else io.StringIO())
    hardening = privacy.harden()
    story = Story(invocation.out, invocation.home, environ, hardening, keep=keep)
    try:
        with tempfile.TemporaryDirectory(prefix="darkbloom-demo-") as directory:
            asyncio.run(story.tell(Home(Path(directory))))
    except KeyboardInterrupt:
        invocation.out.print("\nStopped. Nothing was left running.")
        if not keep:
            raise click.Abort from None


class Story:
    """What the demo does, and says while it does it."""

    def __init__(
        self,
        out: Console,
        users_home: Home,
        environ: Mapping[str, str],
        hardening: HardeningReport,
        *,
        keep: bool,
    ) -> None:
        self._out = out
        self._users_home = users_home
        self._environ = environ
        self._hardening = hardening
        self._keep = keep
        self._started = time.monotonic()

    async def tell(self, home: Home) -> None:
        """The demo from beginning to end, in a temporary home."""
        with _terminated_like_interrupted():
            self._out.print("Darkbloom demo: a coordinator, a provider and a consumer, all here.\n")
            await self._import_model()
            async with demo_network.private_network(home, self._users_home.models) as network:
                self._step("Coordinator", f"listens on {network.coordinator.base_url}")
                await self._link(network)
                async with demo_network.serving_provider(
                    network,
                    self._environ,
                    model=bundled.SMOLLM2_ID,
                    hardening=self._hardening,
                    drain_s=DRAIN_S,
                ) as supervisor:
                    with self._progress("Provider") as tell:
                        await demo_network.until_routable(network, supervisor, tell)
                    self._step("Provider", f"serves {bundled.SMOLLM2_ID}")
                    await self._ask_three_times(network)
                    await self._show_the_money(network)
                    if self._keep:
                        await self._stay(network)

    async def _import_model(self) -> None:
        from darkbloom_provider.models.gguf_import import import_gguf  # noqa: PLC0415 — slow

        models = self._users_home.models
        with self._progress("Model") as tell:
            result = await asyncio.to_thread(
                import_gguf,
                bundled.require_smollm2(),
                models,
                model_id=bundled.SMOLLM2_ID,
                progress=lambda done, phase: tell(f"{phase} ({done:.0%})"),
            )
        verb = "already in" if result.already_there else "imported into"
        self._step("Model", f"{bundled.SMOLLM2_ID}, {verb} {models}")

    async def _link(self, network: Network) -> None:
        def show(code: str) -> None:
            self._step("Link", f"code {code}, which the owner approves at once")

        await demo_network.link_machine(network, self._environ, show)

    async def _ask_three_times(self, network: Network) -> None:
        base_url, key = network.coordinator.base_url, network.api_key
        async with Consumer(base_url, key, bundled.SMOLLM2_ID) as consumer:
            self._out.print(f"\nAsked, streamed:        {STREAMED}")
            self._out.print("  ", end="")
            async for piece in consumer.stream(STREAMED, max_tokens=ANSWER_TOKENS):
                self._out.print(piece.replace("\n", " "), end="")
            self._out.print(f"\nAsked, in one piece:    {WHOLE}")
            with self._progress("  waiting"):
                answer = await consumer.ask(WHOLE, max_tokens=ANSWER_TOKENS)
            self._out.print(f"  {' '.join(answer.split())} …")
            self._out.print(f"Asked, left half way:   {CANCELLED}")
            self._out.print("  ", end="")
            async with contextlib.aclosing(
                consumer.stream(CANCELLED, max_tokens=STORY_TOKENS)
            ) as pieces:
                await self._read_half(pieces)
            self._out.print(" … [the consumer hangs up]")

    async def _read_half(self, pieces: AsyncGenerator[str]) -> None:
        words = 0
        async for piece in pieces:
            self._out.print(piece.replace("\n", " "), end="")
            words += len(piece.split())
            if words >= ANSWER_TOKENS // 2:
                return

    async def _show_the_money(self, network: Network) -> None:
        account = await demo_network.credited(network, self._environ, jobs=3)
        statement = await demo_network.statement(network, self._environ)
        self._out.print("\n$ darkbloom earnings")
        self._out.print(render.text(statement))
        seconds = time.monotonic() - self._started
        paid = format_usd(account.total_micro_usd)
        self._out.print(
            f"\nIn {seconds:.0f} s a consumer paid {paid} of play money for three answers, and the"
            " owner got all of it."
            "\nThe answer that was left half way cost what had been generated until then."
            "\nNext: `darkbloom demo --keep` to ask questions of your own; `darkbloom --help` for"
            " the rest."
        )

    async def _stay(self, network: Network) -> None:
        body = (
            f'{{"model":"{bundled.SMOLLM2_ID}","stream":true,'
            '"messages":[{"role":"user","content":"Hello!"}]}'
        )
        base_url = network.coordinator.base_url
        self._out.print(
            f"\nStill up, until Ctrl-C:"
            f"\n  API          {base_url}/v1"
            f"\n  API key      {network.api_key.reveal()}"
            f"\n  Leaderboard  {base_url}/v1/leaderboard"
            f"\n  Prices       {base_url}/v1/pricing"
            f"\n\n  curl -N {base_url}/v1/chat/completions \\"
            f"\n    -H 'Authorization: Bearer {network.api_key.reveal()}' \\"
            f"\n    -H 'Content-Type: application/json' \\"
            f"\n    -d '{body}'"
            f"\n\nThe commands of this machine, in another terminal:"
            f"\n  export DARKBLOOM_HOME={network.home.root} DARKBLOOM_CONFIG={network.config_file}"
            f"\n  darkbloom status; darkbloom earnings"
        )
        await asyncio.Event().wait()

    def _step(self, name: str, text: str) -> None:
        self._out.print(f"{name + ':':13}{text}")

    @contextlib.contextmanager
    def _progress(self, name: str) -> Iterator[Callable[[str], None]]:
        """A line that changes while something takes its time; nothing where nobody watches."""
        if not self._out.is_terminal:
            yield lambda _text: None
            return
        with self._out.status(f"{name}…") as status:
            yield lambda text: status.update(f"{name}: {text}")


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the demo as Ctrl-C does, so that it cleans up after itself."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is None:  # pragma: no cover — only ever called from a task
        raise RuntimeError("no task")
    numbers = (signal.SIGTERM, signal.SIGHUP)
    asked = False

    def stop() -> None:
        nonlocal asked
        asked = True
        task.cancel()

    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    except asyncio.CancelledError:
        if asked:
            raise KeyboardInterrupt from None
        raise
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
