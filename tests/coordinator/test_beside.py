"""The operator's own commands find the coordinator of a directory, and are let in by it alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from darkbloom_provider.coordinator import beside
from darkbloom_provider.coordinator.console.gate import SESSION_COOKIE, cookie_name
from darkbloom_provider.coordinator.sources import Sources
from support.credentials import bearer
from support.network import network


async def test_the_directorys_token_is_the_operators_and_nobodys_sign_in(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        assert beside.address(tmp_path) == net.coordinator.base_url
        operator = bearer(beside.operator_token(tmp_path, Sources()).reveal())
        listed = await net.http.get("/v1/admin/users", headers=operator)
        assert listed.status_code == 200
        for method, path in (("GET", "/v1/auth/session"), ("POST", "/v1/device/approve")):
            refused = await net.http.request(method, path, headers=operator, json={})
            assert refused.status_code == 403
        cookie = cookie_name(SESSION_COOKIE, secure=False)
        token = operator["Authorization"].removeprefix("Bearer ")
        page = await net.http.get("/earn", headers={"Cookie": f"{cookie}={token}"})
        assert page.status_code == 303  # to sign in
    assert beside.address(tmp_path) is None


async def test_a_token_of_another_directory_or_of_a_minute_ago_opens_nothing(
    tmp_path: Path,
) -> None:
    async with network(tmp_path / "this") as net:
        earlier = Sources().now() - beside.TOKEN_LIFETIME - timedelta(seconds=1)
        late = beside.operator_token(tmp_path / "this", replace(Sources(), now=lambda: earlier))
        (tmp_path / "other").mkdir(mode=0o700)
        foreign = beside.operator_token(tmp_path / "other", Sources())
        for token in (late, foreign):
            refused = await net.http.get("/v1/admin/users", headers=bearer(token.reveal()))
            assert refused.status_code == 401


def test_a_directory_that_cannot_be_written_keeps_no_coordinator_from_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with beside.announced(tmp_path / "file", "http://127.0.0.1:1"):
        assert beside.address(tmp_path / "file") is None
    assert "address_not_written" in capsys.readouterr().out
