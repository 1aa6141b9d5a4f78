from __future__ import annotations

import pytest

from darkbloom_provider.engine.runtime import preload_blas, wired_limit


def test_a_fast_blas_is_preloaded_where_there_is_one() -> None:
    asked: list[str] = []

    def only_the_second(name: str) -> None:
        asked.append(name)
        if len(asked) == 1:
            raise OSError

    assert preload_blas(only_the_second, "linux") == "libopenblas.so" == asked[1]


def test_without_a_fast_blas_things_go_on() -> None:
    def missing(_name: str) -> None:
        raise OSError

    assert preload_blas(missing, "linux") is None


def test_a_mac_needs_no_blas() -> None:
    assert preload_blas(pytest.fail, "darwin") is None


@pytest.mark.parametrize(
    ("recommended", "setting", "limit"),
    [
        (None, 10.0, None),
        (20_000_000_000, None, 10_000_000_000),
        (20_000_000_000, 15.0, 15_000_000_000),
        (20_000_000_000, 99.0, 20_000_000_000),
    ],
)
def test_the_wired_limit_is_half_unless_set_and_never_above_the_recommendation(
    recommended: int | None, setting: float | None, limit: int | None
) -> None:
    assert wired_limit(recommended, setting) == limit
