"""A private network of one: a coordinator, an owner, a consumer, and later a provider.

Everything it writes is in a home of its own, which the caller makes and removes. Only the model is
taken from the user's own home, where it stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import httpx
import tomlkit

from darkbloom_provider import config
from darkbloom_provider.account.client import CoordinatorClient
from darkbloom_provider.account.credentials import Credentials, CredentialStore
from darkbloom_provider.account.login import wait_for_approval
from darkbloom_provider.account.replies import AccountEarnings
from darkbloom_provider.config import AttestationSection, Config, CoordinatorSection
from darkbloom_provider.coordinator.server import RunningCoordinator, running_coordinator
from darkbloom_provider.coordinator.settings import Settings
from darkbloom_provider.daemon import provider
from darkbloom_provider.daemon.supervisor import Assignment, Supervisor
from darkbloom_provider.earnings.inquiry import Means, inquire
from darkbloom_provider.earnings.journal import Journal
from darkbloom_provider.earnings.statement import Statement
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.host.privacy import HardeningReport
from darkbloom_provider.logs import Secret
from darkbloom_provider.models.catalogue import Catalogue
from darkbloom_provider.paths import Home
from darkbloom_provider.protocol.money import MICRO_PER_USD

STARTING_CREDIT = MICRO_PER_USD
"""Play money of the demo's consumer, in micro-USD."""
PATIENCE_S = 60.0
"""How long any step may take on a slow machine before the demo gives up, in seconds."""
POLL_S = 0.05
PAYOUTS_SHOWN = 5
"""As many as `darkbloom earnings` lists when not told otherwise."""


class DemoError(DarkbloomError):
    """The demo did not get where it should."""

    def __init__(self, what: str, why: str | None = None) -> None:
        super().__init__(
            what, why=why, next_step="run `darkbloom --verbose demo` and report what it prints"
        )


@dataclass(frozen=True, slots=True)
class Network:
    """What runs, and the keys to it."""

    coordinator: RunningCoordinator
    home: Home
    owner: str
    """Account of the provider's owner."""
    api_key: Secret
    """Of the consumer."""

    @property
    def settings(self) -> Config:
        """The provider's. Facts that exist on Macs only are claimed, which loopback allows."""
        return Config(
            coordinator=CoordinatorSection(url=self.coordinator.ws_url),
            attestation=AttestationSection(posture="development"),
        )

    @property
    def config_file(self) -> Path:
        """The same settings as a file, for commands typed in another terminal."""
        return self.home.root / "provider.toml"


@contextlib.asynccontextmanager
async def private_network(home: Home, models: Path) -> AsyncIterator[Network]:
    """A coordinator on a free port of loopback, with an owner and a consumer who can pay.

    Args:
        home: Holds everything that is written.
        models: The directory with the installed models; only read.
    """
    home.models.symlink_to(models, target_is_directory=True)
    settings = Settings(state_directory=home.coordinator, port=0)
    async with running_coordinator(settings, Catalogue.builtin()) as coordinator:
        operator = coordinator.operator
        consumer = await operator.create_user("consumer@demo.invalid")
        await operator.credit(consumer, STARTING_CREDIT)
        network = Network(
            coordinator=coordinator,
            home=home,
            owner=await operator.create_user("owner@demo.invalid"),
            api_key=await operator.create_api_key(consumer),
        )
        _write_config(network)
        yield network


async def link_machine(
    network: Network, environ: Mapping[str, str], show_code: Callable[[str], None]
) -> None:
    """Link the machine as `darkbloom login` does, with the owner approving at once."""
    base_url = network.coordinator.base_url
    approved = asyncio.Event()

    async def until_approved(_seconds: float) -> None:
        await approved.wait()

    async with CoordinatorClient(base_url) as client, asyncio.TaskGroup() as tasks:
        code = await client.device_code()
        show_code(code.user_code)
        granting = tasks.create_task(
            wait_for_approval(client, code, clock=time.monotonic, sleep=until_approved)
        )
        await _approve(network, code.user_code)
        approved.set()
        grant = await granting
    credentials = Credentials(token=grant.token, account_id=grant.account_id)
    store = CredentialStore(network.home, environ)
    await asyncio.to_thread(store.save, base_url, credentials)


def serving_provider(
    network: Network,
    environ: Mapping[str, str],
    *,
    model: str,
    hardening: HardeningReport | None,
    drain_s: float,
) -> AbstractAsyncContextManager[Supervisor]:
    """The provider's daemon, in this process."""
    assignment = Assignment(home=network.home, config=network.settings, models=(model,))
    return provider.running(assignment, environ, hardening=hardening, drain_s=drain_s)


async def until_routable(
    network: Network, supervisor: Supervisor, progress: Callable[[str], None]
) -> None:
    """Wait until the coordinator would send the provider work.

    Raises:
        DemoError: It does not come to that.
    """
    deadline = time.monotonic() + PATIENCE_S
    headers = {"Authorization": f"Bearer {network.api_key.reveal()}"}
    async with httpx.AsyncClient(base_url=network.coordinator.base_url, trust_env=False) as http:
        while time.monotonic() < deadline:
            status = supervisor.status()
            progress(next((m.detail for m in status.models if m.detail), status.phase))
            if supervisor.ready.is_set():
                reply = await http.get("/v1/models", headers=headers)
                if reply.status_code == HTTPStatus.OK and reply.json()["data"]:
                    return
            await asyncio.sleep(POLL_S)
    problem = supervisor.status().coordinator.last_problem
    raise DemoError(
        "The coordinator does not route to the provider", None if problem is None else problem.what
    )


async def credited(network: Network, environ: Mapping[str, str], jobs: int) -> AccountEarnings:
    """The owner's account once it has been paid for `jobs` jobs.

    Raises:
        DemoError: The money does not come.
    """
    deadline = time.monotonic() + PATIENCE_S
    token = await _token(network, environ)
    async with CoordinatorClient(network.coordinator.base_url) as client:
        while time.monotonic() < deadline:
            account = await client.account_earnings(token, PAYOUTS_SHOWN)
            if account.count >= jobs:
                return account
            await asyncio.sleep(POLL_S)
    raise DemoError(f"Not all of the {jobs} jobs were credited")


async def statement(network: Network, environ: Mapping[str, str]) -> Statement:
    """What `darkbloom earnings` knows on this machine."""
    base_url = network.coordinator.base_url
    means = Means(device_token=await _token(network, environ))
    async with CoordinatorClient(base_url) as client:
        return await inquire(
            client,
            lambda: Journal.view(network.home.journal),
            means,
            url=base_url,
            limit=PAYOUTS_SHOWN,
        )


async def _approve(network: Network, user_code: str) -> None:
    session = network.coordinator.operator.session_token(network.owner)
    async with httpx.AsyncClient(base_url=network.coordinator.base_url, trust_env=False) as http:
        reply = await http.post(
            "/v1/device/approve",
            json={"user_code": user_code},
            headers={"Authorization": f"Bearer {session.reveal()}"},
        )
    if reply.status_code != HTTPStatus.OK:
        raise DemoError("The code was not approved", f"HTTP {reply.status_code}")


async def _token(network: Network, environ: Mapping[str, str]) -> Secret:
    store = CredentialStore(network.home, environ)
    credentials = await asyncio.to_thread(store.load, network.coordinator.base_url)
    if credentials is None:
        raise DemoError("The machine is not linked")
    return credentials.token


def _write_config(network: Network) -> None:
    document = tomlkit.document()
    document["coordinator"] = {"url": network.settings.coordinator.url}
    document["attestation"] = {"posture": network.settings.attestation.posture}
    network.config_file.write_text(tomlkit.dumps(document), encoding="utf-8")
    config.load({}, network.config_file)
