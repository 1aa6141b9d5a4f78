"""A coordinator killed at each moment of reserve → settle → credit → withdraw."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.kill_runs import kill_at_failpoints


@pytest.mark.chaos
@pytest.mark.timeout(3_600)
def test_a_kill_at_any_failpoint_leaves_the_books_right(tmp_path: Path, place: Path | str) -> None:
    done = kill_at_failpoints(tmp_path, place, step=1)
    assert done.runs == done.failpoints >= 500
