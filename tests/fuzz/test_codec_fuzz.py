"""Foreign bytes for the codec: a slice of it always, ten minutes of it in `make chaos`."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fuzz import codec as target
from fuzz.mutation import mutated

SLICE = 5_000
SECONDS = int(os.environ.get("DARKBLOOM_FUZZ_SECONDS", "600"))
has_atheris = importlib.util.find_spec("atheris") is not None
needs_atheris = pytest.mark.skipif(not has_atheris, reason="there is no atheris for this platform")


def test_the_seeds_are_all_the_kinds_of_frames_there_are() -> None:
    kinds = {kind for seed in target.seeds() for kind in re.findall(rb'^{"type":"(\w+)"', seed)}
    assert len(kinds) == 12


def test_frames_that_are_almost_right_are_messages_or_frame_errors() -> None:
    run(random.Random(4711), SLICE)


def run(chance: random.Random, times: int) -> None:
    """Check so many frames, each changed from a seed."""
    seeds = target.seeds()
    pool = seeds + target.words()
    for _ in range(times):
        frame = mutated(chance.choice(seeds), chance, pool)
        try:
            target.check(frame)
        except Exception as error:
            error.add_note(f"the frame: {frame!r}")
            raise


def under_atheris(*options: str, artifacts: Path) -> int:
    """Run libFuzzer over the codec; how many frames it tried.

    Raises:
        AssertionError: It found one that breaks the codec; the frame is in the message.
    """
    script = Path(target.__file__)
    done = subprocess.run(
        [sys.executable, str(script), f"-artifact_prefix={artifacts}/", "-timeout=10", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    found = [path.read_bytes() for path in artifacts.iterdir()]
    assert done.returncode == 0, f"{found}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    (runs,) = re.findall(r"Done (\d+) runs", done.stderr)
    return int(runs)


@needs_atheris
def test_libfuzzer_finds_nothing_in_a_few_thousand_frames(tmp_path: Path) -> None:
    assert under_atheris("-runs=10000", "-seed=1", artifacts=tmp_path) >= 10_000


@pytest.mark.chaos
def test_ten_minutes_of_foreign_frames_break_nothing(tmp_path: Path) -> None:
    if has_atheris:
        assert under_atheris(f"-max_total_time={SECONDS}", artifacts=tmp_path) > 0
        return
    until = time.monotonic() + SECONDS  # without libFuzzer, as many changed frames as that allows
    seed = 0
    while time.monotonic() < until:
        run(random.Random(seed), SLICE)
        seed += 1
