"""The Macs that the calculator knows: memory they come with, its speed, and the power they draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Mac:
    """One kind of Mac with one chip."""

    kind: str
    chip: str
    memories_gb: tuple[int, ...]
    bandwidth_gbs: float
    """The vendor's figure, in GB/s (10^9 bytes)."""
    idle_watts: float | None = None
    busy_watts: float | None = None
    """At the wall, measured by the vendor while a program keeps every processor busy: more than
    answering requests draws. None where the vendor publishes no figure, as for notebooks."""
    gpu_cores: int = 0
    """Of a chip that exists in two sizes; 0 otherwise."""

    @property
    def name(self) -> str:
        """What to call it."""
        size = f" with {self.gpu_cores} GPU cores" if self.gpu_cores else ""
        return f"{self.kind}, {self.chip}{size}"

    @property
    def key(self) -> str:
        """What stands for it in an address."""
        size = f"-{self.gpu_cores}" if self.gpu_cores else ""
        return f"{self.kind} {self.chip}{size}".lower().replace(" ", "-")


MACS: Final = (
    Mac("Mac mini", "M1", (8, 16), 68, 7, 39),
    Mac("Mac mini", "M2", (8, 16, 24), 100, 7, 50),
    Mac("Mac mini", "M2 Pro", (16, 32), 200, 7, 100),
    Mac("Mac mini", "M4", (16, 24, 32), 120, 4, 65),
    Mac("Mac mini", "M4 Pro", (24, 48, 64), 273, 5, 140),
    Mac("Mac Studio", "M1 Max", (32, 64), 400, 11, 115),
    Mac("Mac Studio", "M1 Ultra", (64, 128), 800, 13, 215),
    Mac("Mac Studio", "M2 Max", (32, 64, 96), 400, 9, 145),
    Mac("Mac Studio", "M2 Ultra", (64, 128, 192), 800, 10, 295),
    Mac("Mac Studio", "M4 Max", (36,), 410, gpu_cores=32),
    Mac("Mac Studio", "M4 Max", (48, 64, 128), 546, gpu_cores=40),
    Mac("Mac Studio", "M3 Ultra", (96, 256, 512), 819),
    Mac("Mac Pro", "M2 Ultra", (64, 128, 192), 800),
    Mac("iMac", "M1", (8, 16), 68),
    Mac("iMac", "M3", (8, 16, 24), 100),
    Mac("iMac", "M4", (16, 24, 32), 120, 46, 105),
    Mac("MacBook Air", "M1", (8, 16), 68),
    Mac("MacBook Air", "M2", (8, 16, 24), 100),
    Mac("MacBook Air", "M3", (8, 16, 24), 100),
    Mac("MacBook Air", "M4", (16, 24, 32), 120),
    Mac("MacBook Pro", "M1 Pro", (16, 32), 200),
    Mac("MacBook Pro", "M1 Max", (32, 64), 400),
    Mac("MacBook Pro", "M2 Pro", (16, 32), 200),
    Mac("MacBook Pro", "M2 Max", (32, 64, 96), 400),
    Mac("MacBook Pro", "M3 Pro", (18, 36), 150),
    Mac("MacBook Pro", "M3 Max", (36, 96), 300, gpu_cores=30),
    Mac("MacBook Pro", "M3 Max", (48, 64, 128), 400, gpu_cores=40),
    Mac("MacBook Pro", "M4", (16, 24, 32), 120),
    Mac("MacBook Pro", "M4 Pro", (24, 48), 273),
    Mac("MacBook Pro", "M4 Max", (36,), 410, gpu_cores=32),
    Mac("MacBook Pro", "M4 Max", (48, 64, 128), 546, gpu_cores=40),
)
"""By kind, then age. Power: support.apple.com/102027 (Mac Studio), /103253 (Mac mini), iMac."""
