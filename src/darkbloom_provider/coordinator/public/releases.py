"""Releases of the provider that the operator has registered, so that owners are told of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

from sqlalchemy import Connection, Row, delete, insert, select, update

from darkbloom_provider.coordinator.rest.refusals import RefusalError
from darkbloom_provider.coordinator.store.schema import releases

DEFAULT_PLATFORM: Final = "macos-arm64"
MAX_TEXT: Final = 20_000
_VERSION: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,9}", re.ASCII)
_PLATFORM: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*", re.ASCII)
_HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MAX_NAME: Final = 64


class ReleaseError(RefusalError):
    """A release that cannot be registered."""


@dataclass(frozen=True, slots=True)
class Release:
    """One release for one platform. Hashes are SHA-256 in hex."""

    version: str
    platform: str
    binary_hash: str
    bundle_hash: str
    python_hash: str
    runtime_hash: str
    template_hashes: str
    url: str
    changelog: str
    active: bool
    created_at: datetime


def checked(release: Release) -> Release:
    """A release that can be registered.

    Raises:
        ReleaseError: Its version, its platform, its address or a hash is none.
    """
    if _VERSION.fullmatch(release.version) is None:
        raise ReleaseError("version is numbers with dots between them, like 0.3.12")
    if _PLATFORM.fullmatch(release.platform) is None or len(release.platform) > _MAX_NAME:
        raise ReleaseError(f"platform is a name like {DEFAULT_PLATFORM}")
    optional = {"bundle_hash", "python_hash", "runtime_hash"}
    for name in ("binary_hash", *sorted(optional)):
        text = getattr(release, name)
        if _HASH.fullmatch(text) is None and not (name in optional and not text):
            raise ReleaseError(f"{name} is 64 hex digits, lower case")
    try:
        parts = urlsplit(release.url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        good = False
    if not good:
        raise ReleaseError("url is a web address")
    if any(len(t) > MAX_TEXT for t in (release.url, release.changelog, release.template_hashes)):
        raise ReleaseError(f"a text has at most {MAX_TEXT} characters")
    return release


def register(connection: Connection, release: Release) -> None:
    """Keep a release, in place of one of the same version for the same platform."""
    connection.execute(delete(releases).where(*_is(release.version, release.platform)))
    connection.execute(
        insert(releases).values({f.name: getattr(release, f.name) for f in fields(Release)})
    )


def deactivate(connection: Connection, version: str, platform: str) -> bool:
    """Offer a release no more. False if there is none."""
    changed = connection.execute(
        update(releases).where(*_is(version, platform)).values(active=False)
    )
    return changed.rowcount == 1


def all_releases(connection: Connection) -> list[Release]:
    """Every release, the newest version first."""
    rows = [_release(row) for row in connection.execute(select(releases))]
    return sorted(rows, key=_newness, reverse=True)


def newest(found: Iterable[Release], platform: str = DEFAULT_PLATFORM) -> Release | None:
    """The release to offer for a platform, of `all_releases`; None if there is none."""
    return next((r for r in found if r.active and r.platform == platform), None)


def version_key(version: str) -> tuple[int, ...]:
    """What versions are compared by: numbers, a missing one being 0.

    >>> version_key("0.10") > version_key("0.9.9"), version_key("1.0.0") == version_key("1")
    (True, True)
    """
    numbers = [int(part) for part in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _newness(release: Release) -> tuple[tuple[int, ...], datetime, str]:
    return version_key(release.version), release.created_at, release.platform


def _is(version: str, platform: str) -> list[Any]:
    return [releases.c.version == version, releases.c.platform == platform]


def _release(row: Row[Any]) -> Release:
    return Release(**row._mapping)  # noqa: SLF001 - SQLAlchemy's documented name
