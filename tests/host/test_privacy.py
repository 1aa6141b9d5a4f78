"""The test process itself is never hardened: everything here happens in processes of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.host import privacy, seal
from darkbloom_provider.host.posture import Posture
from darkbloom_provider.protocol.messages import PrivacyCapabilities

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's prctl and /proc")

PREAMBLE = """
import ctypes, importlib, json, os, resource, sys
from darkbloom_provider.host import privacy, seal
from darkbloom_provider.host.posture import Posture
# Where the surroundings forbid core dumps already, "disabled" would prove nothing.
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
posture = Posture(sip_enabled=True, hypervisor_active=False)
def measured(report, engine=True):
    found = privacy.checks(report, engine_in_process=engine, posture=posture)
    return {name: check.holds for name, check in found.items()}
def refused(action):
    try:
        action()
    except (seal.SealedError, seal.ModuleRefusedError) as error:
        return type(error).__name__
    except Exception as error:
        return repr(error)
    return "allowed"
"""


def run(program: str, environ: Mapping[str, str] | None = None, *, isolated: bool = True) -> Any:
    flags = ["-I"] if isolated else []
    done = subprocess.run(
        [sys.executable, *flags, "-c", PREAMBLE + program],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **(environ or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SEAL_NOW = "[r := privacy.harden(), r.seal.close()]"
SEALED = "report = privacy.harden(); report.seal.close()\n"
ALL_TRUE = {
    "text_backend_inprocess": True,
    "text_proxy_disabled": True,
    "python_runtime_locked": True,
    "dangerous_modules_blocked": True,
    "sip_enabled": True,
    "anti_debug_enabled": True,
    "core_dumps_disabled": True,
    "env_scrubbed": True,
    "hypervisor_active": False,
}


def test_a_hardened_and_sealed_process_holds_every_promise() -> None:
    assert run(SEALED + "print(json.dumps(measured(report)))") == ALL_TRUE


def test_every_flag_of_the_wire_is_measured() -> None:
    assert set(ALL_TRUE) == set(PrivacyCapabilities.model_fields)
    found = run(
        SEALED + "flags = privacy.capabilities(privacy.checks(\n"
        "    report, engine_in_process=True, posture=posture))\n"
        "print(flags.model_dump_json())"
    )
    assert found == ALL_TRUE


def test_a_process_that_never_hardened_claims_nothing_it_did_not_do() -> None:
    found = run(
        "print(json.dumps(measured(None, engine=False)))",
        {"LD_BIND_NOW": "1", "https_proxy": "http://127.0.0.1:1"},
        isolated=False,
    )
    assert not any(found[name] for name in found if name not in {"sip_enabled", "env_scrubbed"}), (
        found
    )
    assert found["env_scrubbed"] is (sys.platform == "darwin"), "macOS strips DYLD_* by itself"


def test_importing_or_asking_hardens_nothing() -> None:
    limits = run(
        "measured(None); import pdb\n"
        "sys.settrace(lambda *a: None); sys.settrace(None)\n"
        "print(json.dumps(resource.getrlimit(resource.RLIMIT_CORE)))"
    )
    assert limits[1] == resource.getrlimit(resource.RLIMIT_CORE)[1]


def test_core_dumps_are_off_for_good() -> None:
    found = run(SEALED + "print(json.dumps(resource.getrlimit(resource.RLIMIT_CORE)))")
    assert found == [0, 0]


def test_a_raised_limit_shows_at_the_next_look() -> None:
    found = run(
        "report = privacy.harden()\n"
        "resource.getrlimit = lambda which: (0, 1)\n"
        "print(json.dumps(measured(report)))"
    )
    assert found["core_dumps_disabled"] is False


@linux_only
def test_the_kernel_refuses_debuggers() -> None:
    found = run(
        "prctl = ctypes.CDLL(None).prctl\n"
        "seen = [prctl(3, 0, 0, 0, 0)]\n"
        + SEALED
        + "seen += [prctl(3, 0, 0, 0, 0), measured(report)['anti_debug_enabled']]\n"
        "seen += [prctl(4, 1, 0, 0, 0), measured(report)['anti_debug_enabled']]\n"
        "print(json.dumps(seen))"
    )
    assert found == [1, 0, True, 0, False], "made dumpable again, the flag must fall"


ATTACK = """
import signal
def attacked(hardened):
    "Another process of the same user tries: attach, read the memory."
    ready, tell = os.pipe()
    victim = os.fork()
    if victim == 0:
        if os.getuid() == 0:
            os.setgid(65534); os.setuid(65534)
        libc = ctypes.CDLL(None)
        libc.prctl(4, 1, 0, 0, 0)  # changing the user has made it undumpable
        if hardened:
            privacy.harden()
        os.write(tell, b"!")
        signal.pause()
        os._exit(0)
    os.read(ready, 1)
    attacker = os.fork()
    if attacker == 0:
        if os.getuid() == 0:
            os.setgid(65534); os.setuid(65534)
        def reads():
            open(f"/proc/{victim}/mem", "rb").close()
        outcome = [ctypes.CDLL(None).ptrace(16, victim, None, None) == 0, True]
        try:
            reads()
        except OSError:
            outcome[1] = False
        os._exit(outcome[0] * 2 + outcome[1])
    code = os.waitstatus_to_exitcode(os.waitpid(attacker, 0)[1])
    os.kill(victim, signal.SIGKILL); os.waitpid(victim, 0)
    return [bool(code & 2), bool(code & 1)]
print(json.dumps([attacked(False), attacked(True)]))
"""


@linux_only
def test_another_process_of_the_same_user_can_neither_attach_nor_read() -> None:
    open_one, hardened_one = run(ATTACK)
    assert hardened_one == [False, False]
    if open_one != [True, True]:
        pytest.skip("this system lets nobody attach, hardened or not")


@linux_only
def test_a_debugger_that_is_attached_shows() -> None:
    found = run(
        "tracing = ctypes.CDLL(None).ptrace(0, 0, None, None)  # PTRACE_TRACEME\n"
        + SEALED
        + "print(json.dumps([tracing, measured(report)['anti_debug_enabled']]))"
    )
    if found[0] != 0:
        pytest.skip("this system lets nobody trace")
    assert found[1] is False


@linux_only
def test_a_hardened_process_that_crashes_leaves_no_core(tmp_path: Path) -> None:
    dumped = run(
        f"os.chdir({str(tmp_path)!r})\n"
        "def crashed(hardened):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        if hardened: privacy.harden()\n"
        "        os.kill(os.getpid(), 11)\n"
        "    return os.WCOREDUMP(os.waitpid(child, 0)[1])\n"
        "print(json.dumps([crashed(False), crashed(True)]))"
    )
    assert dumped[1] is False
    if not dumped[0]:
        pytest.skip("this system dumps no cores, hardened or not")


def test_the_seal_refuses_tracing_and_native_code_only_once_closed() -> None:
    found = run(
        "report = privacy.harden()\n"
        "actions = {'settrace': lambda: sys.settrace(None),\n"
        "  'setprofile': lambda: sys.setprofile(None),\n"
        "  'dlopen': lambda: ctypes.CDLL(None),\n"
        "  'pdb': lambda: importlib.import_module('pdb'),\n"
        "  'code': lambda: __import__('code'),\n"
        "  'debugpy.server': lambda: importlib.import_module('debugpy.server'),\n"
        "  'breakpoint': lambda: breakpoint(),\n"
        "  'json.tool': lambda: importlib.import_module('json.tool')}\n"
        "before = {n: refused(a) for n, a in actions.items() if n in ('settrace', 'dlopen')}\n"
        "report.seal.close()\n"
        "print(json.dumps([before, {n: refused(a) for n, a in actions.items()}]))"
    )
    before, after = found
    assert set(before.values()) == {"allowed"}
    assert after == {
        "settrace": "SealedError",
        "setprofile": "SealedError",
        "dlopen": "SealedError",
        "pdb": "ModuleRefusedError",
        "code": "ModuleRefusedError",
        "debugpy.server": "ModuleRefusedError",
        "breakpoint": "SealedError",
        "json.tool": "allowed",
    }


def test_code_from_outside_the_runtime_is_refused_on_every_road(tmp_path: Path) -> None:
    (tmp_path / "outsider.py").write_text("ran = True\n")
    found = run(
        "report = privacy.harden()\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import importlib.util, runpy\n"
        f"path = {str(tmp_path / 'outsider.py')!r}\n"
        "def around_the_finders():\n"
        "    spec = importlib.util.spec_from_file_location('o', path)\n"
        "    spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "def linked_in():\n"
        "    where = os.path.dirname(privacy.__file__) + '/../linked_in_by_a_test.py'\n"
        "    exec(compile('', where, 'exec'), {})\n"
        "actions = {'import': lambda: importlib.import_module('outsider'),\n"
        "  'spec': around_the_finders, 'runpy': lambda: runpy.run_path(path),\n"
        "  'inside': linked_in}\n"
        "import outsider; del sys.modules['outsider']\n"
        "report.seal.close()\n"
        "print(json.dumps({n: refused(a) for n, a in actions.items()}))"
    )
    assert found == {
        "import": "ModuleRefusedError",
        "spec": "ModuleRefusedError",
        "runpy": "ModuleRefusedError",
        "inside": "allowed",
    }


def test_a_native_module_from_outside_is_refused_and_one_of_the_runtime_loads(
    tmp_path: Path,
) -> None:
    # A copy of a module that every interpreter has as a file of its own.
    spec = importlib.util.find_spec("_ctypes_test") or importlib.util.find_spec("_bisect")
    if spec is None or spec.origin is None or not spec.origin.endswith(".so"):
        pytest.skip("this interpreter has no native module as a file")
    copy = shutil.copy(spec.origin, tmp_path)
    found = run(
        "import importlib.machinery as machinery, importlib.util\n"
        "def load(path):\n"
        f"    loader = machinery.ExtensionFileLoader({spec.name!r}, path)\n"
        "    importlib.util.module_from_spec(\n"
        f"        machinery.ModuleSpec({spec.name!r}, loader, origin=path))\n"
        + SEALED
        + f"print(json.dumps([refused(lambda: load(p)) for p in ({str(copy)!r}, {spec.origin!r})]))"
    )
    assert found == ["ModuleRefusedError", "allowed"]


def test_code_made_in_memory_still_runs_after_the_seal() -> None:
    assert run(
        SEALED + "import collections, dataclasses\n"
        "point = collections.namedtuple('P', 'x')(1)\n"
        "made = dataclasses.make_dataclass('D', ['x'])(2)\n"
        "print(json.dumps([point.x, made.x]))"
    ) == [1, 2]


def test_a_seal_that_lets_foreign_code_in_shows() -> None:
    for name in ("foreign_native_code_is_refused", "foreign_modules_are_refused"):
        found = run(f"print(json.dumps([seal.{name}(), ({SEAL_NOW}, seal.{name}())[1]]))")
        assert found == [False, True]


def test_libraries_import_their_parts_after_the_seal() -> None:
    assert run(
        SEALED
        + "import asyncio, httpx, uvicorn, websockets.asyncio.client, keyring.backends.fail\n"
        "import rich.console, rich.pretty, rich.traceback, sqlalchemy, starlette.applications\n"
        "import psutil; psutil.Process().memory_info()\n"
        "print(json.dumps(True))"
    )


def test_a_debugger_module_that_was_loaded_before_shows() -> None:
    found = run("import pdb\n" + SEALED + "print(json.dumps(measured(report)))")
    assert found["dangerous_modules_blocked"] is False


def test_a_tracer_that_was_there_before_shows() -> None:
    found = run("sys.settrace(lambda *a: None)\n" + SEALED + "print(json.dumps(measured(report)))")
    assert found["anti_debug_enabled"] is False


def test_an_open_seal_counts_for_nothing() -> None:
    found = run("print(json.dumps(measured(privacy.harden())))")
    assert found["dangerous_modules_blocked"] is False
    assert found["anti_debug_enabled"] is False


def test_a_removed_finder_shows_at_the_next_look() -> None:
    found = run(SEALED + "sys.meta_path.pop(0)\nprint(json.dumps(measured(report)))")
    assert found["dangerous_modules_blocked"] is False


def test_the_environment_is_scrubbed_and_named() -> None:
    found = run(
        "os.environ['SSLKEYLOGFILE'] = '/keys'; os.environ['HTTPS_PROXY'] = 'http://x'\n"
        + SEALED
        + "print(json.dumps([report.steps['environment'].evidence, measured(report),"
        " 'SSLKEYLOGFILE' in os.environ]))"
    )
    assert found == ["removed: HTTPS_PROXY, SSLKEYLOGFILE", ALL_TRUE, False]


@linux_only
def test_what_the_process_was_started_with_is_not_forgotten() -> None:
    found = run(
        SEALED + "print(json.dumps([dict(os.environ), measured(report)]))", {"LD_BIND_NOW": "1"}
    )
    assert "LD_BIND_NOW" not in found[0]
    assert found[1]["env_scrubbed"] is False


@pytest.mark.parametrize(
    ("setting", "flag"),
    [
        ("LD_DEBUG_OUTPUT", "env_scrubbed"),
        ("DYLD_LIBRARY_PATH", "env_scrubbed"),
        ("PYTHONPATH", "python_runtime_locked"),
        ("all_proxy", "text_proxy_disabled"),
    ],
)
def test_a_variable_that_comes_back_shows_at_the_next_look(setting: str, flag: str) -> None:
    found = run(SEALED + f"os.environ[{setting!r}] = 'x'\nprint(json.dumps(measured(report)))")
    assert found[flag] is False


def test_the_keyrings_variable_does_no_harm() -> None:
    found = run(
        SEALED + "print(json.dumps(measured(report)))",
        {"PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring"},
    )
    assert found == ALL_TRUE


def test_an_interpreter_that_is_not_isolated_shows() -> None:
    found = run(SEALED + "print(json.dumps(measured(report)))", isolated=False)
    assert found["python_runtime_locked"] is False


def test_the_machines_facts_and_the_engines_place_are_taken_as_measured() -> None:
    for sip, expected in ((True, True), (False, False), (None, False)):
        found = privacy.checks(
            None, engine_in_process=False, posture=Posture(sip_enabled=sip), environ={}
        )
        assert found["sip_enabled"].holds is expected
        assert not found["text_backend_inprocess"].holds


def test_every_check_carries_its_evidence() -> None:
    found = privacy.checks(None, engine_in_process=True, posture=Posture(), environ={})
    assert all(check.evidence for check in found.values())


def test_a_step_that_fails_is_reported() -> None:
    assert run(
        "resource.setrlimit = lambda *a: (_ for _ in ()).throw(OSError('no'))\n"
        "print(json.dumps(privacy.harden().problems))"
    ) == ["core_dumps: setrlimit(RLIMIT_CORE): no"]


def test_a_seal_that_was_never_installed_cannot_be_closed() -> None:
    with pytest.raises(RuntimeError, match="never installed"):
        seal.Seal().close()


def test_a_tracer_is_seen_in_the_kernels_words() -> None:
    assert privacy.tracer_pid("Name:\tx\nTracerPid:\t17\n") == 17
    assert privacy.tracer_pid("TracerPid:\t0\n") == 0
    assert privacy.tracer_pid("") is None
