"""Token buckets: the arithmetic, and that they cannot fill the memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.coordinator.rest.rate_limits import TokenBuckets, address_key
from darkbloom_provider.coordinator.settings import UNLIMITED, Rate, Rates
from support.network import chat, network


class Monotonic:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def buckets(rate: Rate, **more: int) -> tuple[TokenBuckets, Monotonic]:
    clock = Monotonic()
    return TokenBuckets(rate, clock, **more), clock


def test_a_burst_then_one_at_a_time() -> None:
    bucket, clock = buckets(Rate(0.2, 3))
    assert [bucket.take("a") for _ in range(4)] == [0, 0, 0, 5]
    clock.now += 4
    assert bucket.take("a") == pytest.approx(1)
    clock.now += 1
    assert bucket.take("a") == 0
    assert bucket.take("a") == pytest.approx(5)
    assert bucket.take("b") == 0


def test_a_rate_of_zero_sets_no_limit_and_remembers_nobody() -> None:
    bucket, _ = buckets(UNLIMITED)
    assert all(bucket.take("a") == 0 for _ in range(1000))
    assert len(bucket) == 0


@given(
    rate=st.sampled_from([Rate(0.2, 3), Rate(1, 10), Rate(7.5, 1)]),
    waits=st.lists(st.floats(0, 20), max_size=60),
)
def test_never_more_than_the_burst_and_what_has_flowed_in(rate: Rate, waits: list[float]) -> None:
    bucket, clock = buckets(rate)
    begin, passed = clock.now, 0
    for wait in waits:
        clock.now += wait
        passed += bucket.take("a") == 0
        assert passed <= rate.burst + (clock.now - begin) * rate.per_second + 1e-6


@given(waits=st.lists(st.floats(0, 10), min_size=1, max_size=30))
def test_whoever_waits_as_told_is_let_in(waits: list[float]) -> None:
    bucket, clock = buckets(Rate(0.5, 2))
    for wait in waits:
        clock.now += wait
        told = bucket.take("a")
        if told:
            clock.now += told + 1e-9
            assert bucket.take("a") == 0


def test_full_buckets_are_forgotten_and_a_crowd_cannot_fill_the_memory() -> None:
    bucket, clock = buckets(Rate(1, 2), max_keys=100)
    for number in range(1000):
        bucket.take(str(number))
    assert len(bucket) == 100
    clock.now += 10
    bucket.take("somebody")
    assert len(bucket) == 1


def test_giving_back_makes_room_but_never_more_than_the_burst() -> None:
    bucket, _ = buckets(Rate(0.1, 1))
    bucket.give_back("a")
    assert bucket.take("a") == 0
    bucket.give_back("a")
    bucket.give_back("a")
    assert bucket.take("a") == 0
    assert bucket.take("a") > 0


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::9", "2001:db8:1:2::/64"),
        (None, "unknown"),
        ("testclient", "unknown"),
    ],
)
def test_an_address_is_counted_as_one_customer(host: str | None, key: str) -> None:
    assert address_key(host) == key


async def test_a_consumer_is_limited_by_account_whatever_key_it_uses(tmp_path: Path) -> None:
    async with network(tmp_path, rates=Rates(consumer=Rate(0.001, 2))) as net:
        second = await net.coordinator.operator.create_api_key(net.account)
        statuses = []
        for key in (None, second.reveal(), None):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            reply = await net.http.post(
                "/v1/chat/completions", json=chat(model="unknown"), headers=headers
            )
            statuses.append(reply.status_code)
        assert statuses == [404, 404, 429]
        assert reply.headers["retry-after"] == "60"
        assert reply.json()["error"]["type"] == "rate_limit_exceeded"
        assert await net.spent() == 0
        # What only reads is not limited.
        assert (await net.http.get("/v1/payments/balance")).status_code == 200


@pytest.mark.parametrize(
    ("proxies", "statuses"),
    [
        # A proxy that was named tells who calls, with the address nearest to it.
        (("127.0.0.1",), [401, 429, 401, 429, 401]),
        # Whoever else says so is not believed.
        ((), [401, 429, 429, 429, 429]),
        (("10.0.0.0/8",), [401, 429, 429, 429, 429]),
    ],
)
async def test_callers_behind_a_proxy_are_told_apart_if_it_was_named(
    tmp_path: Path, proxies: tuple[str, ...], statuses: list[int]
) -> None:
    callers = ["192.0.2.1", "192.0.2.1", "192.0.2.2", "6.6.6.6, 192.0.2.2", "192.0.2.3"]
    # A coordinator that others reach has an administrator, from the time before.
    async with network(tmp_path) as net:
        await net.coordinator.operator.set_admin(net.account, is_admin=True)
        await net.coordinator.operator.set_password("consumer@example.org", "a long enough one")
    async with network(
        tmp_path, rates=Rates(sign_in=Rate(0.001, 1)), proxies=proxies, admin_key="k"
    ) as net:
        told = [
            await net.http.post(
                "/v1/auth/sign-in",
                json={"email": "nobody@example.org", "password": "a wrong password"},
                headers={"X-Forwarded-For": caller},
            )
            for caller in callers
        ]
    assert [reply.status_code for reply in told] == statuses
