"""MLX's own limits and counters of memory. Engine thread only; MLX is loaded before its first use.

MLX is imported in each method: this module is imported before MLX is prepared.
"""

from __future__ import annotations

import gc

from darkbloom_provider.engine.requests import MemorySnapshot

GB = 10**9
_POOL_SHARE = 16
"""One part in so many of the ceiling may be memory that MLX keeps for its next arrays."""


class DeviceMemory:
    """Sets MLX's limits, which are the process's, and puts back what was there before."""

    def __init__(self) -> None:
        self._limits_before: tuple[int, int] | None = None
        self._wired_before: int | None = None

    def limit(self, *, ceiling: int | None, wired: int | None) -> None:
        """Set the limits, in bytes; None leaves one as it is."""
        import mlx.core as mx  # noqa: PLC0415 - see above

        if ceiling is not None:
            # What arrays have freed and MLX keeps for the next counts as well.
            before = mx.set_memory_limit(ceiling), mx.set_cache_limit(ceiling // _POOL_SHARE)
            self._limits_before = self._limits_before or before
        if wired is not None:
            self._wired_before = mx.set_wired_limit(wired)

    def restore(self) -> None:
        """Put back MLX's own limits, and end this thread's streams."""
        import mlx.core as mx  # noqa: PLC0415 - see above

        if self._limits_before is not None:
            mx.set_memory_limit(self._limits_before[0])
            mx.set_cache_limit(self._limits_before[1])
        if self._wired_before is not None:
            mx.set_wired_limit(self._wired_before)
        mx.clear_streams()

    def active_bytes(self) -> int:
        """What arrays hold."""
        import mlx.core as mx  # noqa: PLC0415 - see above

        return mx.get_active_memory()

    def snapshot(
        self, *, metal: bool, prompt_cache_bytes: int, ceiling: int | None
    ) -> MemorySnapshot:
        """The counters of now."""
        import mlx.core as mx  # noqa: PLC0415 - see above

        return MemorySnapshot(
            active_gb=mx.get_active_memory() / GB,
            peak_gb=mx.get_peak_memory() / GB,
            cache_gb=mx.get_cache_memory() / GB,
            prompt_cache_gb=prompt_cache_bytes / GB,
            ceiling_gb=None if ceiling is None else ceiling / GB,
            source="metal" if metal else "cpu",
        )

    def collect(self) -> None:
        """Give back what nothing holds any more."""
        import mlx.core as mx  # noqa: PLC0415 - see above

        gc.collect()
        mx.clear_cache()
