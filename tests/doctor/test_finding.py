from __future__ import annotations

import threading
from collections.abc import Iterator

from darkbloom_provider.doctor.finding import Finding, Verdict, examine, note, ok
from darkbloom_provider.errors import DarkbloomError


def test_a_check_that_hangs_is_told_as_unknown_and_holds_up_nobody() -> None:
    never = threading.Event()

    def hangs() -> Iterator[Finding]:
        yield ok("hangs", "begun")
        never.wait()

    try:
        found = examine({"hangs": hangs, "quick": lambda: [ok("quick", "done")]}, limit_s=0.2)
    finally:
        never.set()
    assert [(f.check, f.verdict) for f in found] == [
        ("hangs", Verdict.UNKNOWN),
        ("quick", Verdict.OK),
    ]
    assert "no answer within 0.2 s" in found[0].evidence


def test_findings_come_in_the_order_of_the_checks() -> None:
    first = threading.Event()

    def waits() -> list[Finding]:
        first.wait(10)
        return [note("a", "late")]

    def goes() -> list[Finding]:
        first.set()
        return [note("b", "early")]

    assert [f.check for f in examine({"a": waits, "b": goes})] == ["a", "b"]


def test_a_typed_error_is_a_finding_that_says_what_to_type() -> None:
    def refuses() -> list[Finding]:
        raise DarkbloomError("It is damaged", why="half of it is gone", next_step="mend it")

    (found,) = examine({"file": refuses})
    assert (found.check, found.verdict) == ("file", Verdict.WRONG)
    assert found.evidence == "It is damaged: half of it is gone"
    assert found.next_step == "mend it"


def test_a_fault_of_the_check_itself_is_unknown_and_its_text_is_not_shown() -> None:
    def breaks() -> list[Finding]:
        raise ValueError("eigeninference-pt-" + "a" * 64)

    (found,) = examine({"file": breaks})
    assert found.verdict is Verdict.UNKNOWN
    assert "ValueError" in found.evidence
    assert "aaaa" not in found.evidence
