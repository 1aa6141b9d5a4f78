from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from darkbloom_provider.account.credentials import Credentials
from darkbloom_provider.config import AttestationSection, BackendSection, Config, CoordinatorSection
from darkbloom_provider.control.client import DaemonClient
from darkbloom_provider.daemon import supervisor as supervisor_module
from darkbloom_provider.daemon.facts import Machine, ProviderFacts
from darkbloom_provider.daemon.jobs import JobRunner
from darkbloom_provider.daemon.local_server import listening
from darkbloom_provider.daemon.presence import Fleet
from darkbloom_provider.daemon.supervisor import (
    Assignment,
    LocalEndpoint,
    Supervisor,
    Surroundings,
)
from darkbloom_provider.earnings.journal import Journal
from darkbloom_provider.engine.requests import EngineSnapshot, LoadedModel
from darkbloom_provider.errors import (
    AlreadyRunningError,
    CredentialsError,
    DarkbloomError,
    ModelError,
)
from darkbloom_provider.host.enclave import EnclaveError
from darkbloom_provider.host.posture import Posture, development, linux_posture
from darkbloom_provider.host.privacy import Check
from darkbloom_provider.host.runtime import Hashes
from darkbloom_provider.link.state import LinkState, Phase
from darkbloom_provider.logs import Secret
from darkbloom_provider.models.store import InstalledModel
from darkbloom_provider.paths import Home
from darkbloom_provider.protocol.attestation import judge
from darkbloom_provider.protocol.boxes import Channel, KeyPair
from darkbloom_provider.protocol.messages import (
    AttestationChallenge,
    Hardware,
    InferenceRequest,
    SystemMetrics,
)
from darkbloom_provider.protocol.money import DEFAULT_PRICE, Price
from darkbloom_provider.protocol.signed import SigningKey, SoftwareKey, verify
from support.daemon_parts import MODEL, NOW, FakeEngine, FakeJournal, FakeReply, chat
from support.manual_time import settle
from support.processes import until

URL = "ws://127.0.0.1:9/ws/provider"


class FakeLink:
    """A session that registers when told to and drains when its jobs are done."""

    def __init__(self, jobs: JobRunner, on_state: Callable[[LinkState], None]) -> None:
        self.state = LinkState(url=URL)
        self.jobs = jobs
        self.drains: list[float] = []
        self.reregistered: list[str] = []
        self.started = asyncio.Event()
        self._on_state = on_state
        self._over = asyncio.Event()

    async def run(self) -> None:
        self.started.set()
        await self._over.wait()

    def register(self) -> None:
        self.state = LinkState(url=URL, phase=Phase.REGISTERED)
        self._on_state(self.state)

    def request_reregister(self, reason: str) -> None:
        self.reregistered.append(reason)

    async def drain(self, deadline_s: float) -> None:
        self.drains.append(deadline_s)
        if deadline_s:
            await self.jobs.idle()
        self._over.set()


class LoadingEngine(FakeEngine):
    """An engine that also loads, when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.held: set[str] = set()
        self.closed = False
        self.stuck = threading.Event()
        self.stuck.set()

    async def load(self, model_id: str, path: Path, *, make_room: bool = True) -> None:
        await self.may_load.wait()
        self.held.add(model_id)

    async def unload(self, model_id: str) -> None:
        self.held.discard(model_id)

    def loaded(self, model_id: str) -> LoadedModel | None:
        return self.model if model_id in self.held else None

    def snapshot(self) -> EngineSnapshot:
        self.stuck.wait(30)
        return EngineSnapshot()


@dataclass
class FakeRooms:
    """Everything around the supervisor, in memory but for the journal."""

    home: Home
    models: Sequence[str] = (MODEL,)
    posture: Posture = field(default_factory=Posture)
    engines: LoadingEngine = field(default_factory=LoadingEngine)
    steps: list[str] = field(default_factory=list)
    clock: float = 0.0
    links: list[FakeLink] = field(default_factory=list)
    facts: list[ProviderFacts] = field(default_factory=list)
    linked: Credentials | None = None
    enclave_key: SigningKey | None = None
    journal: FakeJournal | None = None
    broken: bool = False
    """Whether what was promised of privacy holds no longer."""
    locked: Exception | None = None

    def machine(self) -> Machine:
        self.steps.append("machine")
        return Machine(
            hardware=Hardware(memory_gb=16),
            posture=self.posture,
            wallet_address="0x1",
            machine_id="0" * 32,
            enclave_key=self.enclave_key,
        )

    def runtime(self) -> Hashes | None:
        return Hashes(python="1" * 64, runtime="2" * 64, files=3)

    def installed(self) -> list[InstalledModel]:
        return [InstalledModel(name, Path(name), 10, "llama", "float32") for name in self.models]

    def credentials(self) -> Credentials | None:
        if self.locked is not None:
            raise self.locked
        return self.linked

    async def fleet(self) -> Fleet:
        return None

    def sample(self) -> SystemMetrics:
        return SystemMetrics()

    def open_journal(self) -> Journal | FakeJournal:
        self.steps.append("journal")
        return self.journal or Journal.open(self.home.journal)

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[LoadingEngine]:
        self.steps.append("engine")
        try:
            yield self.engines
        finally:
            self.engines.closed = True

    def link(
        self, facts: ProviderFacts, jobs: JobRunner, on_state: Callable[[LinkState], None]
    ) -> FakeLink:
        self.steps.append("link")
        link = FakeLink(jobs, on_state)
        self.links.append(link)
        self.facts.append(facts)
        return link

    def relieve(self) -> None:
        self.steps.append("relieve")

    def price(self, model_id: str) -> Price:
        return DEFAULT_PRICE

    def seal(self) -> None:
        self.steps.append("seal")

    def privacy(self, posture: Posture) -> dict[str, Check]:
        holds = posture.sip_enabled is True and not self.broken
        return {"sip_enabled": Check(holds, "csrutil status: so it says")}


@dataclass
class Life:
    """A supervisor that runs, and what is around it."""

    supervisor: Supervisor
    rooms: FakeRooms
    task: asyncio.Task[None]

    async def serving(self) -> FakeLink:
        """Wait until it serves."""
        await until(lambda: self.rooms.links or self.task.done(), "the daemon to serve")
        if self.task.done():
            await self.task
        link = self.rooms.links[0]
        await link.started.wait()
        return link


def supervisor(
    rooms: FakeRooms, endpoint: LocalEndpoint | None = None, **config: object
) -> Supervisor:
    settings = Config(
        coordinator=CoordinatorSection(url=URL),
        **config,  # type: ignore[arg-type]  # sections by name
    )
    return Supervisor(
        Assignment(home=rooms.home, config=settings, local=endpoint),
        rooms,
        Surroundings(pid=4711, now=lambda: NOW, clock=lambda: rooms.clock),
    )


@asynccontextmanager
async def life(
    rooms: FakeRooms, endpoint: LocalEndpoint | None = None, **config: object
) -> AsyncIterator[Life]:
    made = supervisor(rooms, endpoint, **config)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(made.run())
        try:
            yield Life(made, rooms, task)
        finally:
            made.force()


@pytest.fixture
def rooms(short_home: Path) -> FakeRooms:
    return FakeRooms(Home(short_home))


def start(rooms: FakeRooms, link: FakeLink, request_id: str = "job-1") -> FakeReply:
    """Hand in a request sealed for the key that the daemon registered."""
    session, theirs = KeyPair.generate(), rooms.facts[0].registration()[0].public_key
    box = Channel(session, theirs).payload(json.dumps(chat()).encode())
    reply = FakeReply(session, theirs)
    link.jobs.start(InferenceRequest(request_id=request_id, encrypted_body=box), reply)
    return reply


# ---------------------------------------------------------------- starting


async def test_the_parts_start_in_order_and_the_seal_closes_before_the_link(
    rooms: FakeRooms,
) -> None:
    async with life(rooms) as one:
        link = await one.serving()
        assert rooms.steps == ["machine", "journal", "engine", "seal", "link"]
        assert one.supervisor.status().phase == "serving"
        assert not one.supervisor.ready.is_set()
        link.register()
        assert one.supervisor.ready.is_set()
    assert rooms.engines.closed
    assert one.supervisor.status().phase == "stopped"


async def test_the_runtime_is_hashed_beside_the_start_and_registered(rooms: FakeRooms) -> None:
    async with life(rooms) as one:
        await one.serving()
        register, _ = rooms.facts[0].registration()
    assert (register.python_hash, register.runtime_hash) == ("1" * 64, "2" * 64)


@pytest.mark.parametrize("sip", [True, None])
async def test_answers_are_signed_only_with_a_key_that_was_attested(
    rooms: FakeRooms, sip: bool | None
) -> None:
    rooms.enclave_key = key = SoftwareKey()
    rooms.posture = Posture(sip_enabled=sip, secure_boot_enabled=True)
    async with life(rooms) as one:
        link = await one.serving()
        register, attestation = rooms.facts[0].registration()
        reply = start(rooms, link)
        await reply.over.wait()
    (signature,) = reply.signatures
    if sip is None:
        assert (attestation, signature) == (None, None)
        return
    assert attestation is not None
    assert judge(attestation, register.public_key).valid
    ((_, digest),) = reply.completions
    assert digest is not None
    assert signature is not None
    assert verify(key.public_text, signature, digest.encode())


async def test_a_privacy_promise_that_is_broken_is_registered_as_broken(rooms: FakeRooms) -> None:
    rooms.posture = Posture(sip_enabled=True)
    async with life(rooms) as one:
        link = await one.serving()
        register, _ = rooms.facts[0].registration()
        assert register.privacy_capabilities is not None
        assert register.privacy_capabilities.sip_enabled
        reply = start(rooms, link)
        rooms.broken = True
        await reply.over.wait()
        assert reply.errors == [("the provider's security posture has changed", 503)]
        assert link.reregistered == ["a privacy promise holds no longer"]
        register, _ = rooms.facts[0].registration()
        assert register.privacy_capabilities is not None
        assert not register.privacy_capabilities.sip_enabled
        reply = start(rooms, link, "after it was registered")
        await reply.over.wait()
        assert reply.errors == []


async def test_an_enclave_that_signs_no_more_has_the_machine_register_without_it(
    rooms: FakeRooms,
) -> None:
    key = FadingKey()
    rooms.enclave_key = key
    rooms.posture = Posture(sip_enabled=True, secure_boot_enabled=True)
    async with life(rooms) as one:
        link = await one.serving()
        (facts,) = rooms.facts
        assert facts.registration()[1] is not None
        key.faded = True
        facts.answer(AttestationChallenge(nonce="n", timestamp="2026-01-02T03:04:05Z"))
        assert link.reregistered == []  # the answer goes first
        await settle()
        assert link.reregistered == ["the attestation can be kept no longer"]
        assert facts.registration()[1] is None


class FadingKey:
    """A key that the system takes away."""

    def __init__(self) -> None:
        self.key = SoftwareKey()
        self.public_text = self.key.public_text
        self.faded = False

    def sign(self, message: bytes) -> str:
        if self.faded:
            raise EnclaveError("The Secure Enclave does not sign")
        return self.key.sign(message)


async def test_status_can_be_asked_while_a_model_loads(rooms: FakeRooms) -> None:
    rooms.engines.may_load.clear()
    async with life(rooms) as one:
        await until(lambda: one.supervisor.phase == "loading", "the load to begin")
        await settle()
        client = DaemonClient(rooms.home.control_socket)
        told = await asyncio.to_thread(client.status)
        assert told.phase == "loading"
        assert [(m.id, m.state) for m in told.models] == [(MODEL, "loading")]
        rooms.engines.may_load.set()
        await one.serving()
        assert one.supervisor.status().models[0].state == "ready"


async def test_status_answers_within_200_ms_while_engine_journal_and_link_are_stuck(
    rooms: FakeRooms,
) -> None:
    stuck = threading.Event()
    rooms.journal = FakeJournal()
    async with life(rooms) as one:
        link = await one.serving()
        rooms.journal.stuck = stuck
        finished = start(rooms, link, "finished")
        await finished.over.wait()
        rooms.engines.gate = asyncio.Event()
        start(rooms, link, "waiting")
        rooms.engines.stuck = stuck
        client = DaemonClient(rooms.home.control_socket)
        try:
            took = []
            for _ in range(5):
                began = time.monotonic()
                told = await asyncio.to_thread(client.status)
                took.append(time.monotonic() - began)
        finally:
            stuck.set()
    assert (told.phase, told.jobs.in_flight) == ("serving", 1)
    assert (told.journal.jobs, told.journal.unwritten) == (0, 1)
    assert min(took) < 0.2  # The best of five: this machine may be busy with other tests.


async def test_a_second_daemon_for_the_home_is_refused_with_the_pid(rooms: FakeRooms) -> None:
    async with life(rooms) as one:
        await one.serving()
        second = FakeRooms(rooms.home)
        with pytest.raises(AlreadyRunningError, match="4711"):
            await supervisor(second).run()
        assert second.steps == []
        assert one.supervisor.phase == "serving"


async def test_without_models_nothing_is_served_and_nothing_is_left(rooms: FakeRooms) -> None:
    rooms.models = ()
    with pytest.raises(ModelError) as caught:
        await supervisor(rooms).run()
    assert "darkbloom models import PATH.gguf" in (caught.value.next_step or "")
    assert rooms.steps == ["machine"]
    assert not rooms.home.control_socket.exists()


async def test_the_account_and_the_key_of_this_start_are_known(rooms: FakeRooms) -> None:
    rooms.linked = Credentials(Secret("token"), "acct-1")
    async with life(rooms) as one:
        await one.serving()
        told = one.supervisor.status()
        register, _ = rooms.facts[0].registration()
    assert (told.account.linked, told.account.account_id) == (True, "acct-1")
    assert register.auth_token == "token"
    with Journal.view(rooms.home.journal) as journal:
        assert journal.provider_keys() == (register.public_key,)


async def test_every_start_has_a_key_of_its_own(rooms: FakeRooms) -> None:
    for _ in range(2):
        async with life(rooms) as one:
            await one.serving()
        rooms.links.clear()
    first, second = (facts.registration()[0].public_key for facts in rooms.facts)
    assert first != second
    with Journal.view(rooms.home.journal) as journal:
        assert set(journal.provider_keys()) == {first, second}


async def test_claims_of_the_development_posture_are_shown(rooms: FakeRooms) -> None:
    rooms.posture = development(linux_posture("", "x86_64"))
    async with life(rooms, attestation=AttestationSection(posture="development")) as one:
        await one.serving()
        told = one.supervisor.status()
    assert told.posture.kind == "development"
    assert any("sip_enabled" in warning for warning in told.warnings)


async def test_models_beyond_the_slots_are_noted(rooms: FakeRooms) -> None:
    rooms.models = ("a", "b")
    async with life(rooms, backend=BackendSection(max_model_slots=1)) as one:
        await one.serving()
        assert one.supervisor.status().warnings == ("b is not served: max_model_slots is 1",)


async def test_the_memory_of_an_idle_model_is_given_back_to_the_system(
    rooms: FakeRooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "IDLE_CHECK_SECONDS", 0)
    async with life(rooms, backend=BackendSection(idle_timeout_mins=1)) as one:
        await one.serving()
        await settle()
        assert "relieve" not in rooms.steps
        rooms.clock += 61
        await until(lambda: "relieve" in rooms.steps, "the relief")
        assert one.supervisor.status().models[0].state == "idle"


async def test_at_the_start_the_models_that_the_settings_preload_are_loaded(
    rooms: FakeRooms,
) -> None:
    rooms.models = ("a", "b")
    async with life(rooms, backend=BackendSection(preload_models=["b"])) as one:
        await one.serving()
        assert one.supervisor.warm() == ("b",)
        assert [(m.id, m.state, m.detail) for m in one.supervisor.status().models] == [
            ("a", "idle", "loaded when it is asked for"),
            ("b", "ready", None),
        ]


# ---------------------------------------------------------------- what changes meanwhile


async def test_a_login_while_it_runs_registers_again_with_the_token(rooms: FakeRooms) -> None:
    async with life(rooms) as one:
        link = await one.serving()
        client = DaemonClient(rooms.home.control_socket)
        rooms.linked = Credentials(Secret("token"), "acct-1")
        told = await asyncio.to_thread(client.reload_account)
        assert (told.coordinator, told.linked, told.changed) == (URL, True, True)
        assert link.reregistered == ["the account has changed"]
        assert rooms.facts[0].registration()[0].auth_token == "token"
        assert one.supervisor.status().account.account_id == "acct-1"


async def test_a_logout_while_it_runs_registers_again_without_a_token(rooms: FakeRooms) -> None:
    rooms.linked = Credentials(Secret("token"), "acct-1")
    async with life(rooms) as one:
        link = await one.serving()
        rooms.linked = None
        told = await one.supervisor.reload_account()
        assert (told.linked, told.changed) == (False, True)
        assert link.reregistered == ["the account has changed"]
        assert rooms.facts[0].registration()[0].auth_token is None


async def test_the_same_token_as_before_does_not_register_again(rooms: FakeRooms) -> None:
    rooms.linked = Credentials(Secret("token"), "acct-1")
    async with life(rooms) as one:
        link = await one.serving()
        assert not (await one.supervisor.reload_account()).changed
        assert link.reregistered == []


async def test_a_keyring_that_is_locked_leaves_the_token_in_use(rooms: FakeRooms) -> None:
    rooms.linked = Credentials(Secret("token"), "acct-1")
    async with life(rooms) as one:
        link = await one.serving()
        rooms.locked = CredentialsError("This machine's token cannot be read")
        client = DaemonClient(rooms.home.control_socket)
        with pytest.raises(DarkbloomError, match="cannot be read"):
            await asyncio.to_thread(client.reload_account)
        assert link.reregistered == []
        assert rooms.facts[0].registration()[0].auth_token == "token"


async def test_what_runs_at_a_login_is_journalled_under_the_registration_it_came_in_with(
    rooms: FakeRooms,
) -> None:
    gate = rooms.engines.gate = asyncio.Event()
    async with life(rooms) as one:
        link = await one.serving()
        reply = start(rooms, link)
        await settle()
        rooms.linked = Credentials(Secret("token"), "acct-1")
        told = await one.supervisor.reload_account()
        assert told.in_flight == 1
        gate.set()
        await reply.over.wait()
        rooms.facts[0].registration()
        await start(rooms, link, "job-2").over.wait()
        one.supervisor.stop(30)
        await one.task
    with Journal.view(rooms.home.journal) as journal:
        assert {row.job_id: row.linked for row in journal.recent(9)} == {
            "job-1": False,
            "job-2": True,
        }


async def test_a_model_imported_while_it_runs_is_loaded_then_registered(rooms: FakeRooms) -> None:
    async with life(rooms) as one:
        link = await one.serving()
        rooms.models = (MODEL, "another")
        rooms.engines.may_load.clear()
        client = DaemonClient(rooms.home.control_socket)
        told = await asyncio.to_thread(client.reload_models)
        assert (told.models, told.changed) == ((MODEL, "another"), True)
        await settle()
        assert link.reregistered == []
        rooms.engines.may_load.set()
        await until(lambda: link.reregistered, "the registration")
        registered = rooms.facts[0].registration()[0].models
        assert [model.id for model in registered] == [MODEL, "another"]


async def test_a_model_removed_while_it_answers_finishes_and_is_freed(rooms: FakeRooms) -> None:
    rooms.models = (MODEL, "another")
    gate = rooms.engines.gate = asyncio.Event()
    async with life(rooms) as one:
        link = await one.serving()
        reply = start(rooms, link)
        await settle()
        rooms.models = ("another",)
        await one.supervisor.reload_models()
        await until(lambda: link.reregistered, "the registration")
        assert [m.id for m in rooms.facts[0].registration()[0].models] == ["another"]
        assert MODEL in rooms.engines.held
        late = start(rooms, link, "late")
        await late.over.wait()
        assert late.errors == [("the model is not served here", 404)]
        gate.set()
        await reply.over.wait()
        assert len(reply.completions) == 1


async def test_nothing_new_on_the_disk_does_not_register_again(rooms: FakeRooms) -> None:
    async with life(rooms) as one:
        link = await one.serving()
        assert not (await one.supervisor.reload_models()).changed
        await settle()
        assert link.reregistered == []


async def test_when_every_model_is_gone_it_goes_on_with_those_in_memory(rooms: FakeRooms) -> None:
    async with life(rooms) as one:
        await one.serving()
        rooms.models = ()
        with pytest.raises(ModelError, match="No models"):
            await one.supervisor.reload_models()
        assert one.supervisor.status().models[0].state == "ready"


async def test_models_are_not_reloaded_before_it_serves(rooms: FakeRooms) -> None:
    rooms.engines.may_load.clear()
    async with life(rooms) as one:
        await until(lambda: one.supervisor.phase == "loading", "the load to begin")
        with pytest.raises(DarkbloomError, match="loading"):
            await one.supervisor.reload_models()


# ---------------------------------------------------------------- stopping


async def test_stop_lets_running_requests_finish_and_journals_them(rooms: FakeRooms) -> None:
    gate = rooms.engines.gate = asyncio.Event()
    async with life(rooms) as one:
        link = await one.serving()
        reply = start(rooms, link)
        await settle()
        one.supervisor.stop(30)
        await settle()
        assert one.supervisor.phase == "draining"
        assert not one.task.done()
        told = await asyncio.to_thread(DaemonClient(rooms.home.control_socket).status)
        assert (told.phase, told.jobs.in_flight) == ("draining", 1)
        gate.set()
        await one.task
    assert link.drains == [30]
    assert len(reply.completions) == 1
    with Journal.view(rooms.home.journal) as journal:
        assert journal.totals().jobs == 1


async def test_a_second_stop_may_bring_the_deadline_nearer(rooms: FakeRooms) -> None:
    rooms.engines.gate = asyncio.Event()
    async with life(rooms) as one:
        link = await one.serving()
        start(rooms, link)
        await settle()
        one.supervisor.stop(30)
        await settle()
        one.supervisor.stop(0)
        await settle()
        assert link.drains == [30, 0]


async def test_force_cuts_what_runs(rooms: FakeRooms) -> None:
    rooms.engines.gate = asyncio.Event()
    async with life(rooms) as one:
        link = await one.serving()
        reply = start(rooms, link)
        await settle()
        one.supervisor.stop(30)
        await settle()
        one.supervisor.force()
        await one.task
    assert reply.completions == []
    assert rooms.engines.generations[0].cancelled
    assert rooms.engines.closed


async def test_a_stop_while_loading_ends_at_once(rooms: FakeRooms) -> None:
    rooms.engines.may_load.clear()
    async with life(rooms) as one:
        await until(lambda: one.supervisor.phase == "loading", "the load to begin")
        one.supervisor.stop()
        await one.task
    assert rooms.links == []
    assert not rooms.home.control_socket.exists()


async def test_the_local_socket_can_stop_the_daemon(rooms: FakeRooms) -> None:
    async with life(rooms) as one:
        link = await one.serving()
        client = DaemonClient(rooms.home.control_socket)
        answer = await asyncio.to_thread(client.drain, 7)
        await one.task
    assert answer.pid == 4711
    assert link.drains == [7]


# ---------------------------------------------------------------- without a coordinator


async def test_a_local_endpoint_needs_neither_coordinator_nor_journal(rooms: FakeRooms) -> None:
    endpoint = LocalEndpoint(0, Secret("key"))
    async with life(rooms, endpoint=endpoint) as one:
        client = DaemonClient(rooms.home.control_socket)
        await until(lambda: one.supervisor.phase == "serving", "the endpoint")
        told = await asyncio.to_thread(client.status)
        assert told.local is not None
        assert told.local.key_file == str(rooms.home.local_key)
        headers = {"Authorization": "Bearer key"}
        async with httpx.AsyncClient(base_url=told.local.url, headers=headers) as http:
            answer = await http.post("/v1/chat/completions", json=chat())
        assert answer.json()["choices"][0]["message"]["content"] == "Hello"
        assert one.supervisor.status().jobs.served == 1
        await asyncio.to_thread(client.drain, 5)
        await one.task
    assert rooms.steps == ["engine", "seal"]
    assert rooms.engines.closed
    assert not rooms.home.journal.exists()


async def test_a_taken_port_is_told_before_anything_is_loaded(rooms: FakeRooms) -> None:
    with listening(0) as taken:
        endpoint = LocalEndpoint(taken.getsockname()[1], Secret("key"))
        with pytest.raises(AlreadyRunningError, match="Port"):
            await supervisor(rooms, endpoint=endpoint).run()
    assert rooms.steps == []
    assert not rooms.home.control_socket.exists()


# ---------------------------------------------------------------- daemon-state.json


async def test_the_state_file_follows_the_daemon_from_its_start_to_its_end(
    rooms: FakeRooms,
) -> None:
    path = rooms.home.daemon_state

    def told() -> dict[str, Any]:
        content = json.loads(path.read_bytes())
        assert isinstance(content, dict)
        return content

    rooms.engines.may_load.clear()
    async with life(rooms) as one:
        await until(path.exists, "the state file")
        assert told()["warm_models"] == []
        rooms.engines.may_load.set()
        link = await one.serving()
        link.register()
        rooms.engines.gate = asyncio.Event()
        reply = start(rooms, link)
        await until(lambda: told()["inference_active"], "a request in the state file")
        assert told()["pid"] == 4711
        assert told()["current_model"] == MODEL
        assert told()["capacity"]["total_memory_gb"] == 16
        rooms.engines.gate.set()
        await reply.over.wait()
        await until(lambda: told()["stats"]["requests_served"] == 1, "the request to be counted")
    last = told()
    assert last["trust"]["status"] == "offline"
    assert (last["current_model"], last["warm_models"]) == (None, [])
    assert last["stats"] == {"requests_served": 1, "tokens_generated": 2, "usage_gaps": 0}


async def test_a_state_file_that_cannot_be_written_ends_nothing(rooms: FakeRooms) -> None:
    rooms.home.daemon_state.mkdir()
    async with life(rooms) as one:
        link = await one.serving()
        reply = start(rooms, link)
        await reply.over.wait()
        assert len(reply.completions) == 1
    assert rooms.home.daemon_state.is_dir()


async def test_a_model_that_does_not_load_is_told_in_the_state_file(rooms: FakeRooms) -> None:
    async def fail(model_id: str, path: Path, *, make_room: bool = True) -> None:
        raise ModelError("Its weights are damaged")

    rooms.engines.load = fail  # type: ignore[method-assign]  # one engine's failure
    with pytest.raises(ModelError):
        await supervisor(rooms).run()
    failure = json.loads(rooms.home.daemon_state.read_bytes())["last_model_load_error"]
    assert (failure["model"], failure["message"]) == (MODEL, "Its weights are damaged")
