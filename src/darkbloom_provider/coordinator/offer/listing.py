"""Models that the operator has added, changed or taken out of the catalogue he started with."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final

from sqlalchemy import Connection, delete, insert, select

from darkbloom_provider.coordinator.offer import prices
from darkbloom_provider.coordinator.rest.refusals import RefusalError
from darkbloom_provider.coordinator.store.schema import models
from darkbloom_provider.models.catalogue import Catalogue, CatalogueModel
from darkbloom_provider.protocol.money import DEFAULT_PRICE, Price

MAX_TEXT: Final = 2_000
MAX_SIZE_GB: Final = 100_000.0
_HASH: Final = re.compile(r"[0-9a-f]{64}|", re.ASCII)
_WORDS: Final = re.compile(r"[^\W_]+")
_NOTHING: Final = {
    "s3_name": "",
    "display_name": "",
    "model_type": "",
    "size_gb": 0.0,
    "architecture": "",
    "description": "",
    "min_ram_gb": 0,
    "active": False,
    "weight_hash": "",
}


class ModelError(RefusalError):
    """A model that cannot be listed."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What the operator has changed of his catalogue."""

    models: Mapping[str, CatalogueModel | None]
    """By id, in the order they were first changed; None for one that was taken out."""
    prices: Mapping[str, Price]


NO_CHANGES: Final = Changes({}, {})


def save_model(connection: Connection, model: CatalogueModel, *, now: datetime) -> None:
    """List a model, in place of one with the same id. Its price is set apart from it.

    Raises:
        ModelError: It is not one.
    """
    _check(model)
    described = {name: getattr(model, name) for name in _NOTHING}
    _put(connection, model.id, described, listed=True, now=now)


def remove_model(
    connection: Connection, model_id: str, *, catalogue: Catalogue, now: datetime
) -> None:
    """Take a model out of the catalogue as it is now.

    Raises:
        ModelError: 404, it is not listed.
    """
    if laid_over(catalogue, read_changes(connection)).get(model_id) is None:
        raise ModelError(
            "This model is not listed",
            status=HTTPStatus.NOT_FOUND,
            error_type="not_found",
            next_step="darkbloom coordinator model list",
        )
    _put(connection, model_id, _NOTHING, listed=False, now=now)


def read_changes(connection: Connection) -> Changes:
    """All that was changed."""
    rows = connection.execute(select(models).order_by(models.c.id))
    return Changes(
        {
            row.id: (
                CatalogueModel(
                    id=row.id,
                    **{name: getattr(row, name) for name in _NOTHING},
                    input_price=DEFAULT_PRICE.input_price,
                    output_price=DEFAULT_PRICE.output_price,
                )
                if row.listed
                else None
            )
            for row in rows
        },
        prices.all_prices(connection, prices.PLATFORM),
    )


def laid_over(base: Catalogue, changes: Changes) -> Catalogue:
    """The catalogue that holds: the operator's models and prices before the given ones."""
    entries = []
    for entry in base.entries:
        changed = changes.models.get(entry.id, entry)
        if changed is not None:
            entries.append(_at(changed, entry.price))
    known = {entry.id for entry in base.entries}
    entries += [m for name, m in changes.models.items() if m is not None and name not in known]
    return Catalogue(tuple(_at(e, changes.prices.get(e.id, e.price)) for e in entries))


def retired(model: CatalogueModel) -> bool:
    """Whether the network no longer shows models of this name.

    Source: the network's catalogue rule: a word of its id or names is `cohere` or `coherelabs`, or
    begins with `flux`.
    """
    words = _WORDS.findall(f"{model.id} {model.s3_name} {model.display_name}".casefold())
    return any(word in {"cohere", "coherelabs"} or word.startswith("flux") for word in words)


def _at(entry: CatalogueModel, price: Price) -> CatalogueModel:
    return replace(entry, input_price=price.input_price, output_price=price.output_price)


def _check(model: CatalogueModel) -> None:
    texts = (model.s3_name, model.display_name, model.model_type, model.architecture)
    if not 0 < len(model.id) <= prices.MAX_MODEL_CHARACTERS:
        raise ModelError(f"id has 1 to {prices.MAX_MODEL_CHARACTERS} characters")
    if any(character.isspace() or not character.isprintable() for character in model.id):
        raise ModelError("id has no blanks, as in: mlx-community/Qwen3.5-27B-8bit")
    if not model.display_name:
        raise ModelError("display_name is required")
    if any(len(text) > MAX_TEXT for text in (*texts, model.description)):
        raise ModelError(f"a text has at most {MAX_TEXT} characters")
    if not (math.isfinite(model.size_gb) and 0 <= model.size_gb <= MAX_SIZE_GB):
        raise ModelError("size_gb is a number of GB, 0 or more")
    if not 0 <= model.min_ram_gb <= MAX_SIZE_GB:
        raise ModelError("min_ram_gb is a whole number of GB, 0 or more")
    if _HASH.fullmatch(model.weight_hash) is None:
        raise ModelError("weight_hash is 64 hex digits, lower case, or empty")


def _put(
    connection: Connection,
    model_id: str,
    described: Mapping[str, Any],
    *,
    listed: bool,
    now: datetime,
) -> None:
    connection.execute(delete(models).where(models.c.id == model_id))
    connection.execute(
        insert(models).values(id=model_id, listed=listed, **described, changed_at=now)
    )
