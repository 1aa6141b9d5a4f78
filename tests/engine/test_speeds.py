from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.engine import speeds
from darkbloom_provider.engine.speeds import Speed, SpeedBook, Speedometer


def test_only_a_request_by_itself_is_measured() -> None:
    meter = Speedometer()
    for _ in range(100):
        meter.decode(0.5, rows=4)
        meter.read(0.5, 128, rows=1, streams=1)
        meter.read(0.5, 384, rows=3, streams=0)
    assert meter.speed == Speed()
    for _ in range(32):
        meter.decode(0.02, rows=1)
        meter.read(0.25, 128, rows=1, streams=0)
    assert meter.speed.decode_tps == pytest.approx(50)
    assert meter.speed.prefill_tps == pytest.approx(512)


def test_too_little_says_nothing() -> None:
    meter = Speedometer()
    for _ in range(31):
        meter.decode(0.02, rows=1)
    meter.read(0.25, 255, rows=1, streams=0)
    assert meter.speed == Speed()


def test_a_pause_of_the_machine_does_not_change_the_figure() -> None:
    meter = Speedometer()
    for n in range(64):
        meter.decode(30.0 if n == 40 else 0.02, rows=1)
    assert meter.speed.decode_tps == pytest.approx(50)


def test_what_is_remembered_belongs_to_the_hardware_it_was_measured_on(tmp_path: Path) -> None:
    book = SpeedBook({}).noting("M4 Max", {"m": Speed(900.0, 41.0), "n": Speed()})
    speeds.write(tmp_path, book)
    assert speeds.read(tmp_path).of("M4 Max") == {"m": Speed(900.0, 41.0)}
    assert speeds.read(tmp_path).of("M1") == {}
    newer = speeds.read(tmp_path).noting("M4 Max", {"m": Speed(None, 44.0)})
    assert newer.of("M4 Max") == {"m": Speed(900.0, 44.0)}
    assert (tmp_path / speeds.FILE_NAME).stat().st_mode & 0o077 == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
    lambda inner: st.dictionaries(st.sampled_from(["decode_tps", "a"]), inner) | st.lists(inner),
    max_leaves=8,
)


@given(content=JSON.map(json.dumps).map(str.encode) | st.binary(max_size=30))
def test_a_damaged_file_is_no_reason_to_stop(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("home")
    (home / speeds.FILE_NAME).write_bytes(content)
    for models in speeds.read(home).entries.values():
        for speed in models.values():
            assert speed.decode_tps is None or speed.decode_tps > 0
    assert speeds.read(home / "nowhere") == SpeedBook({})


def test_one_figure_for_several_models_is_that_of_the_slowest() -> None:
    known = {"a": Speed(900.0, 40.0), "b": Speed(500.0, None), "c": Speed(1.0, 1.0)}
    assert speeds.slowest(known, ("a", "b", "x")) == Speed(500.0, 40.0)
    assert speeds.slowest(known, ("x",)) == Speed()
