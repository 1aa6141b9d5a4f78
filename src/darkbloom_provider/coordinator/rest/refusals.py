"""The errors that are a caller's to mend, whether it called over HTTP or on the command line."""

from __future__ import annotations

from http import HTTPStatus

from darkbloom_provider.errors import DarkbloomError


class RefusalError(DarkbloomError):
    """Something was asked that is not granted. `status` and `type` are the reply's."""

    status: int = HTTPStatus.BAD_REQUEST
    type: str = "invalid_request_error"
    retry_after: int | None = None
    """Seconds after which it may work, for the reply's `Retry-After`."""

    def __init__(
        self,
        what: str,
        *,
        status: int | None = None,
        error_type: str | None = None,
        why: str | None = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(what, why=why, next_step=next_step)
        if status is not None:
            self.status = status
        if error_type is not None:
            self.type = error_type
