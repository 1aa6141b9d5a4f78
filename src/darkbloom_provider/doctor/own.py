"""What belongs to the provider: settings, home, journal, models, account, daemon, service."""

from __future__ import annotations

import asyncio
import functools
import os
import shlex
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from darkbloom_provider import paths
from darkbloom_provider.account.client import CoordinatorClient
from darkbloom_provider.account.credentials import CredentialStore
from darkbloom_provider.account.refusals import CoordinatorUnreachableError
from darkbloom_provider.control import sockets
from darkbloom_provider.control.client import DaemonClient
from darkbloom_provider.doctor.finding import Finding, Repair, Verdict, note, ok, unknown, wrong
from darkbloom_provider.doctor.place import DAEMON_S, TOOL_S, Place
from darkbloom_provider.earnings.journal import Journal
from darkbloom_provider.errors import AlreadyRunningError, UnreachableError
from darkbloom_provider.host import identity as host_identity
from darkbloom_provider.host.managers import service_manager
from darkbloom_provider.host.service import daemon_pid
from darkbloom_provider.models import store

LEAST_FREE_BYTES: Final = 10**9
SETTINGS_UNREADABLE: Final = "the settings that name the coordinator cannot be read"
NOT_READ: Final = "not read while others can read it: reading would close it, and this only looks"


def settings(place: Place) -> Iterator[Finding]:
    """The settings file, and what it says of the attestation."""
    found = place.settings()
    file = next((path for path in place.settings_files if path.exists()), None)
    yield ok("settings", f"{file} is right" if file else "no file, so the defaults hold")
    if found.attestation.posture == "development":
        yield note(
            "settings",
            'posture = "development": what is not true here is claimed, to loopback only',
            'set [attestation] posture = "measured" for any real coordinator',
        )


def home(place: Place) -> Iterator[Finding]:
    """The home directory: there, private, writable, with room."""
    root = place.home.root
    if not root.exists():
        yield note("home", f"{root} does not exist yet; the first command that needs it makes it")
    elif not root.is_dir():
        yield wrong(
            "home",
            f"{root} is not a directory",
            f"move it away: mv {_quoted(root)} {_quoted(root)}.old",
        )
        return
    elif not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        yield wrong(
            "home", f"{root} cannot be written", f"make it yours: chmod u+rwx {_quoted(root)}"
        )
        return
    elif _is_open(root):
        private = Repair(f"closed {root} to others", lambda: root.chmod(paths.PRIVATE_DIRECTORY))
        # What is secret in there is closed by itself: see below.
        open_to_all = f"others can look into {root}"
        yield Finding("home", Verdict.NOTE, open_to_all, f"chmod 700 {_quoted(root)}", private)
    else:
        yield ok("home", f"{root}, only for you")
    yield from _secret_files(place)
    there = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(there).free
    room = f"{free / 1e9:.1f} GB free on the disk of {root}"
    if free < LEAST_FREE_BYTES:
        yield wrong("disk", room, "make room: the journal of your earnings needs to be written")
    else:
        yield ok("disk", room)


def _secret_files(place: Place) -> Iterator[Finding]:
    secret = (
        place.home.credentials,
        place.home.wallet_key,
        place.home.machine_id,
        place.home.local_key,
    )
    there = [path for path in secret if path.is_file()]
    for path in there:
        if _is_open(path):
            close = functools.partial(path.chmod, paths.PRIVATE_FILE)
            private = Repair(f"closed {path} to others", close)
            yield wrong("secrets", f"others can read {path}", f"chmod 600 {_quoted(path)}", private)
    if there and not any(_is_open(path) for path in there):
        yield ok("secrets", f"{', '.join(path.name for path in there)}: only for you")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _is_open(path: Path) -> bool:
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


def identity(place: Place) -> Iterator[Finding]:
    """Who this machine is to the network. Nothing is made here."""
    if not (place.home.wallet_key.exists() and place.home.machine_id.exists()):
        yield note("identity", "none yet; the first `darkbloom serve` makes it")
        return
    if _is_open(place.home.wallet_key) or _is_open(place.home.machine_id):
        yield unknown("identity", NOT_READ)
        return
    host_identity.machine_id(place.home)
    yield ok("identity", f"unlinked earnings go to {host_identity.wallet_address(place.home)}")


def journal(place: Place) -> Iterator[Finding]:
    """The local record of completed jobs."""
    if not place.home.journal.exists():
        yield note("journal", "no job was done on this machine yet")
        return
    with Journal.view(place.home.journal) as view:
        yield ok("journal", f"{place.home.journal} holds {view.totals().jobs} jobs")


def models(place: Place) -> Iterator[Finding]:
    """The models on this machine."""
    found = store.survey(place.home.models, store.hub_cache(place.environ))
    if found.installed:
        names = ", ".join(model.id for model in found.installed[:5])
        more = f" and {len(found.installed) - 5} more" if len(found.installed) > 5 else ""  # noqa: PLR2004 - as many as fit a line
        yield ok("models", f"{names}{more}")
    else:
        yield wrong("models", "no model is on this machine", "darkbloom models import PATH.gguf")
    for broken in found.incomplete:
        yield note("models", f"{broken.id} is not whole and not served: {broken.why}")


def account(place: Place) -> Iterator[Finding]:
    """Whom the earnings go to."""
    base_url = place.base_url()
    if base_url is None:
        yield unknown("account", SETTINGS_UNREADABLE)
        return
    if place.home.credentials.exists() and _is_open(place.home.credentials):
        yield unknown("account", NOT_READ)
        return
    linked = CredentialStore(place.home, place.environ).load(base_url)
    if linked is None:
        yield note(
            "account",
            "not linked: earnings are kept under this machine's address and cannot be withdrawn",
            "darkbloom login",
        )
    else:
        whose = f" to {linked.account_id}" if linked.account_id else ""
        yield ok("account", f"linked{whose}; the token is in {linked.kept_in}")


def coordinator(place: Place) -> Iterator[Finding]:
    """Whether the coordinator answers. Nothing secret is sent."""
    base_url = place.base_url()
    if base_url is None:
        yield unknown("coordinator", SETTINGS_UNREADABLE)
        return

    async def ask() -> str:
        async with CoordinatorClient(base_url) as client:
            health = await client.health()
        providers = "" if health.providers is None else f", {health.providers} providers connected"
        return f"{client.base_url} answers{providers}"

    try:
        yield ok("coordinator", asyncio.run(ask()))
    except CoordinatorUnreachableError as error:
        yield wrong(
            "coordinator",
            str(error),
            error.next_step or "see whether this machine is online; the daemon tries on by itself",
        )


def daemon(place: Place) -> Iterator[Finding]:
    """The running provider, and what it says is wrong."""
    client = DaemonClient(place.home.control_socket, timeout=DAEMON_S)
    try:
        report = client.status()
    except UnreachableError as error:
        yield from _no_daemon(place, error)
        return
    yield ok("daemon", f"{report.phase}, process {report.pid}, version {report.version}")
    if client.skew is not None:
        yield wrong("daemon", client.skew, "darkbloom stop, then darkbloom start")
    problem = report.coordinator.last_problem
    if report.local is None and problem is not None:
        why = f": {problem.why}" if problem.why else ""
        yield wrong("session", problem.what + why, problem.next_step)
    elif report.local is None:
        yield ok("session", f"{report.coordinator.phase} with {report.coordinator.url}")
    for model in report.models:
        if model.state == "failed":
            yield wrong("daemon", f"{model.id} failed: {model.detail}", "darkbloom models list")
    for warning in report.warnings:
        yield note("daemon", warning)


def _no_daemon(place: Place, error: UnreachableError) -> Iterator[Finding]:
    socket = place.home.control_socket
    pid = daemon_pid(place.home.pid_file)
    if pid is not None:
        yield wrong("daemon", f"process {pid} holds this home and does not answer", error.next_step)
        return
    yield note("daemon", "no provider is running", error.next_step)
    if socket.is_socket():
        # The next provider would remove it as well.
        dead = Repair(f"removed {socket}", lambda: sockets.remove_if_dead(socket))
        left = f"{socket} was left behind by a provider that died"
        yield Finding("daemon", Verdict.NOTE, left, repair=dead)
    elif socket.exists():
        raise AlreadyRunningError(
            f"{socket} is in the way", next_step=f"move {_quoted(socket)} away"
        )


def service(place: Place) -> Iterator[Finding]:
    """Whether the provider comes back by itself after a restart of the machine."""
    manager = service_manager(place.environ, platform=place.platform, timeout_s=TOOL_S)
    status = manager.status()
    if not status.installed:
        yield note("service", "not installed: it does not start by itself", "darkbloom start")
    elif status.running:
        yield ok("service", f"{manager.name} runs it (pid {status.pid}) and at every login")
    else:
        ended = "" if status.last_exit_code is None else f", last exit {status.last_exit_code}"
        yield wrong(
            "service",
            f"{manager.file} is installed and does not run{ended}",
            f"darkbloom start, then look at {place.home.log_file}",
        )
