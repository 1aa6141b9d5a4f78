"""Endpoints of what is sold: prices and models for everybody, and prices of one's own."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.offer import listing, prices
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ANYONE, USER, admitted
from darkbloom_provider.coordinator.rest.queries import refuse
from darkbloom_provider.coordinator.rest.replies import ApiError, json_reply, read_json, text_field
from darkbloom_provider.coordinator.rest.shapes import (
    BOOLEAN,
    COUNT,
    NUMBER,
    TEXT,
    USD_TEXT,
    Operation,
    Schema,
    array,
    one_of,
    record,
)
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.models.catalogue import CatalogueModel
from darkbloom_provider.protocol.money import Price, format_usd

PRICE: Final[Schema] = {"type": "integer", "minimum": 1, "maximum": prices.MAX_PRICE}
MODEL_ID: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": r"\S"}
MODEL: Final = record(
    id=TEXT,
    s3_name=TEXT,
    display_name=TEXT,
    model_type=TEXT,
    size_gb=NUMBER,
    architecture=TEXT,
    description=TEXT,
    min_ram_gb=COUNT,
    active=BOOLEAN,
    weight_hash=TEXT,
)
PRICED_MODEL: Final = record(model=MODEL_ID, input_price=PRICE, output_price=PRICE)


def priced(status: str) -> Schema:
    """The reply to a price that was set."""
    return record(
        status=one_of(status),
        model=TEXT,
        input_price=COUNT,
        output_price=COUNT,
        input_usd=TEXT,
        output_usd=TEXT,
    )


def endpoints(services: Services) -> list[Endpoint]:
    """The endpoints, bound to the coordinator's parts."""
    offer, own = _Offer(services), _OwnPrices(services)
    return [
        Endpoint(
            "GET",
            "/v1/pricing",
            offer.pricing,
            ANYONE,
            Operation(
                "What each model costs, in micro-USD per 1 000 000 tokens",
                record(
                    prices=array(
                        record(
                            model=TEXT,
                            input_price=COUNT,
                            output_price=COUNT,
                            input_usd=USD_TEXT,
                            output_usd=USD_TEXT,
                        )
                    )
                ),
            ),
        ),
        Endpoint(
            "PUT",
            "/v1/pricing",
            own.put,
            USER.limited("financial"),
            Operation(
                "Serve a model at a price of one's own, where the operator allows it",
                priced("updated"),
                PRICED_MODEL,
            ),
        ),
        Endpoint(
            "DELETE",
            "/v1/pricing",
            own.delete,
            USER.limited("financial"),
            Operation(
                "Serve a model at everybody's price again",
                record(status=one_of("deleted"), model=TEXT),
                record(model=MODEL_ID),
                errors=(404,),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/models/catalog",
            offer.catalog,
            ANYONE,
            Operation(
                "The models that providers may serve, smallest memory first",
                record(models=array(MODEL)),
                query={"type": TEXT},
            ),
        ),
    ]


class _Offer:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def pricing(self, _request: Request) -> Response:
        shown = [
            {
                "model": model,
                "input_price": price.input_price,
                "output_price": price.output_price,
                "input_usd": format_usd(price.input_price, 4),
                "output_usd": format_usd(price.output_price, 4),
            }
            for model, price in self._services.offer.prices.items()
        ]
        return json_reply({"prices": shown})

    async def catalog(self, request: Request) -> Response:
        wanted = request.query_params.get("type", "")
        models = [
            model
            for model in self._services.catalogue.entries
            if model.active and not listing.retired(model) and wanted in {"", model.model_type}
        ]
        # Stable: models that need the same memory keep the catalogue's order.
        models.sort(key=lambda model: model.min_ram_gb)
        return json_reply({"models": [listed(model) for model in models]})


class _OwnPrices:
    """What somebody's machines serve for, if the operator lets them say so."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def put(self, request: Request) -> Response:
        account_id, now = admitted(request).account_id, self._services.clock()
        model, price = read_price(await read_json(request))
        await self._services.db.write(
            lambda c: prices.set_price(c, account_id, model, price, now=now)
        )
        return json_reply(price_reply("updated", model, price))

    async def delete(self, request: Request) -> Response:
        account_id, now = admitted(request).account_id, self._services.clock()
        model = text_field(await read_json(request), "model")
        if not await self._services.db.write(
            lambda c: prices.end_price(c, account_id, model, now=now)
        ):
            raise ApiError(404, "not_found", "you have set no price for this model")
        return json_reply({"status": "deleted", "model": model})


def read_price(body: dict[str, Any]) -> tuple[str, Price]:
    """A model and its price, from a request.

    Raises:
        ApiError: 400, a field is missing or of another kind.
    """
    model = text_field(body, "model")
    for side in ("input_price", "output_price"):
        if not isinstance(body.get(side), int) or isinstance(body[side], bool):
            raise refuse(f"{side} must be a whole number of micro-USD per million tokens")
    return model, Price(body["input_price"], body["output_price"])


def price_reply(status: str, model: str, price: Price) -> dict[str, Any]:
    """What was set, as integers and for people."""
    return {
        "status": status,
        "model": model,
        "input_price": price.input_price,
        "output_price": price.output_price,
        "input_usd": f"{format_usd(price.input_price, 4)} per 1M tokens",
        "output_usd": f"{format_usd(price.output_price, 4)} per 1M tokens",
    }


def listed(model: CatalogueModel) -> dict[str, Any]:
    """A model as the catalogue shows it."""
    return {
        "id": model.id,
        "s3_name": model.s3_name,
        "display_name": model.display_name,
        "model_type": model.model_type,
        "size_gb": model.size_gb,
        "architecture": model.architecture,
        "description": model.description,
        "min_ram_gb": model.min_ram_gb,
        "active": model.active,
        "weight_hash": model.weight_hash,
    }
