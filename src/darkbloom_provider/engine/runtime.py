"""Getting MLX ready, once a process and in the engine's thread, before its first import.

Source of the BLAS fact: MLX's Linux wheel carries a reference BLAS; symbols of an OpenBLAS that is
loaded globally first take its place and multiply matrices many times faster.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from darkbloom_provider import paths
from darkbloom_provider.engine import mlx_lm_package

SCRATCH_VARIABLE = "TMPDIR"
_BLAS_NAMES = ("libopenblas.so.0", "libopenblas.so")
_OFFLINE = {
    # Models come from local folders. Nothing that is loaded along may ask a network about them.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    # Its pool of threads gains nothing on single prompts and warns after a fork.
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True, slots=True)
class Runtime:
    """What computes on this machine."""

    device: str
    metal: bool
    blas: str | None
    recommended_bytes: int | None
    """What Metal recommends as a working set; None without Metal."""


def preload_blas(
    load: Callable[[str], object] | None = None, platform: str = sys.platform
) -> str | None:
    """Load OpenBLAS for the whole process and return its name, or None if there is none."""
    if platform != "linux":
        return None
    for name in _BLAS_NAMES:
        try:
            if load is None:
                ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            else:
                load(name)
        except OSError:
            continue
        return name
    return None


def prepare(environ: MutableMapping[str, str], scratch: Path | None = None) -> Runtime:
    """Import MLX with everything in place and say what computes.

    Args:
        environ: The process's environment; settings that keep libraries offline and quiet are
            added where absent.
        scratch: Where temporary files go from now on. MLX's CPU back end compiles kernels there
            and loads them again, so it must not be a directory that others can write to.

    Raises:
        ImportError: MLX does not run on this machine.
    """
    for name, value in _OFFLINE.items():
        environ.setdefault(name, value)
    if scratch is not None:
        environ[SCRATCH_VARIABLE] = str(paths.private_directory(scratch))
    blas = preload_blas()
    import mlx.core as mx  # noqa: PLC0415 - the very point: after the lines above

    mlx_lm_package.prepare()
    metal = bool(mx.metal.is_available())
    info = mx.device_info()
    name = str(info.get("device_name", "unknown"))
    recommended = info.get("max_recommended_working_set_size") if metal else None
    return Runtime(
        device=f"{name} (Metal)" if metal else f"{name} (CPU)",
        metal=metal,
        blas=blas,
        recommended_bytes=None if recommended is None else int(recommended),
    )


def restore_scratch(environ: MutableMapping[str, str], before: str | None) -> None:
    """Let temporary files go where they went before `prepare`, whose directory may vanish now."""
    if before is None:
        environ.pop(SCRATCH_VARIABLE, None)
    else:
        environ[SCRATCH_VARIABLE] = before


def process_environment() -> MutableMapping[str, str]:
    """The environment that libraries read when they are imported."""
    return os.environ


def wired_limit(recommended_bytes: int | None, setting_gb: float | None) -> int | None:
    """Bytes the GPU may keep wired: the setting, never above the recommendation; half by default.

    None means there is nothing to limit (no Metal).
    """
    if recommended_bytes is None:
        return None
    if setting_gb is None:
        return recommended_bytes // 2
    return min(int(setting_gb * 1e9), recommended_bytes)


def ceiling(recommended_bytes: int | None, setting_gb: float | None) -> int | None:
    """Bytes that the engine may use at most: the setting, never above Metal's recommendation.

    None means that nobody set one.
    """
    if setting_gb is None:
        return None
    asked = int(setting_gb * 1e9)
    return asked if recommended_bytes is None else min(asked, recommended_bytes)
