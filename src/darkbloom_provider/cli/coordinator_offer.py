"""`darkbloom coordinator price|model`: what the network sells, changed while it runs.

A running coordinator on the same ledger notices within a second. Requests that it has accepted
keep the price they were accepted at.
"""

from __future__ import annotations

from typing import Any

import click

from darkbloom_provider.cli.coordinator_state import Books, amount, catalogue_option, on_books
from darkbloom_provider.errors import UsageError
from darkbloom_provider.models.catalogue import Catalogue, CatalogueModel
from darkbloom_provider.protocol.money import DEFAULT_PRICE, Price, format_usd


@click.command("price")
@click.argument("model", required=False)
@click.argument("input_usd", metavar="[IN", required=False)
@click.argument("output_usd", metavar="OUT]", required=False)
@click.option("--default", "reset", is_flag=True, help="Go back to the catalogue's price.")
@catalogue_option
@on_books
def price(
    books: Books,
    *,
    model: str | None,
    input_usd: str | None,
    output_usd: str | None,
    reset: bool,
    catalogue: Catalogue,
) -> None:
    """Show prices, or set a model's: dollars per million tokens read and written.

    For example: darkbloom coordinator price smollm2-135m-instruct 0.05 0.20
    """
    if model is not None and reset:
        if input_usd is not None:
            raise click.UsageError("--default takes no price")
        named = model
        books.operate(lambda operator: operator.reset_price(named))
    elif model is not None and input_usd is not None:
        if output_usd is None:
            raise click.UsageError("A price has two sides: MODEL IN OUT")
        chosen, named = Price(_micro_usd(input_usd), _micro_usd(output_usd)), model
        books.operate(lambda operator: operator.set_price(named, chosen))
    elif reset:
        raise click.UsageError("Which model? MODEL --default")
    current = books.operate(lambda operator: operator.catalogue(catalogue))
    lines = [(entry.id, entry.price) for entry in current.entries]
    if model is not None:
        lines = [(name, paid) for name, paid in lines if name == model]
        if not lines and input_usd is None and not reset:
            raise UsageError(
                f"There is no model {model} here",
                next_step="darkbloom coordinator model list",
            )
    books.show(
        {"prices": [_shown(name, paid) for name, paid in lines]},
        [_line(name, paid) for name, paid in lines] or [_unlisted(model or "")],
    )


def _micro_usd(text: str) -> int:
    return amount(text, option="price")


def _shown(model: str, paid: Price) -> dict[str, Any]:
    return {"model": model, "input_price": paid.input_price, "output_price": paid.output_price}


def _line(model: str, paid: Price) -> str:
    both = f"{format_usd(paid.input_price, 4)} read, {format_usd(paid.output_price, 4)} written"
    return f"{model}: {both}, per million tokens"


def _unlisted(model: str) -> str:
    return f"Noted. {model} is not listed here yet: darkbloom coordinator model add {model}"


# ---------------------------------------------------------------- models


@click.group("model")
def model_group() -> None:
    """The models that can be asked for."""


@model_group.command("list")
@catalogue_option
@on_books
def list_models(books: Books, *, catalogue: Catalogue) -> None:
    """List the models and what they cost."""
    current = books.operate(lambda operator: operator.catalogue(catalogue))
    books.show(
        {
            "models": [
                {
                    **_shown(m.id, m.price),
                    "display_name": m.display_name,
                    "size_gb": m.size_gb,
                    "min_ram_gb": m.min_ram_gb,
                    "active": m.active,
                }
                for m in current.entries
            ]
        },
        [f"{_line(m.id, m.price)}{'' if m.active else ' (inactive)'}" for m in current.entries]
        or ["No model is listed. Next: darkbloom coordinator model add ID"],
    )


@model_group.command("add")
@click.argument("model_id", metavar="ID")
@click.option("--name", default="", metavar="TEXT", help="For people; the id by default.")
@click.option("--type", "model_type", default="text", show_default=True, help="What it makes.")
@click.option("--size-gb", type=click.FloatRange(min=0), default=0.0, help="Of its weights.")
@click.option("--min-ram-gb", type=click.IntRange(min=0), default=0, help="A machine needs.")
@click.option("--weight-hash", default="", metavar="SHA256", help="Take no other weights.")
@click.option("--inactive", is_flag=True, help="Listed, but nobody can ask for it.")
@on_books
def add_model(
    books: Books,
    *,
    model_id: str,
    name: str,
    model_type: str,
    size_gb: float,
    min_ram_gb: int,
    weight_hash: str,
    inactive: bool,
) -> None:
    """Add a model, or change the one with this id."""
    model = CatalogueModel(
        id=model_id,
        s3_name="",
        display_name=name or model_id,
        model_type=model_type,
        size_gb=size_gb,
        architecture="",
        description="",
        min_ram_gb=min_ram_gb,
        active=not inactive,
        weight_hash=weight_hash,
        input_price=DEFAULT_PRICE.input_price,
        output_price=DEFAULT_PRICE.output_price,
    )
    books.operate(lambda operator: operator.save_model(model))
    books.show(
        {"id": model_id, "status": "model_saved"},
        [f"{model_id} is listed.", f"Its price: darkbloom coordinator price {model_id} IN OUT"],
    )


@model_group.command("remove")
@click.argument("model_id", metavar="ID")
@catalogue_option
@on_books
def remove_model(books: Books, *, model_id: str, catalogue: Catalogue) -> None:
    """Take a model out of the catalogue. Requests that run are finished."""
    books.operate(lambda operator: operator.remove_model(model_id, catalogue))
    books.show(
        {"id": model_id, "status": "model_deleted"},
        [f"{model_id} is not listed any more."],
    )


COMMANDS = (price, model_group)
