"""A stand-in for a system tool: an executable on the PATH that records calls and plays answers."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = """\
#!{python} -IS
import json, sys
from pathlib import Path
folder = Path({folder!r})
arguments = sys.argv[1:]
with (folder / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
line = " ".join(arguments)
for number, (words, answers) in enumerate(json.loads((folder / "script.json").read_text())):
    if line.startswith(words):
        played = folder / f"played-{{number}}"
        turn = int(played.read_text()) if played.exists() else 0
        played.write_text(str(turn + 1))
        code, out, err = answers[min(turn, len(answers) - 1)]
        sys.stdout.write(out)
        sys.stderr.write(err)
        sys.exit(code)
sys.exit(0)
"""


@dataclass(frozen=True)
class Said:
    """One answer of the tool."""

    code: int = 0
    out: str = ""
    err: str = ""


class FakeTool:
    """An executable called `name` in `directory`, which belongs on the PATH of the code under test.

    Answers are looked up by the first words of a call, in the order they were given; each call
    plays the next one, the last stays. A call without an answer succeeds silently.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._folder = directory / f".{name}"
        self._folder.mkdir(parents=True)
        self._script: list[tuple[str, list[tuple[int, str, str]]]] = []
        self._save()
        program = directory / name
        program.write_text(_PROGRAM.format(python=sys.executable, folder=str(self._folder)))
        program.chmod(0o755)

    def answer(self, words: str, *answers: Said) -> None:
        """Play `answers` to calls that start with `words`."""
        self._script.append((words, [(a.code, a.out, a.err) for a in answers]))
        self._save()

    def calls(self) -> list[list[str]]:
        """The arguments of every call so far."""
        path = self._folder / "calls.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines()]

    def verbs(self) -> list[str]:
        """The first argument of every call that is not an option."""
        return [next(word for word in call if not word.startswith("-")) for call in self.calls()]

    def _save(self) -> None:
        (self._folder / "script.json").write_text(json.dumps(self._script))
