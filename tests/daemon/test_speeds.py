from __future__ import annotations

import asyncio
from pathlib import Path

from darkbloom_provider.daemon.speeds import MeasuredSpeeds, hardware_name
from darkbloom_provider.engine.requests import EngineSnapshot, SlotSnapshot
from darkbloom_provider.engine.speeds import Speed
from darkbloom_provider.protocol.messages import Hardware


def seen(**speeds: Speed) -> EngineSnapshot:
    slots = tuple(SlotSnapshot(model, "running", speed=speed) for model, speed in speeds.items())
    return EngineSnapshot(slots=slots)


def test_what_one_run_measured_the_next_one_registers(tmp_path: Path) -> None:
    first = MeasuredSpeeds(tmp_path, "M4 Max")
    assert first.registered(("a",)) == Speed()
    first.note(seen(a=Speed(900.0, 40.0), b=Speed()))
    first.save()
    second = MeasuredSpeeds(tmp_path, "M4 Max")
    assert second.registered(("a", "b")) == Speed(900.0, 40.0)
    assert MeasuredSpeeds(tmp_path, "M1").registered(("a",)) == Speed()


def test_a_disk_that_refuses_costs_figures_and_nothing_else(tmp_path: Path) -> None:
    blocked = tmp_path / "home"
    blocked.write_text("a file, where the directory should be")
    speeds = MeasuredSpeeds(blocked, "M4 Max")
    speeds.note(seen(a=Speed(900.0, 40.0)))
    speeds.save()
    assert speeds.registered(("a",)) == Speed(900.0, 40.0)


async def test_figures_are_saved_a_last_time_when_the_daemon_ends(tmp_path: Path) -> None:
    speeds = MeasuredSpeeds(tmp_path, "M4 Max")
    never = asyncio.Event()

    async def sleep(_seconds: float) -> None:
        await never.wait()

    task = asyncio.create_task(speeds.keep(lambda: seen(a=Speed(900.0, 40.0)), sleep))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert MeasuredSpeeds(tmp_path, "M4 Max").registered(("a",)) == Speed(900.0, 40.0)


def test_hardware_has_a_name_for_people() -> None:
    mac = Hardware(chip_name="Apple M4 Max", gpu_cores=40, memory_gb=128)
    assert hardware_name(mac) == "Apple M4 Max, 40 GPU cores, 128 GiB"
    assert hardware_name(Hardware()) == "unknown chip, 0 GiB"
