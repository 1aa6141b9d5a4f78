"""System tools as a table: what each command line is answered."""

from __future__ import annotations

from collections.abc import Mapping

from darkbloom_provider.host.command import Answer, Ask


def said(out: str = "", *, code: int = 0, err: str = "") -> Answer:
    """An answer of a tool whose command line does not matter."""
    return Answer("tool", code, out, err)


MISSING = Answer("tool", None, err="not on this machine")


def tools(table: Mapping[str, str]) -> Ask:
    """Answers by the command line; a tool that is not in the table is not on the machine."""

    def ask(*argv: str) -> Answer:
        line = " ".join(argv)
        for start, out in table.items():
            if line.startswith(start):
                return Answer(line, 0, out)
        return Answer(line, None, err=MISSING.err)

    return ask
