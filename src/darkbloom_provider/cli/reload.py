"""Tells a running provider that something was changed for it, and the owner what comes of it."""

from __future__ import annotations

import socket

from darkbloom_provider.cli.context import Invocation
from darkbloom_provider.config import http_base
from darkbloom_provider.control.client import DaemonClient
from darkbloom_provider.errors import DarkbloomError

PROBE_S = 1.0
RESTART = "`darkbloom stop`, then `darkbloom start`"


def daemon_runs(invocation: Invocation) -> bool:
    """Whether a provider runs for this home: somebody listens on its control socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(invocation.home.control_socket))
        except OSError:
            return False
    return True


def reload_account(invocation: Invocation, base_url: str) -> str | None:
    """Have the running provider take up that its account at `base_url` has changed.

    Returns:
        What to tell the owner; None if no provider runs that this is about.
    """
    if not daemon_runs(invocation):
        return None
    try:
        told = DaemonClient(invocation.home.control_socket).reload_account()
    except DarkbloomError as error:
        return f"The running provider was not told ({error}). Restart it: {RESTART}."
    if told.coordinator is None:
        return None
    if http_base(told.coordinator) != base_url:
        return f"The running provider works for {told.coordinator} and goes on as before."
    where = "for this account" if told.linked else "under its own wallet address"
    when = ""
    if told.changed and told.in_flight:
        requests = "1 request" if told.in_flight == 1 else f"{told.in_flight} requests"
        when = f" as soon as it has answered {requests}"
    elif told.changed:
        when = " from now on"
    return f"The running provider earns {where}{when}."


def reload_models(invocation: Invocation, model_id: str) -> str | None:
    """Have the running provider serve the models that are installed now, `model_id` among them.

    Returns:
        What to tell the owner; None if no provider runs.
    """
    if not daemon_runs(invocation):
        return None
    try:
        told = DaemonClient(invocation.home.control_socket).reload_models()
    except DarkbloomError as error:
        return f"The running provider was not told ({error}). Restart it: {RESTART}."
    if model_id in told.models:
        return "The running provider serves it as soon as it is loaded."
    why = next((line for line in told.left_out if line.startswith(f"{model_id} ")), None)
    return "The running provider goes on with " + (
        f"its other models: {why}." if why else f"the models it was told to serve: {RESTART}."
    )
