"""The seal: from the moment serving starts, this interpreter refuses to be looked into.

An audit hook (which Python cannot remove again) refuses tracing, profiling, remote scripts,
breakpoints, foreign libraries, modules from outside the installed runtime, native or not, and
modules made for looking into programs. What `host.runtime` hashes still loads, because libraries
import parts of themselves late, and a model that is loaded later may need another tokenizer.

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

from darkbloom_provider.host.runtime import Code

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


OUTSIDE: Final = "/darkbloom-seal-probe/outside"
"""A path that does not exist, outside every runtime, so that its refusal can be tried too."""


class SealedError(RuntimeError):
    """The sealed process was asked to let itself be traced or to load native code."""


class ModuleRefusedError(ImportError):
    """A module that the sealed process does not take: one of the list, or from outside.

    An `ImportError`, so that libraries which merely try for it go on without it.
    """


class Seal:
    """Open until `close()`, then closed for the rest of the process."""

    def __init__(self, code: Code | None = None) -> None:
        self._code = code or Code.of_this_process()
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
        if event == "import":
            # The module, and the file of a native one.
            if is_refused(str(arguments[0])):
                raise ModuleRefusedError(f"{arguments[0]} is refused while serving")
            self._check_origin(arguments[1] if len(arguments) > 1 else None)
        elif event == "exec" and isinstance(arguments[0], types.CodeType):
            # Every road to a Python module ends here, also those around the finders.
            self._check_origin(arguments[0].co_filename)

    def _check_origin(self, file: object) -> None:
        # Code without an absolute path was made in memory by a library: a data class, a template.
        if isinstance(file, str) and file.startswith("/") and not self._code.covers(file):
            raise ModuleRefusedError(f"{file} is outside the runtime, refused while serving")


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


def foreign_native_code_is_refused() -> bool:
    """Announce a native module from outside, now, as the interpreter does before it loads one."""
    try:
        sys.audit("import", "outside", f"{OUTSIDE}.so", None, None, None)
    except ModuleRefusedError:
        return True
    return False


def foreign_modules_are_refused() -> bool:
    """Run an empty module that says it comes from outside, now. False if it ran."""
    try:
        exec(compile("", f"{OUTSIDE}.py", "exec"), {})  # noqa: S102 - empty; the refusal is the point
    except ModuleRefusedError:
        return True
    return False


def refused_modules_loaded() -> tuple[str, ...]:
    """Listed modules that were imported before the seal closed."""
    return tuple(sorted(name for name in REFUSED_MODULES if sys.modules.get(name) is not None))
