"""A coordinator's REST API, as far as an owner's machine needs it.

Its exceptions are those of `account.refusals`; httpx's own end here.

Redirects are never followed, so a token only ever goes to the address it was issued by.
"""

from __future__ import annotations

import asyncio
import enum
import ssl
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import ValidationError

from darkbloom_provider import __version__
from darkbloom_provider.account.refusals import (
    Answer,
    CoordinatorUnreachableError,
    DeviceCodeError,
    TokenRefusedError,
    refusal,
    unreadable,
)
from darkbloom_provider.account.replies import (
    AccountEarnings,
    DeviceCode,
    DeviceGrant,
    DeviceStatus,
    ErrorDetail,
    FleetList,
    Health,
    NodeEarnings,
    PriceList,
    Reply,
    WalletEarnings,
    is_token,
    one_line,
)
from darkbloom_provider.config import LOOPBACK_HOSTS, host_of, http_base
from darkbloom_provider.errors import UsageError
from darkbloom_provider.logs import Secret, redact

TIMEOUT_S = 5.0
DEVICE_TIMEOUT_S = 10.0
LARGEST_REPLY = 64 * 1024 * 1024
"""Bytes. The wallet view lists every payout ever made, so this is generous, but it is an end."""
HIGHEST_PORT = 65_535
ROWS = 50
"""Rows the earnings endpoints return when not told otherwise; they cap the figure at 1000."""

R = TypeVar("R", bound=Reply)


class Revocation(enum.Enum):
    """What became of a token that was to be revoked."""

    REVOKED = enum.auto()
    UNKNOWN = enum.auto()
    """The coordinator did not know the token (any more)."""
    NOT_OFFERED = enum.auto()
    """This coordinator cannot revoke tokens."""


class CoordinatorClient:
    """Asks one coordinator. Use as an async context manager.

    Args:
        base_url: Any spelling of the coordinator's address.
        transport: Stands in for the network in tests.
        timeout_s: How long a whole exchange may take.
        device_timeout_s: The same for the device-login calls.

    Raises:
        UsageError: The address cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        timeout_s: float = TIMEOUT_S,
        device_timeout_s: float = DEVICE_TIMEOUT_S,
    ) -> None:
        self.base_url = _usable(base_url)
        self._timeout_s = timeout_s
        self._device_timeout_s = device_timeout_s
        loopback = host_of(self.base_url) in LOOPBACK_HOSTS
        # Plain HTTP never uses a TLS context, and loading the system's certificates is slow; the
        # empty context trusts nobody.
        secure = self.base_url.startswith("https:")
        self._http = httpx.AsyncClient(
            base_url=self.base_url,
            transport=transport,
            verify=True if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            trust_env=not loopback,
            follow_redirects=False,
            timeout=max(timeout_s, device_timeout_s),
            headers={"User-Agent": f"darkbloom/{__version__}", "Accept": "application/json"},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def health(self) -> Health:
        """Whether the coordinator is up, and how many providers are connected."""
        return await self._get("/health", Health)

    async def providers(self) -> FleetList:
        """Everybody who is connected. Long on a large network."""
        return await self._get("/v1/providers/attestation", FleetList)

    async def pricing(self) -> PriceList:
        """The price table, operator's settings included."""
        return await self._get("/v1/pricing", PriceList)

    async def account_earnings(self, token: Secret, limit: int = ROWS) -> AccountEarnings:
        """Balance, lifetime figures and the newest rows of the token's account.

        Raises:
            TokenRefusedError: The token is wrong, revoked, or of a kind this coordinator does not
                accept here (the network's own one accepts API keys, not device tokens).
        """
        path = "/v1/provider/account-earnings"
        return await self._get(path, AccountEarnings, token=token, params={"limit": str(limit)})

    async def node_earnings(self, provider_key: str, limit: int = ROWS) -> NodeEarnings:
        """Lifetime figures of one provider key (base64 X25519), that is of one provider launch."""
        params = {"provider_key": provider_key, "limit": str(limit)}
        return await self._get("/v1/provider/node-earnings", NodeEarnings, params=params)

    async def wallet_earnings(self, address: str) -> WalletEarnings:
        """What is kept under a wallet address; zeros if nobody has heard of it."""
        params = {"wallet": address}
        return await self._get("/v1/provider/earnings", WalletEarnings, params=params)

    async def device_code(self) -> DeviceCode:
        """Start a device login."""
        path = "/v1/device/code"
        answer = await self._exchange("POST", path, timeout_s=self._device_timeout_s)
        return self._read(answer, path, DeviceCode)

    async def device_token(self, code: DeviceCode) -> DeviceGrant | None:
        """Poll a device login once. None while the owner has not approved it.

        Raises:
            CoordinatorUnreachableError: No answer; polling may go on.
            UnreadableReplyError: An answer that is not a JSON object; polling may go on.
            DeviceCodeError: Refused, expired or unknown; polling must end.
        """
        path = "/v1/device/token"
        answer = await self._exchange(
            "POST",
            path,
            json={"device_code": code.device_code.reveal()},
            timeout_s=self._device_timeout_s,
        )
        status = self._parse(answer, path, DeviceStatus)
        if answer.status == httpx.codes.OK and status.status == "authorization_pending":
            return None
        if answer.status == httpx.codes.OK and status.status == "authorized":
            try:
                return DeviceGrant.model_validate_json(answer.body)
            except ValidationError:
                raise DeviceCodeError(
                    "The coordinator approved the login but sent no usable token"
                ) from None
        detail = status.error or ErrorDetail()
        message = redact(detail.message or detail.type) or f"HTTP {answer.status} {status.status}"
        raise DeviceCodeError("The login was refused", why=message.strip())

    async def revoke(self, token: Secret) -> Revocation:
        """Make a device token worthless, where the coordinator offers that."""
        path = "/v1/device/revoke"
        answer = await self._exchange("POST", path, token=token, timeout_s=self._device_timeout_s)
        if answer.status in {httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED}:
            return Revocation.NOT_OFFERED
        if answer.status == httpx.codes.UNAUTHORIZED:
            return Revocation.UNKNOWN
        error = refusal(self.base_url, path, answer)
        if error is not None:
            raise error
        return Revocation.REVOKED

    async def _get(
        self,
        path: str,
        kind: type[R],
        *,
        token: Secret | None = None,
        params: dict[str, str] | None = None,
    ) -> R:
        answer = await self._exchange(
            "GET", path, token=token, params=params, timeout_s=self._timeout_s
        )
        return self._read(answer, path, kind)

    async def _exchange(
        self,
        method: str,
        path: str,
        *,
        token: Secret | None = None,
        params: dict[str, str] | None = None,
        json: Any = None,  # noqa: ANN401 - JSON
        timeout_s: float,
    ) -> Answer:
        headers = {} if token is None else {"Authorization": _bearer(token)}
        request = self._http.build_request(
            method, path, params=params, json=json, headers=headers, timeout=timeout_s
        )
        try:
            # httpx limits each read; a server that sends a byte a second needs the whole bounded.
            async with asyncio.timeout(timeout_s):
                return await self._send(request, path)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise CoordinatorUnreachableError(self.base_url, _cause(error, timeout_s)) from None

    async def _send(self, request: httpx.Request, path: str) -> Answer:
        response = await self._http.send(request, stream=True)
        try:
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > LARGEST_REPLY:
                    raise unreadable(
                        self.base_url, path, response.status_code, "the reply has no end"
                    )
            retry_after = one_line(response.headers.get("Retry-After", ""))
            return Answer(response.status_code, bytes(body), retry_after)
        finally:
            await response.aclose()

    def _read(self, answer: Answer, path: str, kind: type[R]) -> R:
        error = refusal(self.base_url, path, answer)
        if error is not None:
            raise error
        return self._parse(answer, path, kind)

    def _parse(self, answer: Answer, path: str, kind: type[R]) -> R:
        try:
            return kind.model_validate_json(answer.body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            reason = f"{field}: {first['msg']}" if field else str(first["msg"])
            raise unreadable(self.base_url, path, answer.status, one_line(redact(reason))) from None


def _usable(base_url: str) -> str:
    try:
        base = http_base(base_url)
        url = httpx.URL(base)
    except (ValueError, httpx.InvalidURL) as error:
        raise _unusable(one_line(str(error))) from None
    if url.port is not None and url.port > HIGHEST_PORT:
        raise _unusable(f"there is no port {url.port}")
    if url.userinfo:
        raise UsageError(
            f"The coordinator's address ({url.host}) must not hold a user name or password",
            next_step="leave them out; this machine proves itself with its token",
        )
    return base


def _unusable(why: str) -> UsageError:
    return UsageError(
        "The coordinator's address cannot be used",
        why=why,
        next_step="give it as https://host with --coordinator URL",
    )


def _bearer(token: Secret) -> str:
    text = token.reveal().strip()
    if not is_token(text):
        raise TokenRefusedError(
            "The token is not one a coordinator could have issued",
            why="it is empty or holds characters that no token has",
            next_step="check DARKBLOOM_API_KEY, or run `darkbloom login`",
        )
    return f"Bearer {text}"


def _cause(error: Exception, timeout_s: float) -> str:
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return f"no answer within {timeout_s:g} s"
    return one_line(redact(str(error))) or type(error).__name__
