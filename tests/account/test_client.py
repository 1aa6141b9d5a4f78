from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.account.client import CoordinatorClient, Revocation
from darkbloom_provider.account.refusals import (
    CoordinatorReplyError,
    CoordinatorUnreachableError,
    DeviceCodeError,
    TokenRefusedError,
    UnreadableReplyError,
)
from darkbloom_provider.account.replies import DeviceCode
from darkbloom_provider.errors import DarkbloomError, ExitCode, UsageError
from darkbloom_provider.logs import Secret
from support.rest import CODE, TOKEN, Answer, Script, account_reply, error, serving

BASE = "https://coordinator.example"
CALLS: dict[str, Callable[[CoordinatorClient], Awaitable[object]]] = {
    "health": lambda client: client.health(),
    "pricing": lambda client: client.pricing(),
    "account": lambda client: client.account_earnings(Secret(TOKEN), 5),
    "node": lambda client: client.node_earnings("a+b/c=", 5),
    "wallet": lambda client: client.wallet_earnings("0xab"),
    "code": lambda client: client.device_code(),
    "token": lambda client: client.device_token(DeviceCode.model_validate(CODE)),
    "revoke": lambda client: client.revoke(Secret(TOKEN)),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


def client_of(script: Script, base: str = BASE) -> CoordinatorClient:
    return CoordinatorClient(base, transport=script.transport())


def failing(failure: Exception) -> CoordinatorClient:
    def handle(_request: httpx.Request) -> httpx.Response:
        raise failure

    return CoordinatorClient(BASE, transport=httpx.MockTransport(handle))


def answering(answer: Answer) -> CoordinatorClient:
    def handle(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(answer.status, content=answer.content, headers=answer.headers)

    return CoordinatorClient(BASE, transport=httpx.MockTransport(handle))


async def test_recorded_account_reply_is_read_to_the_micro_dollar() -> None:
    body = (
        b'{"account_id":"c9b880b3","available_balance_micro_usd":190,"count":2,"earnings":[{"id":2,'
        b'"account_id":"c9b880b3","provider_id":"41a7","provider_key":"Gp/t=","job_id":"73e7",'
        b'"model":"mlx-community/gemma-4-26b-a4b-it-8bit","amount_micro_usd":95,"prompt_tokens":11,'
        b'"completion_tokens":5,"created_at":"2026-11-23T09:21:05.103454896+02:00"}],'
        b'"total_micro_usd":190,"withdrawable_balance_micro_usd":190,"new_field":{"a":[1]}}\n'
    )
    script = Script({"GET /v1/provider/account-earnings": Answer(body=body)})
    async with client_of(script) as client:
        reply = await client.account_earnings(Secret(TOKEN), 7)
    assert (reply.available_balance_micro_usd, reply.total_micro_usd, reply.count) == (190, 190, 2)
    assert reply.earnings[0].created_at is not None
    assert reply.earnings[0].created_at.isoformat() == "2026-11-23T07:21:05.103454+00:00"
    assert script.asked == ["GET /v1/provider/account-earnings?limit=7"]
    assert script.authorized == [f"Bearer {TOKEN}"]


async def test_null_lists_are_empty_lists() -> None:
    script = Script(
        {
            "GET /v1/provider/account-earnings": Answer(body=account_reply(earnings=None)),
            "GET /v1/pricing": Answer(body={"prices": None}),
            "GET /health": Answer(body={"status": "ok", "providers": 1, "extensions": None}),
        }
    )
    async with client_of(script) as client:
        assert (await client.account_earnings(Secret(TOKEN))).earnings == ()
        assert (await client.pricing()).prices == ()
        assert (await client.health()).extensions == ()


async def test_a_provider_key_is_escaped_in_the_address() -> None:
    body = {"earnings": [], "total_micro_usd": 0, "count": 0}
    script = Script({"GET /v1/provider/node-earnings": Answer(body=body)})
    async with client_of(script) as client:
        await client.node_earnings("Gp/t+8=", 5)
    assert script.asked == ["GET /v1/provider/node-earnings?provider_key=Gp%2Ft%2B8%3D&limit=5"]
    assert script.authorized == [None]


async def test_text_of_the_coordinator_cannot_steer_the_terminal() -> None:
    reply = account_reply()
    reply["earnings"][0]["model"] = "\x1b[2Jevil\nmodel"
    script = Script({"GET /v1/provider/account-earnings": Answer(body=reply)})
    async with client_of(script) as client:
        rows = (await client.account_earnings(Secret(TOKEN))).earnings
    assert rows[0].model == "[2Jevil model"


@pytest.mark.parametrize("amount", [1.5, "182", True, None, 2**63], ids=repr)
async def test_money_that_is_not_an_integer_is_refused(amount: object) -> None:
    answer = Answer(body=account_reply(available_balance_micro_usd=amount))
    async with answering(answer) as client:
        with pytest.raises(UnreadableReplyError, match="cannot be read"):
            await client.account_earnings(Secret(TOKEN))


@every_call
async def test_no_answer_is_unreachable_and_names_the_address(
    call: Callable[[CoordinatorClient], Awaitable[object]],
) -> None:
    async with failing(httpx.ConnectError("refused")) as client:
        with pytest.raises(CoordinatorUnreachableError, match=BASE) as raised:
            await call(client)
    assert raised.value.exit_code == ExitCode.UNREACHABLE
    assert raised.value.next_step


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ReadTimeout(""),
        httpx.RemoteProtocolError("gone"),
        httpx.ReadError(""),
        httpx.DecodingError("bad gzip"),
        TimeoutError(),
        ConnectionResetError("reset"),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_every_failure_of_the_network_becomes_ours(failure: Exception) -> None:
    async with failing(failure) as client:
        with pytest.raises(CoordinatorUnreachableError) as raised:
            await client.health()
    assert raised.value.why


async def test_a_server_that_never_finishes_is_given_up_on() -> None:
    class Drip(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.Event().wait()

    def handle(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Drip())

    transport = httpx.MockTransport(handle)
    async with CoordinatorClient(BASE, transport=transport, timeout_s=0.01) as client:
        with pytest.raises(CoordinatorUnreachableError, match=r"no answer within 0\.01 s"):
            await client.health()


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_gateways_not_now_is_unreachable(status: int) -> None:
    async with answering(Answer(status, b"<html>")) as client:
        with pytest.raises(CoordinatorUnreachableError, match=str(status)):
            await client.health()


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_token_is_a_credentials_error(status: int) -> None:
    async with answering(Answer(status, error("authentication_error", TOKEN))) as client:
        with pytest.raises(TokenRefusedError) as raised:
            await client.account_earnings(Secret(TOKEN))
    assert raised.value.exit_code == ExitCode.CREDENTIALS
    assert "darkbloom login" in "\n".join(raised.value.lines())
    assert TOKEN not in "\n".join(raised.value.lines())


@pytest.mark.parametrize("token", ["", " ", "a b", "tokén", "x\r\nHost: evil"])
async def test_a_token_that_is_no_header_is_refused_before_it_is_sent(token: str) -> None:
    script = Script({})
    async with client_of(script) as client:
        with pytest.raises(TokenRefusedError):
            await client.account_earnings(Secret(token))
    assert script.asked == []


async def test_a_redirect_is_not_followed_with_a_token() -> None:
    elsewhere = Answer(302, b"", {"Location": "https://thief.example/"})
    script = Script({"GET /v1/provider/account-earnings": elsewhere})
    async with client_of(script) as client:
        with pytest.raises(CoordinatorReplyError, match="another address") as raised:
            await client.account_earnings(Secret(TOKEN))
    assert raised.value.status == 302
    assert len(script.asked) == 1


async def test_other_refusals_carry_status_type_and_message() -> None:
    async with answering(Answer(500, error("internal_error", "db\x07 gone"))) as client:
        with pytest.raises(CoordinatorReplyError, match="HTTP 500: db  gone") as raised:
            await client.health()
    assert (raised.value.status, raised.value.error_type) == (500, "internal_error")
    too_many = Answer(429, error("rate_limited"), {"Retry-After": "7"})
    async with answering(too_many) as client:
        with pytest.raises(CoordinatorReplyError) as raised:
            await client.health()
    assert raised.value.next_step == "wait 7 seconds and try again"


async def test_plain_text_is_not_taken_for_json() -> None:
    async with answering(Answer(200, b"<html>hello</html>")) as client:
        with pytest.raises(UnreadableReplyError, match="/health"):
            await client.health()
    async with answering(Answer(404, b"404 page not found\n")) as client:
        with pytest.raises(CoordinatorReplyError, match="HTTP 404"):
            await client.health()


async def test_a_reply_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkbloom_provider.account.client.LARGEST_REPLY", 10)
    async with answering(Answer(200, b" " * 11)) as client:
        with pytest.raises(UnreadableReplyError, match="no end"):
            await client.health()


async def test_device_token_pending_granted_refused() -> None:
    code = DeviceCode.model_validate(CODE)
    pending = Answer(body={"status": "authorization_pending"})
    granted = Answer(body={"status": "authorized", "token": TOKEN, "account_id": "5ada"})
    expired = Answer(410, error("expired_token", "too late"))
    script = Script({"POST /v1/device/token": [pending, granted, expired]})
    async with client_of(script) as client:
        assert await client.device_token(code) is None
        grant = await client.device_token(code)
        assert grant is not None
        assert (grant.token.reveal(), grant.account_id) == (TOKEN, "5ada")
        with pytest.raises(DeviceCodeError, match="too late"):
            await client.device_token(code)
    assert json.loads(script.bodies[0]) == {"device_code": CODE["device_code"]}


@pytest.mark.parametrize("token", [None, "", "a b", 5])
async def test_an_approval_without_a_token_ends_the_login(token: object) -> None:
    async with answering(Answer(body={"status": "authorized", "token": token})) as client:
        with pytest.raises(DeviceCodeError, match="no usable token"):
            await client.device_token(DeviceCode.model_validate(CODE))


@pytest.mark.parametrize("uri", ["file:///etc/passwd", "-a", "https://x y", "javascript:1", ""])
async def test_only_web_addresses_reach_the_browser(uri: str) -> None:
    async with answering(Answer(body=CODE | {"verification_uri": uri})) as client:
        with pytest.raises(UnreadableReplyError, match="verification_uri"):
            await client.device_code()


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Answer(body={"status": "revoked"}), Revocation.REVOKED),
        (Answer(401, error("authentication_error")), Revocation.UNKNOWN),
        (Answer(404, b"404 page not found"), Revocation.NOT_OFFERED),
        (Answer(405, b""), Revocation.NOT_OFFERED),
    ],
)
async def test_revocation_says_what_became_of_the_token(
    answer: Answer, outcome: Revocation
) -> None:
    async with answering(answer) as client:
        assert await client.revoke(Secret(TOKEN)) is outcome


@pytest.mark.parametrize("address", ["http://[::1", "http://h:99999", "ftp://h", "", "http://"])
def test_an_unusable_address_is_a_usage_error(address: str) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        CoordinatorClient(address)


def test_an_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(UsageError) as raised:
        CoordinatorClient("https://me:hunter2@h")
    assert "hunter2" not in "\n".join(raised.value.lines())


async def test_loopback_ignores_the_environments_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    script = Script({"GET /health": Answer(body={"status": "ok", "providers": 14})})
    with serving(script) as base:
        async with CoordinatorClient(base) as client:
            assert (await client.health()).providers == 14


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted({*account_reply(), *CODE, "status", "providers", "prices", "token", "error"})
foreign_objects = st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=8)


@pytest.mark.parametrize("name", CALLS)
@given(
    status=st.sampled_from([200, 201, 204, 301, 400, 401, 404, 410, 429, 500, 503]),
    body=foreign_objects.map(lambda value: json.dumps(value).encode())
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=40)
    | st.just(b"[" * 5000),
)
def test_foreign_replies_raise_nothing_but_typed_errors(
    name: str, status: int, body: bytes
) -> None:
    async def ask() -> None:
        async with answering(Answer(status, body)) as client:
            with contextlib.suppress(DarkbloomError):
                await CALLS[name](client)

    asyncio.run(ask())
