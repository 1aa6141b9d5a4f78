"""Endpoints with which an administrator changes models and prices, while the network runs."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.offer import listing, prices
from darkbloom_provider.coordinator.offer.routes import (
    MODEL,
    MODEL_ID,
    PRICED_MODEL,
    listed,
    price_reply,
    priced,
    read_price,
)
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ADMINISTRATOR
from darkbloom_provider.coordinator.rest.queries import refuse
from darkbloom_provider.coordinator.rest.replies import json_reply, read_json, text_field
from darkbloom_provider.coordinator.rest.shapes import (
    BOOLEAN,
    COUNT,
    NON_EMPTY,
    TEXT,
    Operation,
    array,
    maybe,
    one_of,
    record,
)
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.models.catalogue import CatalogueModel
from darkbloom_provider.protocol.money import DEFAULT_PRICE

_TEXTS: Final = ("s3_name", "architecture", "description", "weight_hash")


def endpoints(services: Services) -> list[Endpoint]:
    """The endpoints, bound to the coordinator's parts."""
    desk = _OfferDesk(services)
    return [
        Endpoint(
            "PUT",
            "/v1/admin/pricing",
            desk.price,
            ADMINISTRATOR,
            Operation(
                "Set a model's price for everybody, for requests from now on",
                priced("platform_default_updated"),
                PRICED_MODEL,
            ),
        ),
        Endpoint(
            "GET",
            "/v1/admin/models",
            desk.models,
            ADMINISTRATOR,
            Operation("Every model, active or not", record(models=array(MODEL))),
        ),
        Endpoint(
            "POST",
            "/v1/admin/models",
            desk.save,
            ADMINISTRATOR,
            Operation(
                "Add a model, or change the one with this id. Its price is set apart",
                record(status=one_of("model_saved"), model=MODEL),
                record(
                    id=MODEL_ID,
                    display_name=NON_EMPTY,
                    s3_name=maybe(TEXT),
                    model_type=maybe(TEXT),
                    size_gb=maybe({"type": "number", "minimum": 0}),
                    architecture=maybe(TEXT),
                    description=maybe(TEXT),
                    min_ram_gb=maybe(COUNT),
                    active=maybe(BOOLEAN),
                    weight_hash=maybe(TEXT),
                ),
            ),
        ),
        Endpoint(
            "DELETE",
            "/v1/admin/models",
            desk.remove,
            ADMINISTRATOR,
            Operation(
                "Take a model out of the catalogue",
                record(status=one_of("model_deleted"), model_id=TEXT),
                record(id=MODEL_ID),
                errors=(404,),
            ),
        ),
    ]


class _OfferDesk:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def price(self, request: Request) -> Response:
        services, now = self._services, self._services.clock()
        model, price = read_price(await read_json(request))
        await services.db.write(
            lambda c: prices.set_price(c, prices.PLATFORM, model, price, now=now)
        )
        await services.offer.refresh()
        return json_reply(price_reply("platform_default_updated", model, price))

    async def models(self, _request: Request) -> Response:
        return json_reply({"models": [listed(m) for m in self._services.catalogue.entries]})

    async def save(self, request: Request) -> Response:
        services, now = self._services, self._services.clock()
        model = _model(await read_json(request))
        await services.db.write(lambda c: listing.save_model(c, model, now=now))
        await services.offer.refresh()
        return json_reply({"status": "model_saved", "model": listed(model)})

    async def remove(self, request: Request) -> Response:
        services, now = self._services, self._services.clock()
        model_id = text_field(await read_json(request), "id")

        def remove(connection: Connection) -> None:
            listing.remove_model(connection, model_id, catalogue=services.offer.base, now=now)

        await services.db.write(remove)
        await services.offer.refresh()
        return json_reply({"status": "model_deleted", "model_id": model_id})


def _model(body: dict[str, Any]) -> CatalogueModel:
    active, size, memory = (body.get(name) for name in ("active", "size_gb", "min_ram_gb"))
    if active is not None and not isinstance(active, bool):
        raise refuse("active must be true or false")
    if size is not None and (not isinstance(size, int | float) or isinstance(size, bool)):
        raise refuse("size_gb must be a number")
    if memory is not None and (not isinstance(memory, int) or isinstance(memory, bool)):
        raise refuse("min_ram_gb must be a whole number")
    try:
        size_gb = float(size or 0)
    except OverflowError:
        raise refuse("size_gb is out of range") from None
    return CatalogueModel(
        id=text_field(body, "id"),
        display_name=text_field(body, "display_name"),
        model_type=text_field(body, "model_type", default="") or "text",
        size_gb=size_gb,
        min_ram_gb=memory or 0,
        active=active is not False,
        **{name: text_field(body, name, default="") for name in _TEXTS},
        input_price=DEFAULT_PRICE.input_price,
        output_price=DEFAULT_PRICE.output_price,
    )
