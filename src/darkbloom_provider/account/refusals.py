"""What a coordinator's "no" means: an HTTP answer in, one typed error with its next step out. Pure.

Exceptions a caller of `account.client` can meet, all of them of the project's own tree:

    DarkbloomError
    ├── UnreachableError
    │   └── CoordinatorUnreachableError   no answer, or a gateway's "not now"
    ├── CredentialsError
    │   └── TokenRefusedError             401 or 403
    ├── CoordinatorReplyError             any other refusal
    │   └── UnreadableReplyError          not JSON, or not the documented shape
    └── DeviceCodeError                   the login was refused or ran out of time
"""

from __future__ import annotations

from typing import NamedTuple

import httpx
from pydantic import ValidationError

from darkbloom_provider.account.replies import ErrorBody, ErrorDetail
from darkbloom_provider.errors import CredentialsError, DarkbloomError, UnreachableError
from darkbloom_provider.logs import redact

_NOT_NOW = frozenset({502, 503, 504})


class CoordinatorUnreachableError(UnreachableError):
    """The coordinator gave no answer."""

    def __init__(self, base_url: str, why: str) -> None:
        super().__init__(
            f"The coordinator at {base_url} does not answer",
            why=why,
            next_step="check the address and your connection, then try again",
        )


class TokenRefusedError(CredentialsError):
    """The coordinator does not accept the token or key."""


class CoordinatorReplyError(DarkbloomError):
    """The coordinator answered, but not with what was asked for.

    Attributes:
        status: The HTTP status.
        error_type: The machine-readable `error.type`, or "" if the body had none.
    """

    def __init__(
        self,
        what: str,
        *,
        status: int,
        error_type: str = "",
        why: str | None = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(what, why=why, next_step=next_step)
        self.status = status
        self.error_type = error_type


class UnreadableReplyError(CoordinatorReplyError):
    """The reply is not JSON or not of the documented shape."""


class DeviceCodeError(DarkbloomError):
    """A device login ended without a token."""

    def __init__(self, what: str, *, why: str | None = None) -> None:
        super().__init__(what, why=why, next_step="run `darkbloom login` for a new code")


class Answer(NamedTuple):
    """An HTTP answer, read to its end."""

    status: int
    body: bytes
    retry_after: str


def refusal(base_url: str, path: str, answer: Answer) -> DarkbloomError | None:
    """The error that `answer` to a request for `path` stands for; None if it is a success."""
    status = answer.status
    if httpx.codes.is_success(status):
        return None
    if status in _NOT_NOW:
        return CoordinatorUnreachableError(base_url, f"its gateway says HTTP {status}")
    detail = _error_detail(answer.body)
    message = redact(detail.message or detail.type) or f"HTTP {status}"
    if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        return TokenRefusedError(
            f"The coordinator at {base_url} does not accept this machine's token",
            why=message,
            next_step="run `darkbloom login`",
        )
    what = f"The coordinator at {base_url} answered {path} with HTTP {status}"
    next_step = "try again in a minute"
    if httpx.codes.is_redirect(status):
        message = "it points to another address, which is never followed with a token"
        next_step = "give the coordinator's own address with --coordinator URL"
    elif status == httpx.codes.TOO_MANY_REQUESTS:
        next_step = f"wait {answer.retry_after or 'a few'} seconds and try again"
    elif httpx.codes.is_client_error(status):
        next_step = "check that the address is a coordinator's (--coordinator URL)"
    return CoordinatorReplyError(
        what, status=status, error_type=detail.type, why=message, next_step=next_step
    )


def unreadable(base_url: str, path: str, status: int, why: str) -> UnreadableReplyError:
    """The error for an answer that is not what the documents promise."""
    return UnreadableReplyError(
        f"The coordinator at {base_url} answered {path} in a way that cannot be read",
        status=status,
        why=why,
        next_step="check that the address is a coordinator's; if it is, `pip install -U "
        "darkbloom-provider`",
    )


def _error_detail(body: bytes) -> ErrorDetail:
    try:
        return ErrorBody.model_validate_json(body).error
    except ValidationError:
        return ErrorDetail()
