"""The catalogue: which models the network asks for, what they need and what they pay."""

from __future__ import annotations

import importlib.resources
import tomllib
from dataclasses import dataclass, fields

from darkbloom_provider.errors import ModelError
from darkbloom_provider.protocol.money import DEFAULT_PRICE, Price

_FILE = "catalog.toml"


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """One model, in the fields of `GET /v1/models/catalog`, and its price."""

    id: str
    s3_name: str
    display_name: str
    model_type: str
    size_gb: float
    """Weights, in GB (10^9 bytes)."""
    architecture: str
    description: str
    min_ram_gb: int
    active: bool
    weight_hash: str
    """64 hex digits, or empty: not enforced."""
    input_price: int
    """Micro-USD per 1 000 000 prompt tokens."""
    output_price: int
    """Micro-USD per 1 000 000 completion tokens."""

    @property
    def price(self) -> Price:
        """Both prices."""
        return Price(self.input_price, self.output_price)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Models in the order of the file they were read from. Ids match exactly."""

    entries: tuple[CatalogueModel, ...]

    @classmethod
    def builtin(cls) -> Catalogue:
        """The catalogue that comes with the program."""
        file = importlib.resources.files("darkbloom_provider.models").joinpath(_FILE)
        return cls.parse(file.read_text(encoding="utf-8"))

    @classmethod
    def parse(cls, toml_text: str) -> Catalogue:
        """Read a catalogue.

        Raises:
            ModelError: Not TOML, a field is missing, unknown or of the wrong kind, or an id twice.
        """
        try:
            document = tomllib.loads(toml_text)
        except tomllib.TOMLDecodeError as error:
            raise _unreadable(str(error)) from error
        tables = document.get("models", [])
        if not isinstance(tables, list):
            raise _unreadable("models must be a list of tables")
        entries = tuple(_entry(table) for table in tables)
        if len({entry.id for entry in entries}) != len(entries):
            raise _unreadable("a model is listed twice")
        return cls(entries)

    def get(self, model_id: str) -> CatalogueModel | None:
        """The model with exactly this id, or None."""
        return next((entry for entry in self.entries if entry.id == model_id), None)

    def price(self, model_id: str) -> Price:
        """What the model costs; a model that is not listed costs the network's default."""
        entry = self.get(model_id)
        return DEFAULT_PRICE if entry is None else entry.price


_KINDS: dict[str, tuple[type, ...]] = {
    "size_gb": (int, float),
    "min_ram_gb": (int,),
    "active": (bool,),
    "input_price": (int,),
    "output_price": (int,),
}


def _entry(table: object) -> CatalogueModel:
    if not isinstance(table, dict):
        raise _unreadable("models must be a list of tables")
    name = table.get("id")
    where = f"model {name!r}"
    known = [field.name for field in fields(CatalogueModel)]
    strange = sorted(set(table) ^ set(known))
    if strange:
        raise _unreadable(
            f"{where}: {strange[0]} is {'missing' if strange[0] in known else 'not known'}"
        )
    for key in known:
        kinds = _KINDS.get(key, (str,))
        value = table[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise _unreadable(f"{where}: {key} has the wrong kind")
        if isinstance(value, int | float) and value < 0:
            raise _unreadable(f"{where}: {key} is negative")
    if not name:
        raise _unreadable("a model has an empty id")
    return CatalogueModel(**{**table, "size_gb": float(table["size_gb"])})


def _unreadable(why: str) -> ModelError:
    return ModelError("The catalogue of models cannot be read", why=why)
