"""The one tree of errors a user can meet, and the exit codes of the command line.

Every failure that reaches a person says what happened, why, and what to type next. A room that
needs an error of its own derives it from one of these, beside the code that raises it.
"""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """What a shell script can rely on. Stable: owners' scripts and launchd read them."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    """Bad arguments or a bad setting. Nothing was started. The same figure click uses."""
    UNREACHABLE = 3
    """The daemon or the coordinator does not answer."""
    CREDENTIALS = 4
    """The machine's token is missing where one is needed, wrong, or revoked."""


class DarkbloomError(Exception):
    """Something went wrong that the user can understand and act on.

    Args:
        what: What happened, one sentence without a full stop at the end of a fragment.
        why: The cause, if it adds anything to `what`. Never a secret, a prompt or a completion.
        next_step: What to type or do next.
    """

    exit_code: ExitCode = ExitCode.FAILURE

    def __init__(self, what: str, *, why: str | None = None, next_step: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.next_step = next_step

    def __str__(self) -> str:
        return self.what if self.why is None else f"{self.what}: {self.why}"

    def lines(self) -> list[str]:
        """The error as the lines a terminal shows, most important first."""
        lines = [self.what]
        if self.why is not None:
            lines.append(f"  Why:  {self.why}")
        if self.next_step is not None:
            lines.append(f"  Next: {self.next_step}")
        return lines


class UsageError(DarkbloomError):
    """The caller asked for something that makes no sense. Nothing was started."""

    exit_code = ExitCode.USAGE


class ConfigError(UsageError):
    """A setting is wrong. A wrong setting never means "serve"."""


class UnreachableError(DarkbloomError):
    """The daemon or the coordinator does not answer."""

    exit_code = ExitCode.UNREACHABLE


class CredentialsError(DarkbloomError):
    """The token or key is missing, wrong or revoked."""

    exit_code = ExitCode.CREDENTIALS


class AlreadyRunningError(DarkbloomError):
    """A port, a socket or a home is already in use by another process."""


class ModelError(DarkbloomError):
    """A model cannot be found, read, imported or loaded."""
