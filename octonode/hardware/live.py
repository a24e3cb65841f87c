"""Readings of the GPUs while the node runs: load, memory, temperature, power, and the memory each process holds.

Every driver here may need a long time for an answer: a reading is taken in a thread, at the rate of whoever asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from octonode.hardware import amd, apple, nvidia
from octonode.hardware.facts import Gpu, GpuLive, live


@dataclass(frozen=True, slots=True)
class Reading:
    """What the drivers said at one time."""

    gpus: tuple[Gpu, ...] = ()
    process_bytes: Mapping[int, int] = field(default_factory=dict)
    """GPU memory of each process that a driver tells of, by process id, over all GPUs."""

    @property
    def live(self) -> tuple[GpuLive, ...]:
        return live(self.gpus)


class LiveReader:
    """Keeps the drivers open between readings; `close` lets them go. Used by one thread at a time."""

    def __init__(self, sys_root: Path = Path("/sys")) -> None:
        self._sys_root = sys_root
        self._nvidia = nvidia.Session()

    def read(self) -> Reading:
        """Blocks. Never raises; what does not answer is missing."""
        gpus, process_bytes = self._nvidia.read()
        return Reading(
            gpus + amd.probe(self._sys_root) + apple.probe(), {**amd.process_bytes(self._sys_root), **process_bytes}
        )

    def close(self) -> None:
        self._nvidia.close()
