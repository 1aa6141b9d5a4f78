"""Endpoints about releases of the provider: the newest one, and the operator's list."""

from __future__ import annotations

from datetime import timedelta
from http import HTTPStatus
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider import __version__
from darkbloom_provider.coordinator.accounts.people import AuthenticationError, bearer_of
from darkbloom_provider.coordinator.public import releases
from darkbloom_provider.coordinator.public.kept import Kept
from darkbloom_provider.coordinator.public.releases import DEFAULT_PLATFORM, Release
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ADMIN, ANYONE
from darkbloom_provider.coordinator.rest.replies import (
    ApiError,
    json_reply,
    read_json,
    rfc3339,
    text_field,
)
from darkbloom_provider.coordinator.rest.shapes import (
    BOOLEAN,
    NON_EMPTY,
    TEXT,
    TIME,
    Operation,
    array,
    maybe,
    one_of,
    optional,
    record,
)
from darkbloom_provider.coordinator.services import Services

LIFE: Final = timedelta(minutes=1)
_HASHES: Final = ("python_hash", "runtime_hash", "template_hashes")
_OPTIONAL: Final = ("bundle_hash", *_HASHES, "changelog")
_RELEASE: Final = record(
    version=TEXT,
    platform=TEXT,
    binary_hash=TEXT,
    bundle_hash=TEXT,
    **dict.fromkeys(_HASHES, optional(TEXT)),
    url=TEXT,
    changelog=TEXT,
    active=BOOLEAN,
    created_at=TIME,
)
_NAMED: Final = {"version": NON_EMPTY, "platform": maybe(TEXT)}


def endpoints(services: Services) -> list[Endpoint]:
    """The endpoints, bound to the coordinator's parts."""
    desk = _Releases(services)
    return [
        Endpoint(
            "GET",
            "/api/version",
            desk.version,
            ANYONE,
            Operation(
                "The newest version of the provider",
                record(
                    version=TEXT,
                    download_url=TEXT,
                    bundle_hash=optional(TEXT),
                    changelog=optional(TEXT),
                ),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/releases/latest",
            desk.latest,
            ANYONE,
            Operation(
                "The newest release for a platform",
                _RELEASE,
                query={"platform": TEXT},
                errors=(404,),
            ),
        ),
        Endpoint(
            "POST",
            "/v1/releases",
            desk.register,
            ANYONE,
            Operation(
                "Register a release, with the operator's release key as the credential",
                record(status=one_of("release_registered"), release=_RELEASE),
                record(
                    **_NAMED,
                    binary_hash=NON_EMPTY,
                    url=NON_EMPTY,
                    **dict.fromkeys(_OPTIONAL, maybe(TEXT)),
                ),
                errors=(401,),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/admin/releases",
            desk.listed,
            ADMIN,
            Operation("Every release, the newest first", record(releases=array(_RELEASE))),
        ),
        Endpoint(
            "DELETE",
            "/v1/admin/releases",
            desk.deactivate,
            ADMIN,
            Operation(
                "Offer a release no more",
                record(status=one_of("release_deactivated"), version=TEXT, platform=TEXT),
                record(**_NAMED),
                errors=(404,),
            ),
        ),
    ]


class _Releases:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._latest: Kept[list[Release]] = Kept(LIFE, services.monotonic)

    async def version(self, request: Request) -> Response:
        release = await self._newest(DEFAULT_PLATFORM)
        if release is None:
            bundle = f"dl/eigeninference-bundle-{DEFAULT_PLATFORM}.tar.gz"
            return json_reply(
                {"version": __version__, "download_url": f"{request.base_url}{bundle}"}
            )
        return json_reply(
            {
                "version": release.version,
                "download_url": release.url,
                "bundle_hash": release.bundle_hash,
                "changelog": release.changelog,
            }
        )

    async def latest(self, request: Request) -> Response:
        release = await self._newest(request.query_params.get("platform") or DEFAULT_PLATFORM)
        if release is None:
            raise ApiError(HTTPStatus.NOT_FOUND, "not_found", "there is no release for it")
        return json_reply(_shown(release))

    async def register(self, request: Request) -> Response:
        bearer = bearer_of(request.headers.get("authorization"))
        if bearer is None or not self._services.identity.is_release(bearer):
            raise AuthenticationError("This needs the release key", error_type="unauthorized")
        body = await read_json(request)
        release = releases.checked(
            Release(
                version=text_field(body, "version"),
                platform=text_field(body, "platform", default="") or DEFAULT_PLATFORM,
                binary_hash=text_field(body, "binary_hash"),
                url=text_field(body, "url"),
                **{name: text_field(body, name, default="") for name in _OPTIONAL},
                active=True,
                created_at=self._services.clock(),
            )
        )
        await self._services.db.write(lambda c: releases.register(c, release))
        self._latest.drop()
        return json_reply({"status": "release_registered", "release": _shown(release)})

    async def listed(self, _request: Request) -> Response:
        found = await self._services.db.read(releases.all_releases)
        return json_reply({"releases": [_shown(release) for release in found]})

    async def deactivate(self, request: Request) -> Response:
        body = await read_json(request)
        version = text_field(body, "version")
        platform = text_field(body, "platform", default="") or DEFAULT_PLATFORM
        if not await self._services.db.write(lambda c: releases.deactivate(c, version, platform)):
            raise ApiError(HTTPStatus.NOT_FOUND, "not_found", "there is no such release")
        self._latest.drop()
        return json_reply(
            {"status": "release_deactivated", "version": version, "platform": platform}
        )

    async def _newest(self, platform: str) -> Release | None:
        # Kept as one list: a caller may name any platform, and must not push others out.
        found = await self._latest.get((), lambda: self._services.db.read(releases.all_releases))
        return releases.newest(found, platform)


def _shown(release: Release) -> dict[str, Any]:
    document: dict[str, Any] = {
        "version": release.version,
        "platform": release.platform,
        "binary_hash": release.binary_hash,
        "bundle_hash": release.bundle_hash,
        "url": release.url,
        "changelog": release.changelog,
        "active": release.active,
        "created_at": rfc3339(release.created_at),
    }
    hashes = {name: getattr(release, name) for name in _HASHES}
    return document | {name: text for name, text in hashes.items() if text}
