"""`darkbloom benchmark`: how fast a model answers on this machine, and how fast it could."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from darkbloom_provider import __version__
from darkbloom_provider.cli.context import Invocation, json_option, pass_invocation
from darkbloom_provider.config import Config
from darkbloom_provider.daemon.provider import engine_settings
from darkbloom_provider.engine import benchmark, card
from darkbloom_provider.engine.benchmark import Measurement, Plan
from darkbloom_provider.engine.card import BatchRates, Card, Limit, Machine, Memory
from darkbloom_provider.engine.engine import Engine
from darkbloom_provider.engine.requests import EngineSettings, EngineSnapshot
from darkbloom_provider.errors import DarkbloomError, ModelError, UsageError
from darkbloom_provider.host import bandwidth, hardware
from darkbloom_provider.host.service import daemon_pid
from darkbloom_provider.models import store
from darkbloom_provider.models.store import InstalledModel
from darkbloom_provider.models.weights_read import weights_read
from darkbloom_provider.paths import Home

Line = tuple[str, str]
"""A label and its value; an empty label continues the line above."""

Progressing = Callable[[float, str], None]
"""Told the share that is done and what is being measured."""

_WIDTH = 13
_NOTEWORTHY = 0.03
"""Changes below this share are what two runs of the same program differ by."""
_LOW = 0.5
"""Of the bandwidth limit. A Mac that reaches less has a reason that can be found."""


@click.command("benchmark")
@click.option("--model", "model_id", metavar="ID", help="The model; see `darkbloom models list`.")
@click.option("--quick", is_flag=True, help="Shorter prompts and answers, each once.")
@click.option("--force", is_flag=True, help="Measure although a provider is serving.")
@json_option
@pass_invocation
def command(
    invocation: Invocation, *, model_id: str | None, quick: bool, force: bool, as_json: bool
) -> None:
    """Measure how fast a model answers on this machine, and compare it with what is possible.

    Nothing is sent anywhere. Each run is kept, and the next one says what has changed.
    """
    settings, home = invocation.config(), invocation.home
    model = chosen(invocation.environ, settings, home, model_id)
    if not force:
        refuse_beside_a_daemon(home)
    made = _measured(invocation, settings, model, quick=quick)
    before = _remember(invocation, made)
    if as_json:
        click.echo(json.dumps(document(made, before), allow_nan=False))
        return
    for label, value in lines(made, before):
        invocation.out.print(f"{label + ':' if label else '':<{_WIDTH}}{value}")


def chosen(
    environ: Mapping[str, str], settings: Config, home: Home, model_id: str | None
) -> InstalledModel:
    """The model that was asked for, else the first configured one, else the only one there is.

    Raises:
        ModelError: It is not on this machine, or there is none.
        UsageError: There are several.
    """
    cache = store.hub_cache(environ)
    wanted = model_id or next(iter(settings.backend.models), None)
    if wanted is not None:
        return store.find(home.models, wanted, cache)
    installed = store.installed(home.models, cache)
    if not installed:
        raise ModelError(
            "There is no model on this machine yet", next_step="run: darkbloom models import PATH"
        )
    if len(installed) > 1:
        raise UsageError(
            "There are several models on this machine",
            why=", ".join(model.id for model in installed),
            next_step=f"run: darkbloom benchmark --model {installed[0].id}",
        )
    return installed[0]


def refuse_beside_a_daemon(home: Home) -> None:
    """Keep from disturbing paid work.

    Raises:
        DarkbloomError: A provider of this home is running.
    """
    pid = daemon_pid(home.pid_file)
    if pid is not None:
        raise DarkbloomError(
            "A provider is serving on this machine",
            why=f"process {pid} would be slowed down, and so would the figures",
            next_step="run `darkbloom stop` first, or add --force",
        )


def lines(made: Card, before: Card | None) -> Iterator[Line]:
    """The card as a person reads it."""
    machine = made.machine
    blas = f", {machine.blas}" if machine.blas else ""
    yield "Model", made.model + (" (quick run)" if made.quick else "")
    yield (
        "Machine",
        f"{machine.name or 'unknown'}, {machine.memory_gb:g} GB; {machine.device}{blas}",
    )
    yield "Tokens/s", f"{'batch':>5}  {'prefill':>9}  {'decode':>9}"
    for rates in made.rates:
        yield "", f"{rates.batch:>5}  {rates.prefill_tps:>9.1f}  {rates.decode_tps:>9.1f}"
    for batch in made.refused:
        yield "", f"{batch:>5}  does not fit into the engine's memory"
    yield (
        "First token",
        (
            f"{_seconds(made.ttft_cold_s)} for {made.prompt_tokens} tokens, "
            f"{_seconds(made.ttft_warm_s)} when their beginning is known"
        ),
    )
    yield (
        "Memory",
        f"{made.memory.peak_gb:.2f} GB at most, of which weights {made.memory.weights_gb:.2f} GB",
    )
    yield from _limit_lines(made)
    if before is not None:
        yield from _change_lines(made, before)


def document(made: Card, before: Card | None) -> dict[str, object]:
    """The card for programs."""
    return {
        **made.model_dump(mode="json"),
        "limit_tps": made.limit.tps,
        "limit_share": made.limit_share,
        "previous": None
        if before is None
        else {"at": before.at.isoformat(), "changes": dict(made.changes(before))},
    }


def _limit_lines(made: Card) -> Iterator[Line]:
    limit = made.limit
    yield (
        "Limit",
        (
            f"{limit.tps:.1f} tokens/s at batch 1 = {limit.bandwidth_gbs:.1f} GB/s / "
            f"{limit.bytes_per_token / 1e9:.3f} GB read per token"
        ),
    )
    source = (
        "the vendor's figure"
        if limit.bandwidth_source == "chip table"
        else "measured by copying a large array"
    )
    experts = (
        ""
        if limit.experts is None
        else f"; {limit.experts[0]} of {limit.experts[1]} experts are read"
    )
    yield "", f"bandwidth: {source}{experts}; the key-value cache is neglected"
    yield "Reached", f"{made.limit_share:.0%} of it"
    if made.limit_share < _LOW and made.memory.source == "metal":
        yield "", "Below half: look for other busy programs, Low Power Mode, or heat."


def _change_lines(made: Card, before: Card) -> Iterator[Line]:
    when = f"{before.at:%Y-%m-%d %H:%M} UTC"
    changed = [
        f"{name} {share:+.0%}" for name, share in made.changes(before) if abs(share) >= _NOTEWORTHY
    ]
    yield "Last run", f"{when}: {', '.join(changed) or 'the same'}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _measured(
    invocation: Invocation, config: Config, model: InstalledModel, *, quick: bool
) -> Card:
    plan = benchmark.QUICK if quick else Plan()
    # The owner's bounds hold here too, but for how many requests run at once.
    bounds = engine_settings(config, hardware.memory_bytes())
    settings = replace(bounds, max_running=max(plan.batches))
    with _progress(invocation.err) as progress:
        try:
            progress(0, "loading the model")
            measured, seen = asyncio.run(_run(model, plan, settings, invocation.home, progress))
            progress(1, "memory bandwidth")
            return _card(model, measured, seen, quick=quick)
        except KeyboardInterrupt:
            invocation.err.print("Stopped. Nothing was recorded.")
            raise


@contextlib.contextmanager
def _progress(terminal: Console) -> Iterator[Progressing]:
    """A bar where somebody watches, else a line for each step."""
    if not terminal.is_terminal:
        yield lambda _share, what: terminal.print(f"Measuring: {what}")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=terminal, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda share, what: bar.update(task, completed=share, description=what)


async def _run(
    model: InstalledModel,
    plan: Plan,
    settings: EngineSettings,
    home: Home,
    progress: Progressing,
) -> tuple[Measurement, EngineSnapshot]:
    async with Engine(settings, scratch=home.scratch) as engine:
        loaded = await engine.load(model.id, model.path)
        fitting = plan.within(loaded.context_length)
        measured = await benchmark.measure(engine, model.id, fitting, progress=progress)
        return measured, engine.snapshot()


def _card(
    model: InstalledModel, measured: Measurement, seen: EngineSnapshot, *, quick: bool
) -> Card:
    machine = hardware.detect()
    read = weights_read(model.path)
    known = bandwidth.memory_bandwidth(machine)
    return Card(
        at=dt.datetime.now(dt.UTC),
        version=__version__,
        model=model.id,
        quick=quick,
        machine=Machine(
            name=machine.chip_name,
            device=seen.device,
            blas=seen.blas,
            memory_gb=machine.memory_gb,
        ),
        rates=tuple(
            BatchRates(batch=r.batch, prefill_tps=r.prefill_tps, decode_tps=r.decode_tps)
            for r in measured.rates
        ),
        refused=measured.refused,
        prompt_tokens=measured.prompt_tokens,
        ttft_cold_s=measured.ttft_cold_s,
        ttft_warm_s=measured.ttft_warm_s,
        memory=Memory(
            weights_gb=read.total / 1e9,
            peak_gb=measured.memory.peak_gb,
            source=measured.memory.source,
        ),
        limit=Limit(
            bandwidth_gbs=known.gbs,
            bandwidth_source=known.source,
            bytes_per_token=read.per_token,
            experts=read.experts,
        ),
    )


def _remember(invocation: Invocation, made: Card) -> Card | None:
    """Keep the run; the one before that it can be compared with."""
    path = invocation.home.benchmarks
    try:
        before = card.previous(card.history(path), made)
        card.keep(path, made)
    except OSError as error:
        # The figures are worth showing all the same.
        invocation.err.print(f"Warning: {path} cannot be written ({error.strerror})")
        return None
    return before
