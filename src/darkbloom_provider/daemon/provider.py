"""The real provider: every part made once, here, and handed to the supervisor.

`run_provider` is what `darkbloom serve` runs; `running` is the same for a program that keeps a
provider beside other things in its own event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import platform
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from darkbloom_provider import logs
from darkbloom_provider.account.credentials import Credentials, CredentialStore
from darkbloom_provider.config import Config
from darkbloom_provider.control.models import DEFAULT_DRAIN_SECONDS, StatusReport
from darkbloom_provider.daemon.facts import Machine, ProviderFacts
from darkbloom_provider.daemon.jobs import JobRunner
from darkbloom_provider.daemon.presence import Fleet, fleet_of
from darkbloom_provider.daemon.rooms import Engine, Link
from darkbloom_provider.daemon.supervisor import Assignment, Supervisor, Surroundings
from darkbloom_provider.earnings.journal import Journal
from darkbloom_provider.engine import engine
from darkbloom_provider.engine.requests import EngineSettings
from darkbloom_provider.errors import ConfigError
from darkbloom_provider.host import (
    enclave,
    hardware,
    heap,
    identity,
    metrics,
    posture,
    privacy,
    runtime,
)
from darkbloom_provider.host.enclave import EnclaveError, EnclaveKey
from darkbloom_provider.host.posture import Posture
from darkbloom_provider.host.privacy import Check, HardeningReport
from darkbloom_provider.host.runtime import Hashes
from darkbloom_provider.link.clock import waking_clock
from darkbloom_provider.link.coordinator_link import CoordinatorLink
from darkbloom_provider.link.session import Timings
from darkbloom_provider.link.state import LinkState
from darkbloom_provider.models import store
from darkbloom_provider.models.catalogue import Catalogue
from darkbloom_provider.models.store import InstalledModel
from darkbloom_provider.protocol.messages import SystemMetrics
from darkbloom_provider.protocol.money import Price

GB = 10**9
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_log = logs.get("daemon")


class RealRooms:
    """This machine, its disk and the network.

    Args:
        assignment: What the owner asked for.
        environ: The process's environment.
        hardening: What was done to protect this process; None if nothing was, in which case the
            privacy capabilities say so and the network sends no work.
    """

    def __init__(
        self,
        assignment: Assignment,
        environ: Mapping[str, str],
        hardening: HardeningReport | None = None,
    ) -> None:
        self._home = assignment.home
        self._config = assignment.config
        self._named = bool(assignment.models or assignment.config.backend.models)
        self._environ = environ
        self._hardening = hardening
        self._catalogue = Catalogue.builtin()
        self._relieve = heap.relief()
        self._sample = metrics.sampler()

    def machine(self) -> Machine:
        """Measure this machine, with the claims that the settings allow."""
        measured = posture.measure()
        if self._config.attestation.posture == "development":
            measured = posture.development(measured)
        return Machine(
            hardware=hardware.detect(),
            posture=measured,
            wallet_address=identity.wallet_address(self._home),
            machine_id=identity.machine_id(self._home),
            os_version=platform.mac_ver()[0],
            enclave_key=_enclave_key(),
        )

    def runtime(self) -> Hashes | None:
        """Hash the interpreter and the libraries."""
        try:
            return runtime.measure()
        except OSError as error:
            _log.warning("the runtime is not hashed", file=error.filename, why=error.strerror)
            return None

    def installed(self) -> Sequence[InstalledModel]:
        """The models imported under this home.

        Those that the system's Hugging Face cache happens to hold only count if models were asked
        for by name: nobody wants all of them in memory.
        """
        cache = store.hub_cache(self._environ) if self._named else None
        return store.installed(self._home.models, cache)

    def credentials(self) -> Credentials | None:
        """The token for the configured coordinator, from the keyring or the file."""
        return CredentialStore(self._home, self._environ).load(self._config.coordinator.base_url)

    async def fleet(self) -> Fleet:
        """What the configured coordinator tells everybody. No token goes along."""
        # The HTTP client takes memory that a daemon with work never needs.
        from darkbloom_provider.account.client import CoordinatorClient  # noqa: PLC0415 - see above

        async with CoordinatorClient(self._config.coordinator.base_url) as client:
            return await fleet_of(client)

    def sample(self) -> SystemMetrics:
        """How busy the machine is."""
        return self._sample()

    def open_journal(self) -> Journal:
        """The journal of this home."""
        return Journal.open(self._home.journal)

    def engine(self) -> AbstractAsyncContextManager[Engine]:
        """The MLX engine."""
        settings = engine_settings(self._config, hardware.memory_bytes())
        return engine.Engine(settings, scratch=self._home.scratch)

    def link(
        self, facts: ProviderFacts, jobs: JobRunner, on_state: Callable[[LinkState], None]
    ) -> Link:
        """The session with the configured coordinator."""
        return CoordinatorLink(
            url=self._config.coordinator.url,
            facts=facts,
            jobs=jobs,
            clock=waking_clock,
            random=random.random,
            on_state=on_state,
            timings=Timings(heartbeat_s=self._config.coordinator.heartbeat_interval_secs),
        )

    def relieve(self) -> None:
        """Hand memory that was freed back to the system."""
        self._relieve()

    def price(self, model_id: str) -> Price:
        """The price in the catalogue."""
        return self._catalogue.price(model_id)

    def seal(self) -> None:
        """Close the seal of a hardened process."""
        if self._hardening is not None:
            self._hardening.seal.close()

    def privacy(self, measured: Posture) -> Mapping[str, Check]:
        """What is done for privacy, measured now."""
        return privacy.checks(
            self._hardening, engine_in_process=engine.runs_in_this_process(), posture=measured
        )


def _enclave_key() -> EnclaveKey | None:
    try:
        return enclave.new_key()
    except EnclaveError as error:
        _log.info("no attestation is sent", why=str(error))
        return None


def engine_settings(config: Config, memory_bytes: int) -> EngineSettings:
    """The engine's bounds, as the owner set them.

    Args:
        config: The settings.
        memory_bytes: All memory of this machine.

    Raises:
        ConfigError: The settings leave the engine no memory.
    """
    owner = config.provider
    total = memory_bytes / GB
    ceiling = total - owner.memory_reserve_gb
    if owner.memory_limit_gb is not None:
        ceiling = min(owner.memory_limit_gb, total)
    if ceiling <= 0:
        raise ConfigError(
            "provider.memory_reserve_gb leaves no memory to serve with",
            why=f"{owner.memory_reserve_gb:g} GB stay free of the {total:.1f} GB of this machine",
            next_step="lower [provider] memory_reserve_gb, or set memory_limit_gb",
        )
    return EngineSettings(
        max_running=EngineSettings().max_running if config.backend.continuous_batching else 1,
        memory_ceiling_gb=ceiling,
        prompt_cache_gb=config.backend.prompt_cache_gb,
    )


def provider(
    assignment: Assignment,
    environ: Mapping[str, str],
    *,
    hardening: HardeningReport | None = None,
    on_serving: Callable[[StatusReport], None] | None = None,
) -> Supervisor:
    """A provider made of the real parts, not yet running. Needs a running event loop."""
    return Supervisor(
        assignment,
        RealRooms(assignment, environ, hardening),
        Surroundings(
            pid=os.getpid(),
            now=lambda: dt.datetime.now(dt.UTC),
            clock=waking_clock,
            start_micros=identity.process_start_micros(),
        ),
        on_serving=on_serving,
    )


async def run_provider(
    assignment: Assignment,
    environ: Mapping[str, str],
    *,
    hardening: HardeningReport | None = None,
    on_serving: Callable[[StatusReport], None] | None = None,
    drain_s: float = DEFAULT_DRAIN_SECONDS,
) -> None:
    """Serve until a signal or the local socket says stop. The process's signals are ours.

    Raises:
        DarkbloomError: Nothing can be served, and why.
    """
    supervisor = provider(assignment, environ, hardening=hardening, on_serving=on_serving)
    with signals_owned(supervisor, drain_s):
        await supervisor.run()


@contextlib.asynccontextmanager
async def running(
    assignment: Assignment,
    environ: Mapping[str, str],
    *,
    hardening: HardeningReport | None = None,
    drain_s: float = DEFAULT_DRAIN_SECONDS,
) -> AsyncIterator[Supervisor]:
    """A provider that runs beside the block. Leaving the block drains and stops it.

    It is starting when the block begins: `status()` tells how far it is, `ready` is set when the
    coordinator has taken it. Should it fail, the block is cancelled and the failure is raised.

    Raises:
        DarkbloomError: Nothing can be served, and why.
    """
    supervisor = provider(assignment, environ, hardening=hardening)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(supervisor.run(), name="provider")
            try:
                yield supervisor
            finally:
                supervisor.stop(drain_s)
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


@contextlib.contextmanager
def signals_owned(supervisor: Supervisor, drain_s: float) -> Iterator[None]:
    """Let the first stop signal drain the provider and the next one end it at once.

    A SIGHUP that is ignored stays ignored: `nohup darkbloom serve` outlives its terminal. After the
    block the daemon has tidied up: a signal then ends the process without another word.
    """
    loop = asyncio.get_running_loop()
    asked = False

    def stop(name: str) -> None:
        nonlocal asked
        if asked:
            _log.warning("second stop signal: running requests are cut", signal=name)
            supervisor.force()
        else:
            asked = True
            _log.info("stop signal: finishing what runs", signal=name, deadline_s=drain_s)
            supervisor.stop(drain_s)

    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    owned = [number for number in STOP_SIGNALS if not (ignored and number is signal.SIGHUP)]
    for number in owned:
        loop.add_signal_handler(number, stop, number.name)
    try:
        yield
    finally:
        for number in owned:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
