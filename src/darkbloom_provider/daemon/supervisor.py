"""The daemon's life: start in order, serve, drain, stop; and what it tells while it lives.

Order of the start: lock on the home → control socket → machine measured → journal → models
loaded → link. A daemon for this machine's own programs needs neither journal nor link: it takes its
port before it loads models. Everything is released in the opposite order, whatever happens in
between.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import secrets
from collections.abc import AsyncIterator, Callable, Mapping

from darkbloom_provider import __version__, logs
from darkbloom_provider.control.models import (
    DEFAULT_DRAIN_SECONDS,
    AccountReload,
    DrainReply,
    JobCounts,
    LocalStatus,
    ModelsReload,
    Phase,
    StatusReport,
)
from darkbloom_provider.control.server import serving
from darkbloom_provider.daemon import books
from darkbloom_provider.daemon.answers import Answers
from darkbloom_provider.daemon.assignment import Assignment, LocalEndpoint, Surroundings
from darkbloom_provider.daemon.desired import Desired
from darkbloom_provider.daemon.facts import Machine, ProviderFacts, attestation_of
from darkbloom_provider.daemon.instance import single_instance
from darkbloom_provider.daemon.jobs import JobRunner
from darkbloom_provider.daemon.local_api import LocalApi
from darkbloom_provider.daemon.local_server import LocalServer, address, listening
from darkbloom_provider.daemon.presence import Listed, Presence
from darkbloom_provider.daemon.rooms import Engine, Front, Link, Rooms, Work
from darkbloom_provider.daemon.speeds import MeasuredSpeeds, hardware_name
from darkbloom_provider.daemon.state import DaemonState, Moment, report
from darkbloom_provider.daemon.state_file import StateFile
from darkbloom_provider.daemon.tally import Tally
from darkbloom_provider.daemon.terms import Offer, Terms
from darkbloom_provider.engine.requests import EngineSnapshot
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.host import privacy
from darkbloom_provider.host.posture import Posture
from darkbloom_provider.host.runtime import Hashes
from darkbloom_provider.link import state as link_state
from darkbloom_provider.link.clock import to_the_beat
from darkbloom_provider.link.state import LinkState
from darkbloom_provider.logs import Secret
from darkbloom_provider.protocol.boxes import KeyPair
from darkbloom_provider.protocol.messages import ModelInfo, PrivacyCapabilities

__all__ = ["Assignment", "LocalEndpoint", "Supervisor", "Surroundings"]

SHUTTING_DOWN = "this provider is shutting down"
IDLE_CHECK_SECONDS = 15.0
STATE_FILE_SECONDS = 1.0
"""Longest time between two writes of `daemon-state.json`."""
SETTLE_SECONDS = 5.0
"""How long cancelled requests may take to let go of the engine before it is closed over them."""

_log = logs.get("daemon")


class Supervisor:
    """One daemon. `run()` lives as long as it does; the other methods return at once."""

    def __init__(
        self,
        assignment: Assignment,
        rooms: Rooms,
        around: Surroundings,
        *,
        on_serving: Callable[[StatusReport], None] | None = None,
    ) -> None:
        self._assignment = assignment
        self._rooms = rooms
        self._around = around
        self._on_serving = on_serving
        self._started_at = around.now()
        self._key_pair = KeyPair.generate()
        self.phase: Phase = "starting"
        self.ready = asyncio.Event()
        """Set once the coordinator has taken the registration for the first time."""
        self._stopping = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._drain_s = DEFAULT_DRAIN_SECONDS
        self._life: asyncio.Task[None] | None = None
        self._machine: Machine | None = None
        self._privacy: Mapping[str, privacy.Check] = {}
        self._desired = Desired(assignment, rooms, around.clock)
        self._warnings: tuple[str, ...] = ()
        self._background: list[asyncio.Task[None]] = []
        self._books: books.Books | None = None
        self._engine: Engine | None = None
        self._jobs: Work | None = None
        self._link: Link | None = None
        self._front: Front | None = None
        self._local: LocalStatus | None = None
        self._attested = False

    # ------------------------------------------------------------ asked from outside

    def status(self) -> StatusReport:
        """What the daemon does now, from memory alone."""
        return report(*self._look())

    def _look(self) -> tuple[DaemonState, Moment]:
        jobs, link, machine = self._jobs, self._link, self._machine
        credentials = self._desired.credentials
        settings = self._assignment.config
        state = DaemonState(
            version=__version__,
            pid=self._around.pid,
            phase=self.phase,
            started_at=self._started_at,
            coordinator_url=settings.coordinator.url,
            link=None if link is None else link.state,
            linked=credentials is not None,
            account_id=None if credentials is None else credentials.account_id,
            wallet_address=None if machine is None else machine.wallet_address,
            posture_setting=settings.attestation.posture,
            posture=None if machine is None else machine.posture,
            privacy=self._privacy,
            slots=self._desired.slots.snapshot(),
            jobs=JobCounts() if jobs is None else jobs.counts(),
            in_flight={} if jobs is None else jobs.in_flight(),
            books=None if self._books is None else self._books.snapshot(),
            warnings=self._warnings + self._desired.left_out,
            local=self._local,
            process_start_micros=self._around.start_micros,
            attested=self._attested,
            memory_gib=None if machine is None else machine.hardware.memory_gb,
            warm=self._desired.slots.warm(),
            load_failure=self._desired.slots.last_failure,
        )
        return state, Moment(self._around.now(), self._around.clock())

    def drain(self, deadline_s: float) -> DrainReply:
        """Begin to stop; for the local socket."""
        self.stop(deadline_s)
        return DrainReply(
            pid=self._around.pid,
            in_flight=0 if self._jobs is None else self._jobs.counts().in_flight,
        )

    async def reload_account(self) -> AccountReload:
        """Take up the token that is stored now, or do without one; for the local socket.

        What runs is finished, and credited, under the registration that it came in with.

        Raises:
            CredentialsError: The token cannot be read. The one in use stays.
        """
        if self._assignment.local is not None:
            return AccountReload()
        changed = await self._desired.read_account()
        if changed and self._link is not None:
            self._link.request_reregister("the account has changed")
        return AccountReload(
            coordinator=self._assignment.config.coordinator.url,
            linked=self._desired.credentials is not None,
            changed=changed,
            in_flight=self.counts().in_flight,
        )

    async def reload_models(self) -> ModelsReload:
        """Serve the models that are installed now; for the local socket. Cuts no stream.

        Raises:
            DarkbloomError: It does not serve yet or any more, or there is nothing to serve.
        """
        engine, jobs, tasks = self._engine, self._jobs, self._tasks
        if self.phase != "serving" or engine is None or jobs is None or tasks is None:
            raise DarkbloomError(
                f"The provider is {self.phase}",
                next_step="try again when `darkbloom status` says that it serves",
            )
        changed = await self._desired.choose_models_again()
        if changed:
            task = tasks.create_task(self._take_up_models(engine, jobs), name="models changed")
            self._background.append(task)
        return ModelsReload(
            models=tuple(slot.model.id for slot in self._desired.slots.snapshot()),
            changed=changed,
            left_out=self._desired.left_out,
        )

    def stop(self, deadline_s: float = DEFAULT_DRAIN_SECONDS) -> None:
        """Take no more work, finish what runs within `deadline_s` seconds, end `run()`.

        Asked again, the later deadline counts if it is nearer.
        """
        again = self._stopping.is_set()
        self._drain_s = deadline_s
        self._stopping.set()
        if self.phase in {"starting", "loading"}:
            self.force()  # Nothing is being served: there is nothing to wait for.
        elif again and self._front is not None and self._tasks is not None:
            self._tasks.create_task(self._front.drain(deadline_s), name="drain again")

    def force(self) -> None:
        """End `run()` now; requests that run are cut."""
        self._stopping.set()
        if self._life is not None:
            self._life.cancel()

    # ------------------------------------------------------------ the facts' source

    def models(self) -> tuple[ModelInfo, ...]:
        """The models that can answer."""
        return self._desired.slots.infos()

    def warm(self) -> tuple[str, ...]:
        """Ids of those in memory, the one used last first."""
        return self._desired.slots.warm()

    def token(self) -> Secret | None:
        """The device token, if an account is linked."""
        credentials = self._desired.credentials
        return None if credentials is None else credentials.token

    def counts(self) -> JobCounts:
        """Requests and tokens since the start."""
        return JobCounts() if self._jobs is None else self._jobs.counts()

    def engine(self) -> EngineSnapshot:
        """The engine as of its last step."""
        return EngineSnapshot() if self._engine is None else self._engine.snapshot()

    def capabilities(self) -> PrivacyCapabilities:
        """What is done for privacy, measured now."""
        if self._machine is None:
            return PrivacyCapabilities()
        self._privacy = self._rooms.privacy(self._machine.posture)
        return privacy.capabilities(self._privacy)

    # ------------------------------------------------------------ the life

    async def run(self) -> None:
        """Live until stopped.

        Raises:
            AlreadyRunningError: Another daemon holds the home.
            ModelError: No model to serve.
            DarkbloomError: Another reason why nothing can be served.
        """
        try:
            with single_instance(self._assignment.home.pid_file, self._around.pid):
                async with self._state_file():
                    await self._live_in_home()
                _log.info("provider stopped")
        except BaseExceptionGroup as group:
            raise _first_cause(group) from group

    async def _live_in_home(self) -> None:
        socket = self._assignment.home.control_socket
        try:
            async with asyncio.TaskGroup() as tasks, serving(self, socket):
                self._tasks = tasks
                if not self._stopping.is_set():
                    self._life = tasks.create_task(self._live(tasks), name="provider")
                    await asyncio.wait([self._life])
        finally:
            self._tasks = None
            self.phase = "stopped"

    async def _live(self, tasks: asyncio.TaskGroup) -> None:
        if self._assignment.local is not None:
            await self._live_locally(self._assignment.local, tasks)
            return
        # Takes a second or more, and is needed only when the link begins: models load meanwhile.
        hashing = tasks.create_task(asyncio.to_thread(self._rooms.runtime), name="runtime")
        try:
            await self._live_for_a_coordinator(hashing, tasks)
        finally:
            hashing.cancel()

    async def _live_for_a_coordinator(
        self, hashing: asyncio.Task[Hashes | None], tasks: asyncio.TaskGroup
    ) -> None:
        self._machine = await asyncio.to_thread(self._rooms.machine)
        self._tell_posture(self._machine.posture)
        await self._desired.choose_models()
        await self._desired.read_account()
        async with (
            books.opened(
                self._rooms.open_journal,
                tasks,
                provider_key=self._key_pair.public_text,
                now=self._around.now(),
            ) as self._books,
            self._loaded() as engine,
        ):
            machine = dataclasses.replace(self._machine, runtime=await hashing)
            await self._serve_network(engine, machine, self._books, tasks)

    async def _live_locally(self, endpoint: LocalEndpoint, tasks: asyncio.TaskGroup) -> None:
        with listening(endpoint.port) as listener:
            await self._desired.choose_models()
            async with self._loaded() as engine:
                tally = Tally()
                api = LocalApi(
                    self._answers(engine, tally, tasks),
                    tally,
                    endpoint.key,
                    models=self._desired.slots.servable,
                    new_id=lambda: secrets.token_hex(16),
                    tasks=tasks,
                    created=int(self._started_at.timestamp()),
                    now=self._around.now,
                )
                self._local = LocalStatus(
                    url=address(listener), key_file=str(self._assignment.home.local_key)
                )
                await self._serve(engine, api, LocalServer(api, listener), tasks)

    async def _take_up_models(self, engine: Engine, jobs: Work) -> None:
        if await self._desired.slots.unload_leaving(engine, jobs.in_flight):
            await self._relieve()
        await self._desired.slots.load_waiting(engine)
        if self._link is not None:
            self._link.request_reregister("the models have changed")

    @contextlib.asynccontextmanager
    async def _loaded(self) -> AsyncIterator[Engine]:
        self.phase = "loading"
        async with self._rooms.engine() as engine:
            self._engine = engine
            await self._desired.slots.load_all(engine)
            self._rooms.seal()
            yield engine

    async def _serve_network(
        self, engine: Engine, machine: Machine, written: books.Books, tasks: asyncio.TaskGroup
    ) -> None:
        attestation = attestation_of(machine, self._key_pair.public_text, self._started_at)
        speeds = MeasuredSpeeds(self._assignment.home.root, hardware_name(machine.hardware))
        facts = ProviderFacts(
            machine,
            self,
            version=__version__,
            public_key=self._key_pair.public_text,
            attestation=attestation,
            speeds=speeds,
            unattested=self._register_unattested,
        )
        self._attested = attestation is not None
        terms = Terms(
            key_pair=self._key_pair,
            price=self._rooms.price,
            linked=lambda: facts.linked,
            now=self._around.now,
            # A signature that nobody has the key to is worth nothing.
            enclave_key=None if attestation is None else machine.enclave_key,
            promises_kept=self._promises_kept,
        )
        tally = Tally()
        answers = self._answers(engine, tally, tasks)
        jobs = JobRunner(answers, written, terms, tally, tasks)
        link = self._link = self._rooms.link(facts, jobs, self._link_changed)
        every_s = self._assignment.config.coordinator.heartbeat_interval_secs
        presence = Presence(
            fleet=self._rooms.fleet,
            me=lambda: Listed(
                machine.hardware.memory_gb, frozenset(model.id for model in self.models())
            ),
            link=link,
            jobs=lambda: _begun(jobs.counts()),
            clock=self._around.clock,
        )
        measuring = [
            tasks.create_task(presence.keep(), name="presence"),
            tasks.create_task(
                facts.keep_fresh(self._rooms.sample, every_s, self._on_the_beat), name="metrics"
            ),
            tasks.create_task(speeds.keep(engine.snapshot), name="speeds"),
        ]
        try:
            await self._serve(engine, jobs, link, tasks)
        finally:
            for task in measuring:
                task.cancel()

    async def _serve(
        self, engine: Engine, jobs: Work, front: Front, tasks: asyncio.TaskGroup
    ) -> None:
        """Serve until told to stop; then drain, and let go of the engine."""
        self._jobs, self._front = jobs, front
        self._background = background = [
            tasks.create_task(self._unload_idle(engine, jobs), name="idle models"),
            tasks.create_task(front.run(), name="front"),
        ]
        self.phase = "serving"
        if self._on_serving is not None:
            self._on_serving(self.status())
        try:
            await self._stopping.wait()
            self.phase = "draining"
            _log.info("draining", requests=jobs.counts().in_flight, deadline_s=self._drain_s)
            jobs.close(SHUTTING_DOWN)
            await front.drain(self._drain_s)
        finally:
            jobs.close(SHUTTING_DOWN)
            jobs.abort_all(SHUTTING_DOWN)
            for task in background:
                task.cancel()
            await asyncio.wait(background)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(jobs.idle(), SETTLE_SECONDS)

    # ------------------------------------------------------------ small duties

    @contextlib.asynccontextmanager
    async def _state_file(self) -> AsyncIterator[None]:
        """Keep `daemon-state.json` while the block runs; afterwards it says that nothing does."""
        settings = self._assignment.config.coordinator
        file = StateFile(self._assignment.home.daemon_state, self._look, self.engine)
        every_s = min(STATE_FILE_SECONDS, settings.heartbeat_interval_secs / 2)
        try:
            async with asyncio.TaskGroup() as tasks:
                keeper = tasks.create_task(file.keep(every_s, self._on_the_beat), name="state file")
                try:
                    yield
                finally:
                    keeper.cancel()
        finally:
            await file.write()
            file.close()

    def _promises_kept(self) -> bool:
        """Whether what was registered of privacy holds now; if not, what does is registered."""
        if self._machine is None:
            return True
        now = self._rooms.privacy(self._machine.posture)
        broken = [name for name, was in self._privacy.items() if was.holds and not now[name].holds]
        for name in broken:
            _log.error("a privacy promise holds no longer", what=name, why=now[name].evidence)
        if broken and self._link is not None:
            self._link.request_reregister("a privacy promise holds no longer")
        return not broken

    def _register_unattested(self) -> None:
        self._attested = False
        if self._link is not None:
            # After the answer that is being made, or it would be taken for one of the new session.
            asyncio.get_running_loop().call_soon(
                self._link.request_reregister, "the attestation can be kept no longer"
            )

    async def _on_the_beat(self, period_s: float) -> None:
        await asyncio.sleep(to_the_beat(period_s, self._around.clock()))

    def _answers(self, engine: Engine, tally: Tally, tasks: asyncio.TaskGroup) -> Answers:
        offer = Offer(
            models=self._desired.slots.servable,
            prepare=functools.partial(self._desired.slots.prepare, engine),
        )
        return Answers(engine, offer, tally, tasks, self._around.now)

    async def _unload_idle(self, engine: Engine, jobs: Work) -> None:
        minutes = self._assignment.config.backend.idle_timeout_mins
        while True:
            await asyncio.sleep(IDLE_CHECK_SECONDS)
            freed = await self._desired.slots.unload_leaving(engine, jobs.in_flight)
            if minutes:
                freed += await self._desired.slots.unload_idle(engine, minutes * 60, jobs.in_flight)
            if freed:
                await self._relieve()

    async def _relieve(self) -> None:
        await asyncio.to_thread(self._rooms.relieve)
        _log.info("memory of unloaded models given back")

    def _link_changed(self, state: LinkState) -> None:
        if state.phase is link_state.Phase.REGISTERED:
            self.ready.set()

    def _warn(self, *warnings: str) -> None:
        for warning in warnings:
            _log.warning(warning)
        self._warnings += warnings

    def _tell_posture(self, posture: Posture) -> None:
        _log.info("posture", kind=self._assignment.config.attestation.posture)
        if posture.claimed:
            self._warn(
                'posture = "development": claimed without being true here: '
                + ", ".join(sorted(posture.claimed))
            )


def _begun(counts: JobCounts) -> int:
    return counts.in_flight + counts.served + counts.failed + counts.cancelled


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The exception that brought a task group down, taken out of its wrapping."""
    cause: BaseException = group
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause
