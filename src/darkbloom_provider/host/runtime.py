"""The code this process is made of: where it may come from, and the hashes that name it.

An operator may list hashes; the coordinator then gives work only to providers that report one of
them. They are this program's own: another client's interpreter and libraries have others.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).resolve().parent.parent
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
_SKIPPED: Final = frozenset({"__pycache__"})


@dataclass(frozen=True, slots=True)
class Hashes:
    """SHA-256, as 64 lower-case hex digits."""

    python: str
    """Of the interpreter's file."""
    runtime: str
    """Of every file that `Code` covers."""
    files: int
    """How many those are."""


@dataclass(frozen=True, slots=True)
class Code:
    """The directories that a serving process may load code from, in a fixed order.

    The standard library comes first; what is installed beside it for others (a virtual environment
    does not see it) belongs to it only if it is a directory of its own here. A link in one of them
    belongs to it, wherever it leads: package managers build whole environments of links.
    """

    roots: tuple[Path, ...]

    @classmethod
    def of_this_process(cls) -> Code:
        """The standard library, the installed packages, and this one where it lies elsewhere."""
        paths = sysconfig.get_paths()
        named = (paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
        code = cls(tuple(dict.fromkeys(Path(os.path.normpath(name)) for name in named)))
        return code if code.covers(_PACKAGE) else cls((*code.roots, _PACKAGE))

    def covers(self, path: str | os.PathLike[str]) -> bool:
        """Whether a file belongs to this code, by its own path or by the one that links lead to."""
        return self._holds(os.path.normpath(path)) or self._holds(os.path.realpath(path))

    def files(self) -> Iterator[Path]:
        """Every file but compiled ones, root by root, sorted by path within each.

        One at a time: they are tens of thousands, and a list of them would leave its memory to a
        process that lives on.
        """
        seen: set[str] = set()
        for root in self.roots:
            yield from self._files_below(root, seen)

    def _files_below(self, directory: Path, seen: set[str]) -> Iterator[Path]:
        real = os.path.realpath(directory)
        if real in seen:
            return
        seen.add(real)
        for name, is_directory in _entries(directory):
            path = directory / name
            if not is_directory:
                if not name.endswith(".pyc"):
                    yield path
            elif name not in _SKIPPED | _INSTALLED and path not in self.roots:
                yield from self._files_below(path, seen)

    def _holds(self, path: str) -> bool:
        # The innermost root: installed packages may lie inside the standard library's directory.
        forms = {form for root in self.roots for form in (root, root.resolve())}
        around = [root for root in forms if Path(path).is_relative_to(root)]
        if not around:
            return False
        root = max(around, key=lambda root: len(root.parts))
        return not _INSTALLED & set(Path(path).relative_to(root).parts)


def measure(code: Code | None = None, python: str = sys.executable) -> Hashes:
    """Hash the interpreter and all code. Takes seconds: call it off the event loop.

    The rules are the network's (`websocket.md` section 7.5): SHA-256 of each file, then SHA-256
    over the raw digests in order; compiled files are skipped. There is no hash of a binary (this
    program has none but the interpreter) and none of templates (a model brings its own).

    Args:
        code: What is covered; this process's code by default.
        python: The interpreter's path.

    Raises:
        OSError: A file cannot be read.
    """
    return hashes((code or Code.of_this_process()).files(), Path(os.path.realpath(python)))


def hashes(files: Iterable[Path], python: Path) -> Hashes:
    """The hashes of the interpreter and of files in this order."""
    whole = hashlib.sha256()
    count = 0
    for path in files:
        whole.update(_digest(path))
        count += 1
    return Hashes(_digest(python).hex(), whole.hexdigest(), count)


def _entries(directory: Path) -> list[tuple[str, bool]]:
    """What a directory holds, by name, and whether it is a directory or leads to one.

    One that may not be listed holds nothing.
    """
    try:
        with os.scandir(directory) as entries:
            return sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError:
        return []


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
