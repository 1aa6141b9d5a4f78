"""The real parts together: engine, link, journal, control socket; the coordinator is scripted."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from darkbloom_provider.config import (
    AttestationSection,
    BackendSection,
    Config,
    CoordinatorSection,
    ProviderSection,
)
from darkbloom_provider.daemon.provider import (
    STOP_SIGNALS,
    engine_settings,
    running,
    signals_owned,
)
from darkbloom_provider.daemon.supervisor import Assignment, Supervisor
from darkbloom_provider.earnings.journal import Journal
from darkbloom_provider.errors import ConfigError, ModelError
from darkbloom_provider.paths import Home
from darkbloom_provider.protocol.boxes import Channel, KeyPair
from darkbloom_provider.protocol.messages import (
    Cancel,
    InferenceComplete,
    InferenceError,
    InferenceRequest,
    InferenceResponseChunk,
    Register,
)
from support import processes
from support.daemon_parts import MODEL, chat
from support.scripted_coordinator import Peer, ScriptedCoordinator, scripted_coordinator

GREEDY = {"temperature": 0, "stream": True}


def home_with(model: Path, root: Path) -> Home:
    """A home in which the tiny model is installed."""
    home = Home(root)
    home.models.mkdir(parents=True)
    (home.models / MODEL).symlink_to(model, target_is_directory=True)
    return home


def assignment(home: Home, url: str) -> Assignment:
    config = Config(
        coordinator=CoordinatorSection(url=url),
        attestation=AttestationSection(posture="development"),
    )
    return Assignment(home=home, config=config)


class Customer:
    """Sends requests through a scripted coordinator."""

    def __init__(self, peer: Peer, register: Register) -> None:
        self.peer = peer
        self._session = KeyPair.generate()
        self._channel = Channel(self._session, register.public_key)

    async def ask(self, request_id: str, **changes: object) -> None:
        """Send a chat request."""
        payload = self._channel.payload(json.dumps(chat(**changes)).encode())
        await self.peer.say(InferenceRequest(request_id=request_id, encrypted_body=payload))

    def read(self, chunk: InferenceResponseChunk) -> str:
        """What is in a chunk."""
        assert chunk.encrypted_data is not None
        return self._channel.open(chunk.encrypted_data.ciphertext).decode()


@asynccontextmanager
async def registered(
    coordinator: ScriptedCoordinator, home: Home
) -> AsyncIterator[tuple[Supervisor, Customer]]:
    """A provider that the coordinator has taken."""
    async with running(assignment(home, coordinator.url), {"PATH": "/usr/bin"}, drain_s=5) as one:
        peer = await coordinator.next_peer()
        register = await peer.expect(Register)
        await peer.accept()
        await one.ready.wait()
        yield one, Customer(peer, register)


async def test_a_request_goes_all_the_way_through_and_is_journalled_once(
    short_home: Path, tiny_model: Path
) -> None:
    home = home_with(tiny_model, short_home)
    async with scripted_coordinator() as coordinator, registered(coordinator, home) as (one, who):
        await who.ask("job-1", max_tokens=6, **GREEDY)
        complete = await who.peer.expect(InferenceComplete)
        await processes.until(lambda: one.status().journal.jobs == 1, "the journal")
        status = one.status()
    chunks = [m for m in who.peer.heard if isinstance(m, InferenceResponseChunk)]
    texts = [who.read(chunk) for chunk in chunks]
    assert json.loads(texts[-1].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert complete.usage.completion_tokens == 6
    assert chunks[-1].usage == complete.usage
    assert (status.jobs.served, status.jobs.completion_tokens) == (1, 6)
    assert (status.coordinator.phase, status.models[0].state) == ("registered", "ready")
    with Journal.view(home.journal) as journal:
        (record,) = journal.recent(5)
    assert (record.job_id, record.model, record.completion_tokens) == ("job-1", MODEL, 6)


async def test_a_cancelled_request_is_followed_by_silence(
    short_home: Path, tiny_model: Path
) -> None:
    home = home_with(tiny_model, short_home)
    async with scripted_coordinator() as coordinator, registered(coordinator, home) as (one, who):
        await who.ask("job-1", max_tokens=900, **GREEDY)
        await who.peer.expect(InferenceResponseChunk)
        await who.peer.say(Cancel(request_id="job-1"))
        await processes.until(lambda: one.status().jobs.cancelled == 1, "the cancellation")
        await who.ask("job-2", max_tokens=2, **GREEDY)
        await who.peer.expect(InferenceComplete)
        before = len(who.peer.heard)
    last = [m for m in who.peer.heard[:before] if getattr(m, "request_id", None) == "job-1"]
    assert not any(isinstance(m, InferenceComplete | InferenceError) for m in last)
    with Journal.view(home.journal) as journal:
        assert [record.job_id for record in journal.recent(5)] == ["job-2"]


async def test_prompts_too_long_for_the_model_are_refused_and_the_daemon_lives(
    short_home: Path, tiny_model: Path
) -> None:
    home = home_with(tiny_model, short_home)
    async with scripted_coordinator() as coordinator, registered(coordinator, home) as (_, who):
        await who.ask("job-1", messages=[{"role": "user", "content": "z" * 5000}], **GREEDY)
        error = await who.peer.expect(InferenceError)
        await who.ask("job-2", max_tokens=2, **GREEDY)
        await who.peer.expect(InferenceComplete)
    assert error.status_code in {400, 413}
    assert "zz" not in error.error


async def test_a_home_without_models_fails_with_the_command_to_type(short_home: Path) -> None:
    with pytest.raises(ModelError) as caught:
        async with running(assignment(Home(short_home), "ws://127.0.0.1:9"), {}):
            await asyncio.Event().wait()
    assert "darkbloom models import PATH.gguf" in (caught.value.next_step or "")


# ---------------------------------------------------------------- the process


async def test_sigterm_lets_a_stream_finish_and_exits_0(short_home: Path, tiny_model: Path) -> None:
    home = home_with(tiny_model, short_home)
    async with scripted_coordinator() as coordinator:
        with processes.running(
            "serve", "serve", "--coordinator", coordinator.url, home=home.root
        ) as program:
            peer = await coordinator.next_peer()
            who = Customer(peer, await peer.expect(Register))
            await peer.accept()
            await who.ask("job-1", max_tokens=900, **GREEDY)
            await peer.expect(InferenceResponseChunk)
            program.signal(signal.SIGTERM)
            complete = await peer.expect(InferenceComplete)
            assert await peer.hear_to_the_end() == 1000
            assert await program.ended() == 0
    assert complete.request_id == "job-1"
    assert complete.usage.completion_tokens == 900
    assert "draining" in program.output
    assert not home.control_socket.exists()
    with Journal.view(home.journal) as journal:
        assert [record.job_id for record in journal.recent(5)] == ["job-1"]


@pytest.fixture
def signals_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Stopped:
    """Stands for a supervisor: what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def stop(self, deadline_s: float) -> None:
        self.told.append(f"stop in {deadline_s:g} s")

    def force(self) -> None:
        self.told.append("force")


async def raised(*numbers: signal.Signals) -> None:
    for number in numbers:
        signal.raise_signal(number)
        await asyncio.sleep(0.01)  # The loop hears of a signal through a socket of its own.


@pytest.mark.usefixtures("signals_restored")
async def test_after_the_first_stop_signal_every_further_one_ends_it_at_once() -> None:
    supervisor = Stopped()
    with signals_owned(cast("Supervisor", supervisor), 7):
        await raised(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    assert supervisor.told == ["stop in 7 s", "force", "force"]
    assert {signal.getsignal(number) for number in STOP_SIGNALS} == {signal.SIG_DFL}


@pytest.mark.usefixtures("signals_restored")
async def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    supervisor = Stopped()
    with signals_owned(cast("Supervisor", supervisor), 7):
        await raised(signal.SIGHUP)
        assert supervisor.told == []
        await raised(signal.SIGTERM)
    assert supervisor.told == ["stop in 7 s"]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


async def test_a_killed_daemon_leaves_nothing_that_keeps_the_next_from_starting(
    short_home: Path, tiny_model: Path
) -> None:
    home = home_with(tiny_model, short_home)
    async with scripted_coordinator() as coordinator:
        for number in range(2):
            with processes.running(
                "serve", "serve", "--coordinator", coordinator.url, home=home.root
            ) as program:
                peer = await coordinator.next_peer()
                register = await peer.expect(Register)
                assert home.control_socket.exists()
                if number == 0:
                    program.kill()
    assert [model.id for model in register.models] == [MODEL]
    capabilities = register.privacy_capabilities
    assert capabilities is not None
    assert capabilities.text_backend_inprocess
    assert capabilities.python_runtime_locked
    assert capabilities.dangerous_modules_blocked
    assert capabilities.anti_debug_enabled
    assert capabilities.core_dumps_disabled
    assert capabilities.env_scrubbed


@pytest.mark.parametrize(
    ("section", "ceiling_gb"),
    [
        (ProviderSection(), 60),
        (ProviderSection(memory_reserve_gb=0), 64),
        (ProviderSection(memory_limit_gb=20), 20),
        (ProviderSection(memory_limit_gb=500), 64),
    ],
)
def test_the_owners_settings_are_the_engines_ceiling(
    section: ProviderSection, ceiling_gb: float
) -> None:
    settings = engine_settings(Config(provider=section), 64 * 10**9)
    assert settings.memory_ceiling_gb == ceiling_gb


def test_a_reserve_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves no memory"):
        engine_settings(Config(provider=ProviderSection(memory_reserve_gb=70)), 64 * 10**9)


def test_without_continuous_batching_requests_run_one_by_one() -> None:
    config = Config(backend=BackendSection(continuous_batching=False))
    assert engine_settings(config, 64 * 10**9).max_running == 1


@pytest.mark.parametrize("budget_gb", [0, 0.5, 12])
def test_the_prompt_cache_has_the_budget_that_the_owner_set(budget_gb: float) -> None:
    config = Config(backend=BackendSection(prompt_cache_gb=budget_gb))
    assert engine_settings(config, 64 * 10**9).prompt_cache_gb == budget_gb
