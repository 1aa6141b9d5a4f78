"""The command line's end of the local socket."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from darkbloom_provider import __version__
from darkbloom_provider.control import sockets
from darkbloom_provider.control.models import (
    DEFAULT_DRAIN_SECONDS,
    DRAIN_PATH,
    HOST,
    RELOAD_ACCOUNT_PATH,
    RELOAD_MODELS_PATH,
    STATUS_PATH,
    VERSION_HEADER,
    AccountReload,
    DrainReply,
    DrainRequest,
    ModelsReload,
    Refusal,
    StatusReport,
)
from darkbloom_provider.errors import DarkbloomError, UnreachableError

_Model = TypeVar("_Model", bound=BaseModel)

TIMEOUT_SECONDS = 5.0
START_HINT = "start one with `darkbloom serve` or `darkbloom start`"


class DaemonClient:
    """Asks the daemon behind one Unix socket. Synchronous; holds no connection between calls."""

    def __init__(
        self, path: Path, *, version: str = __version__, timeout: float = TIMEOUT_SECONDS
    ) -> None:
        self._path = path
        self._version = version
        self._timeout = timeout
        self.skew: str | None = None
        """A line to show when the daemon last asked is of another version than this program."""

    def status(self) -> StatusReport:
        """What the daemon does now.

        Raises:
            UnreachableError: No daemon runs, or it does not answer.
        """
        return self._ask("GET", STATUS_PATH, StatusReport)

    def drain(self, deadline_s: float = DEFAULT_DRAIN_SECONDS) -> DrainReply:
        """Have the daemon finish what it does (for at most `deadline_s` seconds) and exit.

        Raises:
            UnreachableError: No daemon runs, or it does not answer.
        """
        return self._ask("POST", DRAIN_PATH, DrainReply, DrainRequest(deadline_s=deadline_s))

    def reload_account(self) -> AccountReload:
        """Have the daemon take up the token that is stored now, or do without one.

        Raises:
            UnreachableError: No daemon runs, or it does not answer.
            DarkbloomError: It cannot read the token.
        """
        return self._ask("POST", RELOAD_ACCOUNT_PATH, AccountReload)

    def reload_models(self) -> ModelsReload:
        """Have the daemon serve the models that are installed now. Cuts no stream.

        Raises:
            UnreachableError: No daemon runs, or it does not answer.
            DarkbloomError: It does not serve yet or any more, or there is nothing to serve.
        """
        return self._ask("POST", RELOAD_MODELS_PATH, ModelsReload)

    def _ask(
        self, method: str, path: str, kind: type[_Model], body: BaseModel | None = None
    ) -> _Model:
        response = self._send(method, path, None if body is None else body.model_dump_json())
        theirs = response.headers.get(VERSION_HEADER)
        self.skew = self._compare(theirs)
        if theirs is None:
            raise UnreachableError(
                "Something else than a daemon answers on the control socket",
                why=f"{self._path} answered without a version",
                next_step="end that process, then " + START_HINT,
            )
        try:
            if response.is_success:
                return kind.model_validate_json(response.content)
            refusal = Refusal.model_validate_json(response.content)
        except ValidationError:
            raise DarkbloomError(
                "The daemon's answer cannot be understood",
                why=self.skew or f"HTTP status {response.status_code}",
                next_step="restart the daemon: `darkbloom stop`, then `darkbloom start`",
            ) from None
        raise DarkbloomError("The daemon refused", why=refusal.error, next_step=refusal.next_step)

    def _send(self, method: str, path: str, body: str | None) -> httpx.Response:
        self._knock()
        # A bare TLS context: the default one reads every certificate of the system for nothing.
        transport = httpx.HTTPTransport(
            uds=os.fspath(self._path), verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        )
        try:
            with httpx.Client(
                transport=transport,
                base_url=f"http://{HOST}",
                timeout=self._timeout,
                trust_env=False,
            ) as http:
                return http.request(method, path, content=body)
        except httpx.HTTPError as error:
            raise UnreachableError(
                "The daemon does not answer",
                why=f"{type(error).__name__} on {self._path}",
                next_step="look at its log; `darkbloom stop` ends it",
            ) from None

    def _knock(self) -> None:
        # httpcore leaves its socket open when a Unix socket refuses: it is asked only after us.
        sockets.check_length(self._path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(self._timeout)
            try:
                probe.connect(os.fspath(self._path))
            except (FileNotFoundError, ConnectionRefusedError):
                raise UnreachableError("No daemon is running", next_step=START_HINT) from None
            except OSError as error:
                raise UnreachableError(
                    "The daemon cannot be reached",
                    why=f"{self._path}: {error.strerror or type(error).__name__}",
                    next_step="see who owns that file, or look at the daemon's log",
                ) from None

    def _compare(self, theirs: str | None) -> str | None:
        if theirs is None or theirs == self._version:
            return None
        return (
            f"the daemon is version {theirs}, this command is {self._version}; "
            "restart the daemon: `darkbloom stop`, then `darkbloom start`"
        )
