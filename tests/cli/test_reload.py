"""What a command that changed something says about the provider that runs meanwhile."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from darkbloom_provider.cli.context import Invocation
from darkbloom_provider.cli.reload import reload_account, reload_models
from darkbloom_provider.control.models import AccountReload, ModelsReload
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.paths import Home
from support.control_socket import ToldDaemon, told_daemon

BASE = "http://127.0.0.1:8080"
WORKS_FOR = "ws://127.0.0.1:8080/ws/provider"
NOT_TOLD = (
    "The running provider was not told (The daemon refused: {}). "
    "Restart it: `darkbloom stop`, then `darkbloom start`."
)


@pytest.fixture
def invocation() -> Iterator[Invocation]:
    with tempfile.TemporaryDirectory(prefix="db-", dir="/tmp") as directory:
        environ = {"DARKBLOOM_HOME": str(Path(directory).resolve())}
        yield Invocation(environ=environ, out=Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (
            AccountReload(coordinator=WORKS_FOR, linked=True, changed=True),
            "The running provider earns for this account from now on.",
        ),
        (
            AccountReload(coordinator=WORKS_FOR, linked=True, in_flight=2),
            "The running provider earns for this account.",
        ),
        (
            AccountReload(coordinator=WORKS_FOR, linked=True, changed=True, in_flight=2),
            "The running provider earns for this account as soon as it has answered 2 requests.",
        ),
        (
            AccountReload(coordinator=WORKS_FOR, linked=False, changed=True, in_flight=1),
            (
                "The running provider earns under its own wallet address as soon as it "
                "has answered 1 request."
            ),
        ),
        (
            AccountReload(coordinator="wss://other.example/ws/provider", linked=True),
            "The running provider works for wss://other.example/ws/provider and goes on as before.",
        ),
        (AccountReload(), None),
        (
            DarkbloomError("This machine's token cannot be read", why="the keyring is locked"),
            NOT_TOLD.format("This machine's token cannot be read: the keyring is locked"),
        ),
    ],
)
def test_a_changed_account_is_told_with_what_comes_of_it(
    invocation: Invocation, told: AccountReload | DarkbloomError, line: str | None
) -> None:
    with told_daemon(invocation.home, ToldDaemon(account=told)) as daemon:
        assert reload_account(invocation, BASE) == line
    assert daemon.asked == ["account"]


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (
            ModelsReload(models=("a", "b"), changed=True),
            "The running provider serves it as soon as it is loaded.",
        ),
        (
            ModelsReload(models=("b",), left_out=("a is not served: max_model_slots is 1",)),
            (
                "The running provider goes on with its other models: "
                "a is not served: max_model_slots is 1."
            ),
        ),
        (
            ModelsReload(models=("b",)),
            (
                "The running provider goes on with the models it was told to serve: "
                "`darkbloom stop`, then `darkbloom start`."
            ),
        ),
        (
            DarkbloomError("The provider is loading"),
            NOT_TOLD.format("The provider is loading"),
        ),
    ],
)
def test_an_imported_model_is_told_with_what_comes_of_it(
    invocation: Invocation, told: ModelsReload | DarkbloomError, line: str
) -> None:
    with told_daemon(invocation.home, ToldDaemon(models=told)) as daemon:
        assert reload_models(invocation, "a") == line
    assert daemon.asked == ["models"]


def test_without_a_running_provider_nothing_is_said(invocation: Invocation) -> None:
    assert reload_account(invocation, BASE) is None
    assert reload_models(invocation, "a") is None
    assert not Home(invocation.home.root).control_socket.exists()
