"""A coordinator that listens: state opened, socket bound, uvicorn run, and all of it ended again.

We bind the socket and own the signals ourselves: a port that is taken is an error with a next
step, and the one who started the coordinator decides when it stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final

import uvicorn

from darkbloom_provider import config, logs, paths
from darkbloom_provider.coordinator import beside
from darkbloom_provider.coordinator.accounts import people
from darkbloom_provider.coordinator.accounts.passwords import Passwords
from darkbloom_provider.coordinator.accounts.people import Identity
from darkbloom_provider.coordinator.accounts.session_tokens import SessionKeys
from darkbloom_provider.coordinator.app import build_app
from darkbloom_provider.coordinator.console.app import with_console
from darkbloom_provider.coordinator.inference.sealing import SealingKey
from darkbloom_provider.coordinator.ledger.tab import Books
from darkbloom_provider.coordinator.metrics import Metrics
from darkbloom_provider.coordinator.offer.live import Offer
from darkbloom_provider.coordinator.operator import Operator
from darkbloom_provider.coordinator.payouts.sandbox import SandboxSetup
from darkbloom_provider.coordinator.providers.hub import Hub
from darkbloom_provider.coordinator.providers.registration import Registrar, relist
from darkbloom_provider.coordinator.rails import desks
from darkbloom_provider.coordinator.rest.rate_limits import RateLimiter
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.coordinator.settings import Settings
from darkbloom_provider.coordinator.sources import Sources
from darkbloom_provider.coordinator.store.database import Database
from darkbloom_provider.errors import AlreadyRunningError, UsageError
from darkbloom_provider.models.catalogue import Catalogue
from darkbloom_provider.protocol.codec import MAX_PROVIDER_FRAME

ADMIN_KEY_FILE: Final = "admin-key"
RELEASE_KEY_FILE: Final = "release-key"
DATABASE_FILE: Final = "coordinator.sqlite3"
IDLE_CONNECTION_SECONDS: Final = 120
_BACKLOG: Final = 128
_CLOSING_SECONDS: Final = 1
"""For connections to close once the hub has ended their requests; then they are cut."""

_log = logs.get("coordinator")


@dataclass(frozen=True, slots=True)
class RunningCoordinator:
    """A coordinator that is listening."""

    settings: Settings
    base_url: str
    """For consumers and the CLI, without a trailing slash."""
    ws_url: str
    """For providers."""
    services: Services
    books: Books
    hub: Hub
    operator: Operator


@contextlib.asynccontextmanager
async def open_state(
    settings: Settings, sources: Sources, *, beside_server: bool = False
) -> AsyncIterator[tuple[Database, Identity]]:
    """The ledger, and the keys in the state directory, made at the first use.

    Raises:
        AlreadyRunningError: Another coordinator uses this directory, and `beside_server` is False.
        DarkbloomError: The directory, the ledger or the key cannot be used.
    """
    directory = settings.state_directory
    try:
        paths.private_directory(directory)
    except OSError as error:
        raise UsageError(
            f"The coordinator's directory {directory} cannot be used",
            why=error.strerror,
            next_step="choose another one with --data DIR",
        ) from error
    database = await Database.open(
        settings.database or directory / DATABASE_FILE,
        clock=sources.now,
        beside_server=beside_server,
    )
    try:
        keys = SessionKeys.load_or_create(directory)
        yield database, Identity(keys, settings.admin_key, settings.release_key)
    finally:
        await database.close()


@contextlib.asynccontextmanager
async def running_coordinator(
    settings: Settings, catalogue: Catalogue, sources: Sources | None = None
) -> AsyncIterator[RunningCoordinator]:
    """A coordinator that listens while the block runs, and is gone after it.

    At its end every open request gets a typed error and its money back; connections are closed.

    Raises:
        AlreadyRunningError: The port or the directory is in use.
        UsageError: The address cannot be listened on, or is for other machines and there is no
            administrator.
    """
    sources = sources or Sources()
    with _listening(settings.host, settings.port) as listener:
        async with open_state(settings, sources) as state:
            database, _ = state
            await _administered(settings, database)
            await desks.no_play_money(settings, database)
            recovered = await database.recover(now=sources.now())
            if recovered:
                _log.warning("reservations_refunded", count=recovered)
            coordinator = _compose(settings, catalogue, sources, state, listener)
            await coordinator.services.offer.refresh()
            async with _serving(coordinator, listener):
                with beside.announced(settings.state_directory, coordinator.base_url):
                    yield coordinator


async def _administered(settings: Settings, database: Database) -> None:
    if settings.is_public and not await database.read(people.has_admin):
        raise UsageError(
            f"{settings.opened_by} opens the coordinator to other machines",
            why="it has no administrator who can sign in",
            next_step="type: darkbloom coordinator init --admin you@example.org",
        )


def _compose(
    settings: Settings,
    catalogue: Catalogue,
    sources: Sources,
    state: tuple[Database, Identity],
    listener: socket.socket,
) -> RunningCoordinator:
    database, identity = state
    metrics = Metrics()
    hub = Hub(settings, sources, metrics)
    host, port = listener.getsockname()[:2]
    base_url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    offer = Offer(database, catalogue)

    def unlink(token_sha256: str) -> None:
        hub.registry.unlink(token_sha256)

    def list_anew(changed: Catalogue) -> None:
        relist(hub.registry, changed)
        hub.serve_waiting()

    offer.on_change(list_anew)
    services = Services(
        db=database,
        payouts=desks.payout_desk(settings, database, sources, base_url),
        deposits=desks.deposit_desk(settings, database, sources, base_url),
        sandbox_setup=SandboxSetup(sources.random_hex),
        identity=identity,
        sealing=_sealing_key(settings),
        clock=sources.now,
        monotonic=sources.monotonic,
        random_hex=sources.random_hex,
        new_id=sources.new_id,
        metrics=metrics,
        passwords=Passwords(),
        limiter=RateLimiter(settings.rates, monotonic=sources.monotonic, now=sources.now),
        offer=offer,
        policy=settings.policy,
        console_url=settings.console_url,
        behind_proxy=bool(settings.proxies) or settings.console_url is not None,
        connected_providers=lambda: len(hub.registry),
        on_token_revoked=unlink,
    )
    return RunningCoordinator(
        settings=settings,
        base_url=base_url,
        ws_url=config.websocket_url(base_url),
        services=services,
        books=Books(database, settings.policy, sources.now, metrics),
        hub=hub,
        operator=Operator(database, identity, sources),
    )


def _sealing_key(settings: Settings) -> SealingKey | None:
    return SealingKey.load_or_create(settings.state_directory) if settings.sealed_requests else None


@contextlib.asynccontextmanager
async def _serving(coordinator: RunningCoordinator, listener: socket.socket) -> AsyncIterator[None]:
    settings, services, hub = coordinator.settings, coordinator.services, coordinator.hub
    registrar = Registrar(services.db, services.offer, settings.policy, hub.sources)
    books = coordinator.books
    server = _Server(
        uvicorn.Config(
            with_console(build_app(services, hub, registrar, books), services, hub),
            http="httptools",
            ws="websockets-sansio",
            ws_max_size=MAX_PROVIDER_FRAME,
            ws_per_message_deflate=False,
            ws_ping_interval=None,
            ws_ping_timeout=None,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=bool(settings.proxies),
            forwarded_allow_ips=list(settings.proxies),
            server_header=False,
            timeout_keep_alive=IDLE_CONNECTION_SECONDS,
            timeout_graceful_shutdown=_CLOSING_SECONDS,
        )
    )
    # Kept aside, so that the caller sees its own error and not a group around it.
    failure: BaseException | None = None
    async with asyncio.TaskGroup() as tasks:
        background = [
            tasks.create_task(hub.evict_forever()),
            tasks.create_task(books.close_forever()),
            tasks.create_task(services.offer.follow_forever()),
        ]
        if services.payouts is not None:
            background.append(tasks.create_task(services.payouts.run_forever()))
        serving = tasks.create_task(server.serve([listener]))
        try:
            await server.listening.wait()
            yield
        except BaseException as error:  # noqa: BLE001 - raised again below, after an orderly end
            failure = error
        finally:
            await hub.stop()
            server.stop()
            await serving
            for task in background:
                task.cancel()
            await hub.settled()
            if services.payouts is not None:
                await services.payouts.rail.close()
            if services.deposits is not None:
                await services.deposits.rail.close()
    if failure is not None:
        raise failure


class _Server(uvicorn.Server):
    """uvicorn without its signal handling, and with a way to wait until it listens."""

    def __init__(self, settings: uvicorn.Config) -> None:
        super().__init__(settings)
        self.listening = asyncio.Event()
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Stop listening and close every connection."""
        self.should_exit = True
        self._stopped.set()

    async def main_loop(self) -> None:
        """Refresh the `Date` header every second until told to stop; then stop at once."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._stopped.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to whoever runs the coordinator."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, and say so."""
        await super().startup(sockets)
        self.listening.set()


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A bound socket.

    Raises:
        AlreadyRunningError: Another program listens there.
        UsageError: The address is not one of this machine, or not allowed.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise UsageError(
            f"{host} is not an address to listen on",
            why=error.strerror,
            next_step="leave --host out to listen on this machine only",
        ) from error
    with socket.socket(family, kind, number) as listener:
        # A restarted coordinator must not wait for the kernel to forget old connections.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise _cannot_listen(host, port, error) from error
        listener.setblocking(False)
        yield listener


def _cannot_listen(host: str, port: int, error: OSError) -> Exception:
    if error.errno == errno.EADDRINUSE:
        return AlreadyRunningError(
            f"Port {port} on {host} is already in use",
            why="another program, perhaps another coordinator, listens there",
            next_step=f"stop it, or type: darkbloom coordinator serve --port {port + 1}",
        )
    return UsageError(
        f"Cannot listen on {host}, port {port}",
        why=error.strerror,
        next_step="choose another one with --host and --port",
    )
