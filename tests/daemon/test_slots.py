from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from darkbloom_provider.config import BackendSection
from darkbloom_provider.daemon.slots import ModelSlots, choose
from darkbloom_provider.engine.errors import NoRoomError, OutOfServiceError
from darkbloom_provider.errors import ConfigError, ModelError
from darkbloom_provider.models.store import InstalledModel
from support.daemon_parts import FakeLoader
from support.manual_time import ManualTime


def model(model_id: str) -> InstalledModel:
    return InstalledModel(
        id=model_id,
        path=Path(model_id),
        size_bytes=540_000_000,
        model_type="llama",
        quantization="float32",
    )


A, B, C = model("a"), model("b"), model("c")


# ---------------------------------------------------------------- which models


def test_without_models_the_error_names_the_import_command() -> None:
    with pytest.raises(ModelError) as caught:
        choose([], BackendSection())
    assert "darkbloom models import PATH.gguf" in (caught.value.next_step or "")


def test_a_named_model_that_is_not_installed_is_refused_with_those_that_are() -> None:
    with pytest.raises(ModelError, match="installed: a, b"):
        choose([A, B], BackendSection(), named=["x"])
    with pytest.raises(ModelError, match="x is not installed"):
        choose([A], BackendSection(model="x"))


@pytest.mark.parametrize(
    ("named", "settings", "all_models", "chosen"),
    [
        ((), BackendSection(), False, ("a", "b", "c")),
        (("b",), BackendSection(model="a"), False, ("b",)),
        ((), BackendSection(model="c", enabled_models=["a", "c"]), False, ("c", "a")),
        ((), BackendSection(model="c"), True, ("a", "b", "c")),
        (("c", "c"), BackendSection(), False, ("c",)),
    ],
)
def test_the_command_line_wins_over_the_settings(
    named: tuple[str, ...], settings: BackendSection, all_models: bool, chosen: tuple[str, ...]
) -> None:
    choice = choose([A, B, C], settings, named=named, all_models=all_models)
    assert tuple(m.id for m in choice.models) == chosen
    assert choice.left_out == ()


def test_models_beyond_the_slots_are_left_out_aloud() -> None:
    choice = choose([A, B, C], BackendSection(max_model_slots=2))
    assert [m.id for m in choice.models] == ["a", "b"]
    assert choice.left_out == ("c is not served: max_model_slots is 2",)


def test_only_served_models_are_preloaded_and_any_other_name_is_refused() -> None:
    wanted = BackendSection(enabled_models=["a", "b"], preload_models=["b", "b", "a"])
    assert choose([A, B, C], wanted).preload == ("b", "a")
    assert choose([A, B, C], wanted, named=["a"]).preload == ("a",)
    assert choose([A, B, C], wanted, named=["c"]).preload == ()
    with pytest.raises(ConfigError, match="preload_models names c, which is not served") as caught:
        choose([A, B, C], BackendSection(enabled_models=["a", "b"], preload_models=["c"]))
    assert caught.value.why == "served: a, b"


# ---------------------------------------------------------------- loading


async def test_at_the_start_only_the_models_to_preload_are_loaded_in_their_order() -> None:
    loader, slots = FakeLoader(), ModelSlots([A, B, C], ManualTime().clock, ["c", "a"])
    loading = asyncio.create_task(slots.load_all(loader))
    await asyncio.sleep(0)
    assert {slot.model.id: slot.state for slot in slots.snapshot()} == {
        "a": "waiting",
        "b": "idle",
        "c": "loading",
    }
    assert slots.snapshot()[1].detail == "loaded when it is asked for"
    await loading
    assert loader.held == ["c", "a"]
    assert slots.servable() == ("a", "b", "c")
    await slots.prepare(loader, "b")
    assert loader.held == ["c", "a", "b"]


async def test_a_model_to_preload_that_fails_is_told_and_the_others_serve() -> None:
    loader, slots = FakeLoader(), ModelSlots([A, B], ManualTime().clock, ["a"])
    loader.fail["a"] = ModelError("it is damaged")
    await slots.load_all(loader)
    assert [slot.state for slot in slots.snapshot()] == ["failed", "idle"]
    assert slots.servable() == ("b",)


async def test_one_model_that_fails_does_not_keep_the_others_from_serving() -> None:
    loader, slots = FakeLoader(), ModelSlots([A, B], ManualTime().clock)
    loader.fail["a"] = ModelError("it is damaged")
    await slots.load_all(loader)
    assert slots.servable() == ("b",)
    assert [(s.model.id, s.state, s.detail) for s in slots.snapshot()] == [
        ("a", "failed", "it is damaged"),
        ("b", "ready", None),
    ]
    assert [info.id for info in slots.infos()] == ["b"]


async def test_if_every_model_fails_the_start_fails_with_the_first_reason() -> None:
    loader, slots = FakeLoader(), ModelSlots([A, B], ManualTime().clock)
    loader.fail = {"a": ModelError("first"), "b": ModelError("second")}
    with pytest.raises(ModelError, match="first"):
        await slots.load_all(loader)


async def test_a_load_under_way_is_shown_with_its_size() -> None:
    slots = ModelSlots([A], ManualTime().clock)
    loading = asyncio.ensure_future(slots.load_all(FakeLoader()))
    await asyncio.sleep(0)
    (slot,) = slots.snapshot()
    assert (slot.state, slot.detail) == ("loading", "reading 0.54 GB of weights")
    await loading


# ---------------------------------------------------------------- idling


async def test_an_idle_model_is_unloaded_and_loaded_again_by_the_next_request() -> None:
    time, loader = ManualTime(), FakeLoader()
    slots = ModelSlots([A, B], time.clock)
    await slots.load_all(loader)
    time.now += 50
    await slots.prepare(loader, "b")
    time.now += 50
    await slots.unload_idle(loader, 60, dict)
    assert slots.warm() == ("b",)
    assert slots.servable() == ("a", "b")
    await slots.prepare(loader, "a")
    assert slots.warm() == ("a", "b")
    assert loader.calls == ["load a", "load b", "unload a", "load a"]


async def test_a_model_in_use_is_never_unloaded() -> None:
    time, loader = ManualTime(), FakeLoader()
    slots = ModelSlots([A], time.clock)
    await slots.load_all(loader)
    time.now += 1000
    await slots.unload_idle(loader, 60, lambda: {"a": 1})
    assert slots.warm() == ("a",)


async def test_an_engine_that_hangs_keeps_its_idle_model_and_ends_nothing() -> None:
    time, loader = ManualTime(), FakeLoader()
    slots = ModelSlots([A, B], time.clock)
    await slots.load_all(loader)
    time.now += 1000
    loader.stuck = OutOfServiceError("a", "it hangs")
    assert await slots.unload_idle(loader, 60, dict) == 0
    assert sorted(slots.warm()) == ["a", "b"]
    loader.stuck = None
    assert await slots.unload_idle(loader, 60, dict) == 2
    assert slots.warm() == ()


async def test_a_model_asked_for_while_its_unload_fails_stays_as_the_request_left_it() -> None:
    time, loader = ManualTime(), FakeLoader()
    slots = ModelSlots([A], time.clock)
    await slots.load_all(loader)
    time.now += 1000
    loader.stuck = OutOfServiceError("a", "it hangs")
    unloading = asyncio.create_task(slots.unload_idle(loader, 60, dict))
    await asyncio.sleep(0)
    loader.fail["a"] = OutOfServiceError("a", "it hangs")
    with pytest.raises(OutOfServiceError):
        await slots.prepare(loader, "a")
    await unloading
    assert (slots.snapshot()[0].detail or "").startswith("the last load failed")
    loader.stuck, loader.fail = None, {}
    await slots.prepare(loader, "a")
    assert slots.warm() == ("a",)


async def test_a_reload_that_fails_is_tried_again_by_the_next_request() -> None:
    time, loader = ManualTime(), FakeLoader()
    slots = ModelSlots([A], time.clock)
    await slots.load_all(loader)
    time.now += 1000
    await slots.unload_idle(loader, 60, dict)
    loader.fail["a"] = ModelError("no memory")
    with pytest.raises(ModelError):
        await slots.prepare(loader, "a")
    assert slots.snapshot()[0].detail == "the last load failed: no memory"
    loader.fail.clear()
    await slots.prepare(loader, "a")
    assert slots.warm() == ("a",)


# ---------------------------------------------------------------- as many as fit


async def test_at_the_start_models_are_loaded_while_they_fit_and_none_is_pushed_out() -> None:
    loader, slots = FakeLoader(), ModelSlots([A, B, C], ManualTime().clock)
    loader.room = 2
    await slots.load_all(loader)
    assert loader.held == ["a", "b"]
    assert slots.servable() == ("a", "b", "c")
    third = slots.snapshot()[2]
    assert third.state == "idle"
    assert "3.00 GB are spoken for, and the ceiling is 4.00 GB" in (third.detail or "")


async def test_a_model_that_is_asked_for_takes_the_place_of_an_idle_one() -> None:
    time, loader = ManualTime(), FakeLoader()
    slots = ModelSlots([A, B, C], time.clock)
    loader.room = 2
    await slots.load_all(loader)
    time.now += 1
    await slots.prepare(loader, "c")
    assert slots.warm() == ("c", "b")
    assert (slots.snapshot()[0].state, slots.snapshot()[0].detail) == (
        "idle",
        "made room for other work",
    )
    time.now += 1
    await slots.prepare(loader, "a")
    assert slots.warm() == ("a", "c")


async def test_a_model_too_large_for_this_machine_is_not_offered() -> None:
    loader, slots = FakeLoader(), ModelSlots([A, B], ManualTime().clock)
    loader.fail["b"] = NoRoomError("b", needed_gb=9, held_gb=0, ceiling_gb=4, ever=False)
    await slots.load_all(loader)
    assert slots.servable() == ("a",)


# ---------------------------------------------------------------- what changes on the disk


async def test_a_new_model_is_offered_once_it_is_loaded() -> None:
    loader, slots = FakeLoader(), ModelSlots([A], ManualTime().clock)
    await slots.load_all(loader)
    assert slots.change_to([A, B])
    assert slots.servable() == ("a",)
    assert await slots.load_waiting(loader) == []
    assert slots.servable() == ("a", "b")
    assert loader.calls == ["load a", "load b"]


async def test_a_new_model_that_cannot_be_loaded_harms_no_other() -> None:
    loader, slots = FakeLoader(), ModelSlots([A], ManualTime().clock)
    await slots.load_all(loader)
    slots.change_to([A, B])
    loader.fail["b"] = ModelError("it is damaged")
    (failure,) = await slots.load_waiting(loader)
    assert str(failure) == "it is damaged"
    assert slots.servable() == ("a",)


async def test_a_removed_model_is_freed_only_when_nobody_uses_it() -> None:
    loader, slots = FakeLoader(), ModelSlots([A, B], ManualTime().clock)
    await slots.load_all(loader)
    assert slots.change_to([B])
    assert slots.servable() == ("b",)
    await slots.unload_leaving(loader, lambda: {"a": 1})
    assert loader.held == ["a", "b"]
    await slots.unload_leaving(loader, dict)
    await slots.unload_leaving(loader, dict)
    assert loader.calls == ["load a", "load b", "unload a"]
    with pytest.raises(ModelError, match="not served any more"):
        await slots.prepare(loader, "a")


async def test_a_model_replaced_on_the_disk_is_read_again_by_the_next_request() -> None:
    loader, slots = FakeLoader(), ModelSlots([A], ManualTime().clock)
    await slots.load_all(loader)
    assert slots.change_to([replace(A, size_bytes=1)])
    assert slots.servable() == ("a",)
    await slots.unload_leaving(loader, dict)
    assert slots.snapshot()[0].state == "idle"
    await slots.prepare(loader, "a")
    assert loader.calls == ["load a", "unload a", "load a"]
    assert slots.infos()[0].size_bytes == 1


async def test_a_model_removed_while_it_is_read_is_freed_too() -> None:
    loader, slots = FakeLoader(), ModelSlots([A, B], ManualTime().clock)
    loading = asyncio.ensure_future(slots.load_all(loader))
    await asyncio.sleep(0)
    slots.change_to([B])
    await loading
    await slots.unload_leaving(loader, dict)
    assert loader.held == ["b"]


async def test_a_model_that_failed_is_tried_again_when_it_was_replaced() -> None:
    loader, slots = FakeLoader(), ModelSlots([A, B], ManualTime().clock)
    loader.fail["a"] = ModelError("it is damaged")
    await slots.load_all(loader)
    loader.fail.clear()
    slots.change_to([replace(A, size_bytes=1), B])
    await slots.load_waiting(loader)
    assert slots.servable() == ("a", "b")


def test_what_did_not_change_on_the_disk_is_no_change() -> None:
    slots = ModelSlots([A, B], ManualTime().clock)
    assert not slots.change_to([A, B])


async def test_a_removed_model_that_cannot_be_unloaded_now_is_tried_again() -> None:
    class Stuck(FakeLoader):
        async def unload(self, model_id: str) -> None:
            if "unload" in self.fail:
                raise self.fail["unload"]
            await super().unload(model_id)

    loader, slots = Stuck(), ModelSlots([A, B], ManualTime().clock)
    await slots.load_all(loader)
    slots.change_to([B])
    loader.fail["unload"] = ModelError("the engine hangs")
    await slots.unload_leaving(loader, dict)
    assert loader.held == ["a", "b"]
    loader.fail.clear()
    await slots.unload_leaving(loader, dict)
    assert loader.held == ["b"]
