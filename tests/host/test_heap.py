from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from darkbloom_provider.host import heap


class Symbol:
    """A function of a C library; remembers how it was called."""

    def __init__(self) -> None:
        self.argtypes: list[object] = []
        self.restype: object = None
        self.calls: list[tuple[object, ...]] = []

    def __call__(self, *arguments: object) -> int:
        self.calls.append(arguments)
        return 1


def test_this_systems_heap_can_be_relieved() -> None:
    relieve = heap.relief()
    relieve()
    relieve()


@pytest.mark.parametrize(
    ("platform", "name", "arguments"),
    [("linux", "malloc_trim", (0,)), ("darwin", "malloc_zone_pressure_relief", (None, 0))],
)
def test_each_system_has_its_own_call(
    monkeypatch: pytest.MonkeyPatch, platform: str, name: str, arguments: tuple[object, ...]
) -> None:
    symbol = Symbol()
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace(**{name: symbol}))
    relieve = heap.relief(platform)
    assert symbol.calls == []
    relieve()
    assert symbol.calls == [arguments]
    assert len(symbol.argtypes) == len(arguments)


def test_a_c_library_without_the_call_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace())
    for platform in ("linux", "darwin"):
        heap.relief(platform)()
