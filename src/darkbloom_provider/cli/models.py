"""`darkbloom models`: what is on this machine, and how to put something there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import click
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from darkbloom_provider.cli.context import Invocation, json_option, pass_invocation
from darkbloom_provider.cli.reload import reload_models
from darkbloom_provider.models import gguf_import, store
from darkbloom_provider.models.catalogue import Catalogue
from darkbloom_provider.models.gguf_import import ImportResult, PrecisionChoice
from darkbloom_provider.models.store import InstalledModel, Survey
from darkbloom_provider.protocol.money import format_usd


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def command(ctx: click.Context, *, as_json: bool) -> None:
    """The models on this machine. Without a command: list them."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_models, as_json=as_json)


@command.command("list")
@json_option
@pass_invocation
def list_models(invocation: Invocation, *, as_json: bool) -> None:
    """List the models that can be served, and what they earn."""
    found = store.survey(invocation.home.models, store.hub_cache(invocation.environ))
    catalogue = Catalogue.builtin()
    if as_json:
        click.echo(json.dumps(_document(found, catalogue), allow_nan=False))
        return
    out = invocation.out
    if found.installed:
        out.print(_table(found, catalogue))
    else:
        out.print("No models on this machine yet.")
    for broken in found.incomplete:
        out.print(f"{broken.id} is not complete and is not served: {broken.why}")
    if not found.installed:
        out.print("Next: darkbloom models import PATH.gguf")


@command.command("import")
@click.argument("path", type=click.Path(path_type=Path), metavar="PATH.gguf")
@click.option("--id", "model_id", metavar="ID", help="Install it under this name.")
@click.option(
    "--precision",
    type=click.Choice(get_args(PrecisionChoice)),
    default="auto",
    show_default=True,
    help="keep: the quantised numbers exactly; fp32: dequantised, faster without Metal.",
)
@click.option("--force", is_flag=True, help="Replace what is installed under this name.")
@json_option
@pass_invocation
def import_model(
    invocation: Invocation,
    *,
    path: Path,
    model_id: str | None,
    precision: PrecisionChoice,
    force: bool,
    as_json: bool,
) -> None:
    """Import a llama-architecture GGUF file."""
    # Progress goes to the terminal's error stream, so that the output can be read by programs.
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        console=invocation.err,
        transient=True,
        disable=not invocation.err.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=1.0)
        result = gguf_import.import_gguf(
            path,
            invocation.home.models,
            model_id=model_id,
            precision=precision,
            force=force,
            progress=lambda fraction, phase: bar.update(
                task, completed=fraction, description=phase
            ),
        )
    model = result.model
    running = reload_models(invocation, model.id)
    if as_json:
        click.echo(json.dumps(_imported(result), allow_nan=False))
        return
    verb = "was installed before" if result.already_there else "is installed"
    invocation.out.print(f"{model.id} {verb} ({_size(model)}, {model.quantization}).")
    invocation.out.print(running or f"Next: darkbloom serve --model {model.id}")


def _table(found: Survey, catalogue: Catalogue) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("Model", no_wrap=True)
    table.add_column("Size", justify="right", no_wrap=True)
    table.add_column("Precision", no_wrap=True)
    table.add_column("In / out per 1M tokens", no_wrap=True)
    for model in found.installed:
        price = catalogue.price(model.id)
        rates = f"{format_usd(price.input_price, 3)} / {format_usd(price.output_price, 3)}"
        table.add_row(Text(model.id), _size(model), model.quantization, rates)
    return table


def _document(found: Survey, catalogue: Catalogue) -> dict[str, object]:
    return {
        "models": [_described(model, catalogue) for model in found.installed],
        "incomplete": [
            {"id": broken.id, "path": str(broken.path), "why": broken.why}
            for broken in found.incomplete
        ],
    }


def _described(model: InstalledModel, catalogue: Catalogue) -> dict[str, object]:
    price = catalogue.price(model.id)
    return {
        "id": model.id,
        "path": str(model.path),
        "size_bytes": model.size_bytes,
        "model_type": model.model_type,
        "quantization": model.quantization,
        "input_price": price.input_price,
        "output_price": price.output_price,
    }


def _imported(result: ImportResult) -> dict[str, object]:
    described = _described(result.model, Catalogue.builtin())
    return described | {"already_there": result.already_there}


def _size(model: InstalledModel) -> str:
    return f"{model.size_bytes / 1e9:.2f} GB"
