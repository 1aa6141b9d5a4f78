from __future__ import annotations

import pytest

from darkbloom_provider.account.client import CoordinatorClient
from darkbloom_provider.account.login import wait_for_approval
from darkbloom_provider.account.refusals import DeviceCodeError
from darkbloom_provider.account.replies import DeviceCode, DeviceGrant
from support.rest import CODE, TOKEN, Answer, Script, error

PENDING = Answer(body={"status": "authorization_pending"})
GRANTED = Answer(body={"status": "authorized", "token": TOKEN, "account_id": "5ada"})


class Time:
    """Moves only when slept through."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


async def login(
    answers: list[Answer], time: Time, told: list[float] | None = None, **changes: object
) -> DeviceGrant:
    script = Script({"POST /v1/device/token": answers})
    code = DeviceCode.model_validate(CODE | changes)
    async with CoordinatorClient("https://c.example", transport=script.transport()) as client:
        return await wait_for_approval(
            client,
            code,
            clock=time.clock,
            sleep=time.sleep,
            waiting=(told if told is not None else []).append,
        )


async def test_it_waits_the_interval_before_every_poll_and_tells_the_time_left() -> None:
    time, told = Time(), list[float]()
    grant = await login([PENDING, PENDING, GRANTED], time, told)
    assert grant.token.reveal() == TOKEN
    assert time.slept == [5, 5, 5]
    assert told == [900, 895, 890]


@pytest.mark.parametrize(
    "hiccup", [Answer(503, b"down"), Answer(500, b"<html>"), Answer(200, b""), Answer(200, b"[1]")]
)
async def test_a_poll_without_a_json_answer_is_no_end(hiccup: Answer) -> None:
    assert (await login([hiccup, PENDING, GRANTED], Time())).account_id == "5ada"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(410, error("expired_token", "the code has expired")), "the code has expired"),
        (Answer(404, error("invalid_grant", "unknown code")), "unknown code"),
        (Answer(503, error("server_error", "database is away")), "database is away"),
        (Answer(200, {"status": "denied"}), "denied"),
        (Answer(200, {}), "HTTP 200"),
    ],
)
async def test_any_other_json_ends_it_and_shows_the_message(answer: Answer, message: str) -> None:
    time = Time()
    with pytest.raises(DeviceCodeError, match=message) as raised:
        await login([PENDING, answer], time)
    assert time.slept == [5, 5]
    assert "darkbloom login" in (raised.value.next_step or "")


async def test_it_gives_up_when_the_code_has_run_out() -> None:
    time = Time()
    with pytest.raises(DeviceCodeError, match="not approved in time"):
        await login([PENDING], time, expires_in=12)
    assert time.slept == [5, 5, 2]


@pytest.mark.parametrize("interval", [0, -5, 1e-9])
async def test_a_foolish_interval_does_not_make_it_hammer(interval: float) -> None:
    time = Time()
    await login([PENDING, GRANTED], time, interval=interval)
    assert time.slept == [1, 1]
