"""The seal: from the moment serving starts, this interpreter refuses to be looked into.

An audit hook (which Python cannot remove again) refuses tracing, profiling, remote scripts,
breakpoints and new native libraries, and modules made for looking into programs. A named list is
refused and nothing else, because libraries import parts of themselves late.

It guards against code that asks Python; it is no wall against code that already runs with the
owner's rights and patches memory. Debuggers are kept out by the kernel, see `host.privacy`.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Final

PROBE: Final = "darkbloom_seal_probe"
"""A module that does not exist, on the list so that the refusal can be tried at any moment."""

REFUSED_MODULES: Final = frozenset(
    {
        "IPython",
        "_remote_debugging",
        "bdb",
        "code",
        "debugpy",
        "hunter",
        "ipdb",
        "manhole",
        "memray",
        "pdb",
        "pudb",
        "py_spy",
        "pydevd",
        "pyrasite",
        "remote_pdb",
        "rpdb",
        "viztracer",
        PROBE,
    }
)

REFUSED_EVENTS: Final = frozenset(
    {
        "builtins.breakpoint",
        "cpython.remote_debugger_script",
        "ctypes.dlopen",
        "sys.addaudithook",
        "sys.monitoring.register_callback",
        "sys.remote_exec",
        "sys.setprofile",
        "sys.settrace",
    }
)
"""Names from Python's table of audit events."""


class SealedError(RuntimeError):
    """The sealed process was asked to let itself be traced or to load native code."""


class ModuleRefusedError(ImportError):
    """A module for looking into programs was imported in the sealed process.

    An `ImportError`, so that libraries which merely try for it go on without it.
    """


class Seal:
    """Open until `close()`, then closed for the rest of the process."""

    def __init__(self) -> None:
        self._closed = False
        self._installed = False

    @property
    def closed(self) -> bool:
        """Whether refusals are in force."""
        return self._closed

    def install(self) -> None:
        """Add the hooks, open. Once is enough; more calls change nothing."""
        if not self._installed:
            self._installed = True
            sys.addaudithook(self._hook)
            # importlib.import_module raises no "import" event: a finder sees that road too.
            sys.meta_path.insert(0, _RefusingFinder(self))

    def close(self) -> None:
        """Put the refusals in force. There is no way back.

        Raises:
            RuntimeError: `install()` was never called: there is nothing to close.
        """
        if not self._installed:
            raise RuntimeError("the seal was never installed")
        self._closed = True

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._closed:
            return
        if event in REFUSED_EVENTS:
            raise SealedError(f"{event} is refused while serving")
        if event == "import" and arguments and is_refused(str(arguments[0])):
            raise ModuleRefusedError(f"{arguments[0]} is refused while serving")


class _RefusingFinder(importlib.abc.MetaPathFinder):
    def __init__(self, seal: Seal) -> None:
        self._seal = seal

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Refuse a listed module once the seal is closed; leave all others to the next finder."""
        del path, target
        if self._seal.closed and is_refused(fullname):
            raise ModuleRefusedError(f"{fullname} is refused while serving")
        return None


def is_refused(module: str) -> bool:
    """Whether a module (or a part of a package) is on the list."""
    return module.partition(".")[0] in REFUSED_MODULES


def tracing_is_refused() -> bool:
    """Try to set a tracer, now. False if it was allowed or one is already there."""
    if sys.gettrace() is not None or sys.getprofile() is not None:
        return False
    try:
        sys.settrace(None)
        sys.setprofile(None)
    except SealedError:
        return True
    return False


def imports_are_refused() -> bool:
    """Try both roads to a listed module, now. False if either was open."""
    for road in (__import__, importlib.import_module):
        try:
            road(PROBE)
        except ModuleRefusedError:
            continue
        except ImportError:
            return False
        return False
    return True


def refused_modules_loaded() -> tuple[str, ...]:
    """Listed modules that were imported before the seal closed."""
    return tuple(sorted(name for name in REFUSED_MODULES if sys.modules.get(name) is not None))
