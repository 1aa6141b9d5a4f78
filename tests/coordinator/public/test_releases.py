"""Releases of the provider: registered by their builder, listed by the operator, told to all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from darkbloom_provider import __version__
from support.desk import ADMIN_KEY, BASE, RELEASE_KEY, Desk, bearer, error_of, front_desk

RELEASE = {
    "version": "0.3.12",
    "binary_hash": "ab" * 32,
    "bundle_hash": "cd" * 32,
    "url": "https://cdn.example/releases/0.3.12/bundle.tar.gz",
    "changelog": "One line per change",
}


@pytest.fixture
async def desk(tmp_path: Path, place: Path | str) -> AsyncIterator[Desk]:
    async with front_desk(tmp_path, where=place) as desk:
        yield desk


async def register(desk: Desk, **changes: Any) -> httpx.Response:
    headers = bearer(changes.pop("key", RELEASE_KEY))
    return await desk.client.post("/v1/releases", headers=headers, json=RELEASE | changes)


async def deactivate(desk: Desk, version: str) -> httpx.Response:
    return await desk.client.request(
        "DELETE", "/v1/admin/releases", headers=bearer(ADMIN_KEY), json={"version": version}
    )


async def version(desk: Desk) -> str:
    reply = await desk.get("/api/version")
    return str(reply["version"])


async def test_without_a_release_the_version_is_this_programs(desk: Desk) -> None:
    assert await desk.get("/api/version") == {
        "version": __version__,
        "download_url": f"{BASE}/dl/eigeninference-bundle-macos-arm64.tar.gz",
    }
    assert error_of(await desk.client.get("/v1/releases/latest")) == (404, "not_found")


async def test_a_release_is_told_at_once(desk: Desk) -> None:
    assert await version(desk) == __version__
    reply = await register(desk, python_hash="ef" * 32)
    expected = RELEASE | {
        "platform": "macos-arm64",
        "python_hash": "ef" * 32,
        "active": True,
        "created_at": "2026-05-01T12:00:00Z",
    }
    assert reply.json() == {"status": "release_registered", "release": expected}
    assert await desk.get("/api/version") == {
        "version": "0.3.12",
        "download_url": RELEASE["url"],
        "bundle_hash": RELEASE["bundle_hash"],
        "changelog": RELEASE["changelog"],
    }
    assert await desk.get("/v1/releases/latest") == expected
    assert (await desk.client.get("/v1/releases/latest?platform=linux-x86")).status_code == 404


async def test_versions_are_compared_by_their_numbers(desk: Desk) -> None:
    for name in ("0.9.9", "0.10", "0.2.30"):
        await register(desk, version=name)
    await register(desk, version="9", platform="linux-arm64")
    assert await version(desk) == "0.10"
    desk.clock.forward(timedelta(seconds=1))
    await register(desk, version="0.10.0", changelog="the same, registered later")
    assert (await desk.get("/api/version"))["changelog"] == "the same, registered later"
    assert (await desk.get("/v1/releases/latest?platform=linux-arm64"))["version"] == "9"


async def test_a_withdrawn_release_is_listed_and_not_told(desk: Desk) -> None:
    await register(desk, version="1.0")
    await register(desk, version="1.1")
    assert await version(desk) == "1.1"
    assert (await deactivate(desk, "1.1")).json() == {
        "status": "release_deactivated",
        "version": "1.1",
        "platform": "macos-arm64",
    }
    assert await version(desk) == "1.0"
    assert error_of(await deactivate(desk, "7")) == (404, "not_found")
    listed = (await desk.get("/v1/admin/releases", headers=bearer(ADMIN_KEY)))["releases"]
    assert [(r["version"], r["active"]) for r in listed] == [("1.1", False), ("1.0", True)]
    # Registered again, it counts again.
    await register(desk, version="1.1")
    assert await version(desk) == "1.1"


@pytest.mark.parametrize("key", ["wrong", ADMIN_KEY, "eigeninference-" + "0" * 64])
async def test_only_the_release_key_registers(desk: Desk, key: str) -> None:
    assert error_of(await register(desk, key=key)) == (401, "unauthorized")
    assert error_of(await desk.client.post("/v1/releases", json=RELEASE)) == (401, "unauthorized")
    assert await version(desk) == __version__


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": ""},
        {"version": "1.0-beta"},
        {"version": "1..2"},
        {"version": "9" * 10},
        {"platform": "Mac OS"},
        {"binary_hash": "abc"},
        {"bundle_hash": "AB" * 32},
        {"url": "ftp://cdn.example/x"},
        {"url": "https://"},
        {"url": "http://[bad"},
        {"changelog": "x" * 20_001},
    ],
)
async def test_what_is_no_release_is_refused(desk: Desk, wrong: dict[str, str]) -> None:
    assert error_of(await register(desk, **wrong)) == (400, "invalid_request_error")
