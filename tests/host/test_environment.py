from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.host.environment import (
    is_dangerous,
    is_interpreter_variable,
    is_proxy,
    isolated_restart,
    reexec_isolated,
    scrub,
    scrubbed,
    started_with,
)

KEPT = {
    "HOME": "/home/o",
    "PATH": "/bin",
    "LANG": "C",
    "LC_ALL": "C",
    "TERM": "xterm",
    "TMPDIR": "/private/t",
    "XDG_RUNTIME_DIR": "/run/user/1",
    "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/user/1/bus",
    "DARKBLOOM_HOME": "/d",
    "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
}
DROPPED = {
    "PYTHONPATH": "/evil",
    "PYTHONSTARTUP": "/evil.py",
    "LD_PRELOAD": "/evil.so",
    "DYLD_INSERT_LIBRARIES": "/evil.dylib",
    "SSLKEYLOGFILE": "/keys",
    "https_proxy": "http://evil",
    "ALL_PROXY": "http://evil",
    "AWS_SECRET_ACCESS_KEY": "unrelated",
}


def test_only_listed_variables_survive_the_restart() -> None:
    assert scrubbed({**KEPT, **DROPPED}) == KEPT


def test_a_process_that_is_not_isolated_becomes_one_that_is() -> None:
    restart = isolated_restart(
        ["serve", "--local"], {**KEPT, **DROPPED}, isolated=False, python="/venv/bin/python"
    )
    assert restart is not None
    assert restart.program == "/venv/bin/python"
    assert restart.argv == (
        "/venv/bin/python", "-I", "-m", "darkbloom_provider", "serve", "--local",
    )  # fmt: skip
    assert restart.environ == KEPT


def test_an_isolated_process_stays_as_it_is() -> None:
    assert isolated_restart(["serve"], DROPPED, isolated=True, python="python") is None


@pytest.mark.parametrize("name", [n for n in DROPPED if "PROXY" not in n.upper()][:-1])
def test_variables_that_reach_into_a_process_are_dangerous(name: str) -> None:
    assert is_dangerous(name)


def test_the_keyrings_variable_is_harmless_and_pythons_own_are_not() -> None:
    assert not is_interpreter_variable("PYTHON_KEYRING_BACKEND")
    assert not is_dangerous("PYTHON_KEYRING_BACKEND")
    assert is_interpreter_variable("PYTHONHOME")


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "all_proxy", "WSS_PROXY"])
def test_proxies_are_known_in_any_case(name: str) -> None:
    assert is_proxy(name)
    assert not is_proxy("NO_PROXY")


def test_scrubbing_a_running_process_names_what_it_took() -> None:
    environ = {**KEPT, **DROPPED}
    assert scrub(environ) == tuple(sorted(DROPPED.keys() - {"AWS_SECRET_ACCESS_KEY"}))
    assert environ == {**KEPT, "AWS_SECRET_ACCESS_KEY": "unrelated"}
    assert scrub(environ) == ()


@given(st.dictionaries(st.text(min_size=1), st.text()))
def test_nothing_dangerous_survives_either_way(environ: dict[str, str]) -> None:
    assert not [n for n in scrubbed({**environ, **DROPPED}) if is_dangerous(n) or is_proxy(n)]


def test_the_kernels_block_is_read_by_name() -> None:
    assert started_with(b"A=1\0LD_PRELOAD=/x=y\0\0") == ("A", "LD_PRELOAD")
    assert started_with(b"") == ()


def test_the_restart_really_isolates_and_keeps_the_pid(tmp_path: Path) -> None:
    # A package of the same name that would be run instead if the variable still counted.
    evil = tmp_path / "darkbloom_provider"
    evil.mkdir()
    (evil / "__init__.py").write_text("raise SystemExit('evil')")
    program = (
        "import os, sys\n"
        "from darkbloom_provider.host.privacy import reexec_isolated\n"
        f"os.environ['PYTHONPATH'] = {str(tmp_path)!r}\n"
        "print(os.getpid(), flush=True)\n"
        "reexec_isolated(['--version'], os.environ)\n"
        "print('not reached')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "darkbloom, version" in done.stdout
    assert "not reached" not in done.stdout


def test_an_isolated_interpreter_goes_on() -> None:
    program = (
        "import json, os, sys\n"
        "from darkbloom_provider.host.privacy import reexec_isolated\n"
        "reexec_isolated(['--version'], os.environ)\n"
        "print(json.dumps([sys.flags.isolated, sys.flags.no_user_site]))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert json.loads(done.stdout) == [1, 1]


def test_signals_wait_while_the_process_becomes_another_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[set[int]] = []

    def no_such_program(*_arguments: object) -> None:
        held.append(set(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
        raise FileNotFoundError

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    monkeypatch.setattr(os, "execve", no_such_program)
    with pytest.raises(FileNotFoundError):
        reexec_isolated(["--version"], {})
    assert held == [before | {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
