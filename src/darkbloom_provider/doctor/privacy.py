"""The privacy capabilities: the daemon's, else those of a process started to be measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Final

from darkbloom_provider.control.models import PrivacyStatus
from darkbloom_provider.doctor.finding import Finding, note, ok, unknown, wrong
from darkbloom_provider.doctor.place import Place
from darkbloom_provider.host import environment
from darkbloom_provider.host import privacy as host_privacy
from darkbloom_provider.host.command import Tools
from darkbloom_provider.host.posture import Posture

TRIAL_S: Final = 20.0
_OF_THE_MACHINE: Final = frozenset({"sip_enabled", "hypervisor_active"})
"""Flags that the posture tells already."""
_WHILE_SERVING: Final = "text_backend_inprocess"
_TRIAL: Final = "from darkbloom_provider.doctor.privacy import print_trial; print_trial()"


def capabilities(place: Place) -> Iterator[Finding]:
    """Each flag as it is, or would be, registered, with what it was read from."""
    daemon = place.daemon()
    if daemon is not None and daemon.privacy:
        yield from _judged(daemon.privacy, f"process {daemon.pid}: ")
        return
    yield from _judged(trial(place.environ), "tried in a process of its own: ")
    yield note(_WHILE_SERVING, "measured while a provider serves", "darkbloom start")


def trial(environ: Mapping[str, str]) -> dict[str, PrivacyStatus]:
    """Harden, seal and measure a process that is started as `serve` starts itself.

    Returns nothing if it could not be started or did not end in time.
    """
    kept = environment.scrubbed(environ)
    run = Tools(kept.get("PATH", ""), kept, timeout_s=TRIAL_S)
    answer = run(sys.executable, "-I", "-c", _TRIAL)
    try:
        said = json.loads(answer.out) if answer.ok else {}
    except ValueError:
        said = {}
    return {
        name: PrivacyStatus(holds=holds, evidence=evidence)
        for name, (holds, evidence) in said.items()
        if name != _WHILE_SERVING
    }


def print_trial() -> None:
    """For the process that is measured: print its checks as JSON."""
    report = host_privacy.harden()
    report.seal.close()
    measured = host_privacy.checks(report, engine_in_process=False, posture=Posture())
    sys.stdout.write(json.dumps(measured))


def _judged(flags: Mapping[str, PrivacyStatus], where: str) -> Iterator[Finding]:
    if not flags:
        yield unknown("privacy", "a process to measure could not be run")
    for name, flag in flags.items():
        if name in _OF_THE_MACHINE:
            continue
        if flag.holds:
            yield ok(name, where + flag.evidence)
        else:
            yield wrong(
                name,
                where + flag.evidence,
                "no consumer's text is sent without it; start the provider from a clean shell",
            )
