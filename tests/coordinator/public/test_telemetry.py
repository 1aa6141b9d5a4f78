"""Telemetry: bounded, limited, and nothing in the log that may quote somebody."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from darkbloom_provider.coordinator.public.telemetry import FIELDS, read_event
from darkbloom_provider.coordinator.settings import Rates
from support.books import NOON, OWNER
from support.desk import Desk, error_of, front_desk

PATH = "/v1/telemetry/events"
EVENT = {
    "id": "7f4f31b0-93b0-4a3f-9b2f-2d8a3f1f9a10",
    "timestamp": "2026-05-01T11:59:00Z",
    "source": "provider",
    "severity": "warn",
    "kind": "connectivity",
    "version": "0.3.12",
    "message": "the line was cut",
    "fields": {"reason": "timeout", "attempt": 3, "prompt": "secret", "payment_failed": False},
    "stack": "a.py:1",
}


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with front_desk(tmp_path, rates=Rates()) as desk:
        await desk.user(OWNER)
        yield desk


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    with capture_logs() as captured:
        yield captured


async def report(desk: Desk, *events: Any, **headers: str) -> httpx.Response:
    return await desk.client.post(PATH, json={"events": list(events)}, headers=headers)


def kept(lines: list[Any]) -> list[Any]:
    return [line for line in lines if line["event"] == "telemetry"]


async def test_an_event_is_kept_without_its_free_text(desk: Desk, lines: list[Any]) -> None:
    reply = await report(desk, EVENT, {"message": ""}, "nonsense", {"kind": "log"})
    assert (reply.status_code, reply.json()) == (202, {"accepted": 1, "rejected": 3})
    (line,) = kept(lines)
    assert line == {
        "room": "telemetry",
        "event": "telemetry",
        "log_level": "info",
        "source": "provider",
        "severity": "warn",
        "kind": "connectivity",
        "at": "2026-05-01T11:59:00Z",
        "account": None,
        "message_characters": 16,
        "message_digest": line["message_digest"],
        "stack_characters": 6,
        "event_id": EVENT["id"],
        "event_version": "0.3.12",
        "field_reason": "timeout",
        "field_attempt": 3,
        "field_payment_failed": False,
    }
    counted = desk.services.metrics.registry.get_sample_value(
        "darkbloom_telemetry_events_total",
        {"source": "provider", "severity": "warn", "kind": "connectivity"},
    )
    assert counted == 1


async def test_a_machine_speaks_as_a_provider_and_for_its_account(
    desk: Desk, lines: list[Any]
) -> None:
    token = await desk.device_token(OWNER)
    await report(desk, EVENT | {"source": "coordinator"}, **token)
    await report(desk, EVENT | {"source": "console"}, **desk.session(OWNER))
    await report(desk, EVENT | {"source": "console"}, Authorization="Bearer nonsense")
    assert [(line["source"], line["account"]) for line in kept(lines)] == [
        ("provider", OWNER),
        ("console", OWNER),
        ("console", None),
    ]


async def test_a_batch_is_bounded(desk: Desk) -> None:
    empty = await report(desk)
    assert (empty.status_code, empty.json()) == (200, {"accepted": 0, "rejected": 0})
    assert error_of(await report(desk, *[EVENT] * 101)) == (413, "batch_too_large")
    large = await report(desk, EVENT | {"message": "x" * 70_000})
    assert error_of(large) == (413, "payload_too_large")
    wrong: list[dict[str, Any]] = [{}, {"events": None}, {"events": {}}]
    for body in wrong:
        reply = await desk.client.post(PATH, json=body)
        assert error_of(reply) == (400, "invalid_request_error")


async def test_strangers_share_one_small_bucket_and_accounts_have_their_own(desk: Desk) -> None:
    assert (await report(desk, *[EVENT] * 30)).status_code == 202
    refused = await report(desk, EVENT)
    assert error_of(refused) == (429, "rate_limited")
    assert "retry-after" not in refused.headers
    session = desk.session(OWNER)
    for _ in range(2):
        assert (await report(desk, *[EVENT] * 100, **session)).status_code == 202
    assert error_of(await report(desk, EVENT, **session)) == (429, "rate_limited")
    # What was refused took nothing: ten a minute come back.
    desk.clock.forward(timedelta(minutes=1))
    assert (await report(desk, *[EVENT] * 10)).status_code == 202
    assert (await report(desk, EVENT)).status_code == 429


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"source": "moon"}, ("custom", "warn", "connectivity")),
        ({"severity": "loud"}, ("provider", "info", "connectivity")),
        ({"kind": "gossip"}, ("provider", "warn", "custom")),
        ({"source": 1, "severity": None, "kind": []}, ("custom", "info", "custom")),
    ],
)
def test_unknown_words_become_known_ones(
    given: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    event = read_event(EVENT | given, now=NOON)
    assert event is not None
    assert (event.source, event.severity, event.kind) == expected


@pytest.mark.parametrize(
    "timestamp",
    ["2026-04-24T11:59:59Z", "2026-05-01T12:05:01Z", "yesterday", "2026-05-01T11:00:00", 7, None],
)
def test_a_time_that_cannot_be_is_now(timestamp: Any) -> None:
    event = read_event(EVENT | {"timestamp": timestamp}, now=NOON)
    assert event is not None
    assert event.at == NOON


def test_fields_are_words_and_numbers_of_the_list_only() -> None:
    token = "eigeninference-pt-" + "ab" * 32
    values = {
        **dict.fromkeys(FIELDS, "two words"),
        "component": "engine",
        "error": "one-word-prompt",
        "backend": token,
        "duration_ms": 12.5,
        "model": ["x"],
        "route": None,
        "unknown": "x",
    }
    event = read_event(EVENT | {"fields": values, "machine_id": token}, now=NOON)
    assert event is not None
    assert event.fields == {"component": "engine", "duration_ms": 12.5}
    assert "machine_id" not in event.named
    huge = read_event(EVENT | {"fields": {"component": "x" * 9_000, "attempt": 1}}, now=NOON)
    assert huge is not None
    assert huge.fields == {}


def test_long_texts_are_cut() -> None:
    event = read_event(EVENT | {"message": "x" * 5_000, "stack": "y" * 40_000}, now=NOON)
    assert event is not None
    assert (event.message_characters, event.stack_characters) == (4_096, 32_768)
