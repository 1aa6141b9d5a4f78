"""All checks, and a report of what they found without any secret in it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from darkbloom_provider import __version__
from darkbloom_provider.doctor import machine, own, privacy
from darkbloom_provider.doctor.finding import LIMIT_S, Check, Finding, Verdict, examine
from darkbloom_provider.doctor.place import Place
from darkbloom_provider.doctor.secrets import Secrets

CHECKS: Final[dict[str, Callable[[Place], Iterable[Finding]]]] = {
    "program": machine.program,
    "settings": own.settings,
    "home": own.home,
    "identity": own.identity,
    "journal": own.journal,
    "models": own.models,
    "account": own.account,
    "coordinator": own.coordinator,
    "daemon": own.daemon,
    "service": own.service,
    "hardware": machine.hardware,
    "posture": machine.posture,
    "enclave": machine.secure_enclave,
    "privacy": privacy.capabilities,
}


def checkup(place: Place, limit_s: float = LIMIT_S) -> list[Finding]:
    """Examine everything. Takes a few seconds, at most `limit_s`."""
    checks: dict[str, Check] = {
        name: functools.partial(check, place) for name, check in CHECKS.items()
    }
    secrets = Secrets.of(place.home, place.environ)

    def shown(text: str | None) -> str | None:
        return None if text is None else secrets.removed_from(text)

    return [
        dataclasses.replace(
            finding,
            evidence=secrets.removed_from(finding.evidence),
            next_step=shown(finding.next_step),
        )
        for finding in examine(checks, limit_s)
    ]


def repair(findings: Iterable[Finding]) -> list[str]:
    """Put right what can be, and return what was done or why it could not be."""
    done = []
    for finding in findings:
        if finding.repair is None:
            continue
        try:
            finding.repair.do()
        except OSError as error:
            done.append(f"not {finding.repair.what}: {error.strerror}")
        else:
            done.append(finding.repair.what)
    return done


def document(findings: Sequence[Finding], repaired: Sequence[str] = ()) -> dict[str, object]:
    """The report for programs."""
    return {
        "version": __version__,
        "counts": {verdict.value: count for verdict, count in counts(findings).items()},
        "repaired": list(repaired),
        "findings": [
            {
                "check": finding.check,
                "verdict": finding.verdict.value,
                "evidence": finding.evidence,
                "next_step": finding.next_step,
                "can_be_fixed": finding.repair is not None,
            }
            for finding in findings
        ],
    }


def counts(findings: Sequence[Finding]) -> dict[Verdict, int]:
    """How many facts stand how."""
    return {verdict: sum(f.verdict is verdict for f in findings) for verdict in Verdict}
