from __future__ import annotations

import sys
from pathlib import Path

import pytest

from darkbloom_provider.control.models import StatusReport
from darkbloom_provider.daemon.state import DaemonState, Moment, report
from darkbloom_provider.doctor import privacy
from darkbloom_provider.doctor.finding import Verdict
from darkbloom_provider.doctor.place import Place
from darkbloom_provider.host.privacy import Check
from darkbloom_provider.paths import Home
from darkbloom_provider.protocol.messages import PrivacyCapabilities
from support.daemon_parts import NOW


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(home=Home(tmp_path), environ={"PATH": "/usr/bin:/bin", "LD_PRELOAD": "/x.so"})


def serving(**flags: Check) -> StatusReport:
    return report(
        DaemonState(
            version="1",
            pid=7,
            phase="serving",
            started_at=NOW,
            coordinator_url="wss://api.example/ws/provider",
            privacy=flags,
        ),
        Moment(NOW, 0),
    )


def test_without_a_daemon_every_flag_is_tried_in_a_process_of_its_own(place: Place) -> None:
    found = {f.check: f for f in privacy.capabilities(place)}
    of_the_machine = {"sip_enabled", "hypervisor_active"}
    assert set(found) == set(PrivacyCapabilities.model_fields) - of_the_machine
    assert found["text_backend_inprocess"].verdict is Verdict.NOTE
    assert found["env_scrubbed"].verdict is Verdict.OK, "as `serve` starts itself"
    assert "process of its own" in found["env_scrubbed"].evidence


def test_a_running_daemon_is_asked_for_what_it_registered(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = serving(
        env_scrubbed=Check(False, "dangerous variables: LD_PRELOAD"),
        text_backend_inprocess=Check(True, "the engine runs in process 7"),
        sip_enabled=Check(False, "told elsewhere"),
    )
    monkeypatch.setattr(Place, "daemon", lambda _self: told)
    wrong, right = privacy.capabilities(place)
    assert (wrong.check, wrong.verdict) == ("env_scrubbed", Verdict.WRONG)
    assert wrong.evidence == "process 7: dangerous variables: LD_PRELOAD"
    assert wrong.next_step
    assert (right.check, right.verdict) == ("text_backend_inprocess", Verdict.OK)


def test_a_process_that_cannot_be_run_proves_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "python"
    for script in ("exit 1", "echo '{'", "echo nonsense"):
        broken.write_text(f"#!/bin/sh\n{script}\n")
        broken.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(broken))
        first, *_ = privacy.capabilities(place)
        assert first.verdict is Verdict.UNKNOWN


def test_a_trial_carries_the_evidence(place: Place) -> None:
    found = privacy.trial(place.environ)
    assert found
    assert all(flag.evidence for flag in found.values())
