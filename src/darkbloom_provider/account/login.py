"""Device login: show a code, wait until the owner has typed it in at the console.

Follows RFC 8628 with the network's own status codes. The loop decides nothing about a terminal;
it reports the time left and takes its clock and its sleep from the caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from darkbloom_provider.account.refusals import DeviceCodeError, UnreadableReplyError
from darkbloom_provider.account.replies import DeviceCode, DeviceGrant
from darkbloom_provider.errors import UnreachableError


class TokenSource(Protocol):
    """The one call the loop makes."""

    async def device_token(self, code: DeviceCode) -> DeviceGrant | None:
        """As `CoordinatorClient.device_token`."""


async def wait_for_approval(
    source: TokenSource,
    code: DeviceCode,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
    waiting: Callable[[float], None] = lambda _seconds_left: None,
) -> DeviceGrant:
    """Poll until the owner approves.

    A poll that brings no answer, or one that is not JSON, is not an end: networks come back while
    the owner is still looking for the browser window.

    Args:
        source: The coordinator.
        code: What `CoordinatorClient.device_code` gave.
        clock: Monotonic seconds.
        sleep: Waits that many seconds.
        waiting: Told the seconds left, before every wait.

    Raises:
        DeviceCodeError: Refused by the coordinator, or not approved within `code.expires_in`.
    """
    deadline = clock() + code.expires_in
    while (left := deadline - clock()) > 0:
        waiting(left)
        await sleep(min(code.interval, left))
        try:
            grant = await source.device_token(code)
        except (UnreachableError, UnreadableReplyError):
            continue
        if grant is not None:
            return grant
    raise DeviceCodeError(
        "The code was not approved in time",
        why=f"it was good for {round(code.expires_in / 60)} minutes",
    )
