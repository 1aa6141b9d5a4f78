"""No log line carries a prompt, an answer, a password, a key or a token, at debug level either."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from darkbloom_provider import logs
from darkbloom_provider.coordinator.accounts.passwords import Passwords
from darkbloom_provider.coordinator.providers.registry import Registry
from support.house import ADMIN_KEY, RELEASE_KEY, House, furnished
from support.network import CHAT, chat
from support.scripted_provider import Job, scripted_provider

CANARY = "heliotrope"
PROMPT, ANSWER, PASSWORD = f"{CANARY}-prompt", f"{CANARY}-answer", f"{CANARY}-password"
CODE, TOKEN = f"{CANARY}-code", f"eigeninference-pt-{CANARY}"
EVERYTHING = {
    "model": f"{CANARY}-model",
    "messages": [{"role": "user", "content": PROMPT}],
    "input": PROMPT,
    "email": f"{CANARY}@example.org",
    "password": PASSWORD,
    "current_password": PASSWORD,
    "new_password": PASSWORD + PASSWORD,
    "code": CODE,
    "invite_code": CODE,
    "user_code": CODE,
    "device_code": CODE,
    "key": TOKEN,
    "id": TOKEN,
    "name": CODE,
    "note": CODE,
    "amount_usd": CODE,
    "wallet": CODE,
    "provider_key": CODE,
    "events": [
        {
            "message": f"cannot answer {PROMPT}",
            "stack": PROMPT,
            "id": TOKEN,
            "session_id": TOKEN,
            "fields": {"error": PROMPT, "reason": f"because of {PROMPT}", "prompt": PROMPT},
        }
    ],
}


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What a coordinator that was started with `--verbose` logs."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure(verbose=True, stream=stream)
    yield stream
    structlog.configure(**before)
    root.handlers, root.level = handlers, level


def silent_about(lines: io.StringIO, house: House) -> None:
    """Nothing secret is in the lines, and there are lines."""
    text = lines.getvalue()
    assert text
    secrets = {ADMIN_KEY, RELEASE_KEY, CANARY}
    for person in (house.user, house.other, house.admin):
        secrets |= {person.api_key, person.device_token}
    for headers in house.credentials.values():
        _, _, token = headers().get("Authorization", "").partition(" ")
        if token.startswith("eyJ"):
            # A new session differs in its end only.
            secrets.add(token[:60])
    for secret in secrets:
        assert secret not in text, text


async def test_whatever_is_sent_to_any_endpoint_is_not_logged(
    tmp_path: Path, lines: io.StringIO
) -> None:
    async with furnished(tmp_path) as house:
        for method, path in sorted(house.routes()):
            if method == "WEBSOCKET":
                continue
            target = (method, path.replace("{token}", CODE))
            for name in ("none", "key", "session", "operator", "device"):
                headers = house.credentials[name]() | {"X-Request-ID": "r-1"}
                for body in (json.dumps(EVERYTHING).encode(), f"{{{PROMPT}".encode()):
                    query = {"wallet": CODE, "user_code": CODE, "limit": CODE, "from": CODE}
                    await house.call(target, headers, params=query, content=body)
        # Something must be there to read.
        logs.get("test").debug("the_end")
    silent_about(lines, house)


async def test_a_request_that_is_served_and_one_that_fails_are_not_logged(
    tmp_path: Path, lines: io.StringIO
) -> None:
    async def answer(job: Job) -> None:
        await job.say(ANSWER)
        await job.complete(3, 3)

    async def fail(job: Job) -> None:
        await job.say(ANSWER)
        await job.fail(f"cannot do {PROMPT}")

    async with furnished(tmp_path) as house:
        net = house.net
        async with scripted_provider(net.ws_url, answer) as provider:
            good = await net.http.post(CHAT, json=chat(PROMPT))
            assert ANSWER in good.text
            provider.script = fail
            await net.http.post(CHAT, json=chat(PROMPT))
            await net.http.post(CHAT, json=chat(PROMPT, stream=True))
        logs.get("test").debug("the_end")
    silent_about(lines, house)


async def test_what_a_provider_says_is_not_logged(tmp_path: Path, lines: io.StringIO) -> None:
    frames: list[Any] = [
        json.dumps({"type": "register", "auth_token": TOKEN, "hardware": {"chip_name": CODE}}),
        json.dumps({"type": "novelty", "auth_token": TOKEN}),
        f"not json {TOKEN}",
        TOKEN.encode(),
    ]
    async with furnished(tmp_path) as house:
        for frame in frames:
            async with connect(house.net.ws_url) as socket:
                await socket.send(frame)
                try:
                    await socket.send(TOKEN)
                    await socket.send(b"")
                except ConnectionClosed:
                    pass
            await house.net.until(lambda: len(house.net.coordinator.hub.registry) == 0)
        logs.get("test").debug("the_end")
    silent_about(lines, house)


async def test_a_crash_is_logged_by_its_place_and_not_by_its_message(
    tmp_path: Path, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stumble(_self: Passwords, _stored: str | None, given: str) -> bool:
        raise ValueError(f"cannot read {given}")

    monkeypatch.setattr(Passwords, "match", stumble)
    async with furnished(tmp_path) as house:
        body = {"email": "user@example.org", "password": PASSWORD}
        reply = await house.call(("POST", "/v1/auth/sign-in"), {}, json=body)
        assert reply.status_code == 500
        assert reply.json()["error"] == {"type": "internal_error", "message": "internal error"}
        assert reply.headers["x-request-id"]
        assert reply.headers["access-control-allow-origin"]
    text = lines.getvalue()
    assert "handler_crashed" in text
    assert "ValueError" in text
    assert "sign_in.py:" in text
    silent_about(lines, house)


async def test_a_crash_over_a_providers_message_is_logged_without_it(
    tmp_path: Path, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(_self: Registry, *_: object, **__: object) -> None:
        raise ValueError(TOKEN)

    async def nothing(job: Job) -> None:
        del job

    monkeypatch.setattr(Registry, "add", stumble)
    async with furnished(tmp_path) as house:
        try:
            async with scripted_provider(house.net.ws_url, nothing):
                pass
        except (ConnectionClosed, TimeoutError, BaseExceptionGroup):
            pass
    assert "handler_crashed" in lines.getvalue()
    silent_about(lines, house)
