"""What a probe finds: frozen facts about one machine, and the few of them that are announced. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from octonode.hardware import tiers

NAME_CHARS_MAX = 64
"""Of a GPU's or CPU's name in a summary; the announcement takes texts of this size."""


@dataclass(frozen=True, slots=True)
class GpuPartition:
    """A MIG instance."""

    uuid: str | None
    name: str | None
    memory_bytes: int | None
    memory_used_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One graphics processor. None stands wherever the driver does not say."""

    vendor: str
    """`nvidia`, `amd` or `apple`."""
    index: int
    """Its number at the driver."""
    name: str | None = None
    uuid: str | None = None
    """NVML's UUID; the PCI address of an AMD card."""
    memory_bytes: int | None = None
    """All of it, used or not."""
    memory_used_bytes: int | None = None
    utilization_percent: int | None = None
    temperature_celsius: int | None = None
    power_watts: float | None = None
    compute_capability: tuple[int, int] | None = None
    """CUDA's, (8, 9) for an L4; FP8 begins there."""
    partitioned: bool = False
    """MIG is on: the GPU is used through `partitions` only."""
    partitions: tuple[GpuPartition, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuLive:
    """How one GPU, or one MIG instance of it, does now. None stands wherever the driver does not say."""

    vendor: str
    index: int
    """Of the GPU, at its driver."""
    part: int | None = None
    """The MIG instance, counted from 0; None: the whole GPU."""
    name: str | None = None
    memory_bytes: int | None = None
    memory_used_bytes: int | None = None
    utilization_percent: int | None = None
    temperature_celsius: int | None = None
    power_watts: float | None = None

    @property
    def label(self) -> str:
        """`0`, or `0.1` for the second MIG instance of the first GPU."""
        return str(self.index) if self.part is None else f"{self.index}.{self.part}"


@dataclass(frozen=True, slots=True)
class Cpu:
    model: str
    cores_physical: int
    """Physical cores that this process may use, at least 1."""
    cores_logical: int
    instruction_sets: tuple[str, ...]
    """Those that matter to engines, in the order of `probe.INSTRUCTION_SETS`."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """One machine as its node sees it."""

    cpu: Cpu
    memory_bytes: int
    """Memory that this process may use: the machine's, or its control group's limit."""
    memory_available_bytes: int
    disk_total_bytes: int
    disk_free_bytes: int
    """Of the file system that holds the node's home."""
    gpus: tuple[Gpu, ...] = ()
    nvidia_driver: str | None = None
    cuda_version: str | None = None
    """The newest CUDA that the driver runs, such as `12.8`."""
    problems: tuple[str, ...] = ()
    """What is there and does not work, with what to do about it; `doctor` shows these."""

    @property
    def usable_vram_bytes(self) -> int:
        return tiers.usable_vram_bytes(self.gpus)

    @property
    def tier(self) -> tiers.Tier:
        return tiers.tier_of(self.usable_vram_bytes)


def live(gpus: Iterable[Gpu]) -> tuple[GpuLive, ...]:
    """The readings of each GPU, and behind a partitioned one those of its MIG instances, which have memory alone."""
    found: list[GpuLive] = []
    for gpu in gpus:
        found.append(
            GpuLive(
                gpu.vendor,
                gpu.index,
                None,
                gpu.name,
                gpu.memory_bytes,
                gpu.memory_used_bytes,
                gpu.utilization_percent,
                gpu.temperature_celsius,
                gpu.power_watts,
            )
        )
        found += [
            GpuLive(gpu.vendor, gpu.index, number, part.name, part.memory_bytes, part.memory_used_bytes)
            for number, part in enumerate(gpu.partitions)
        ]
    return tuple(found)


def summary(hardware: Hardware) -> dict[str, str | int | float | bool]:
    """The few facts peers choose by: flat, at most 12 keys, under 512 bytes, no serial numbers."""
    facts: dict[str, str | int | float | bool] = {
        "cpu": hardware.cpu.model[:NAME_CHARS_MAX],
        "cores": hardware.cpu.cores_physical,
        "instruction_sets": " ".join(hardware.cpu.instruction_sets)[:NAME_CHARS_MAX],
        "memory_bytes": hardware.memory_bytes,
        "disk_free_bytes": hardware.disk_free_bytes,
        "gpus": len(hardware.gpus),
        "vram_bytes": hardware.usable_vram_bytes,
        "standing": tiers.standing(hardware.tier),
    }
    first = next(iter(sorted(hardware.gpus, key=lambda gpu: -(gpu.memory_bytes or 0))), None)
    if first is not None:
        facts["gpu"] = (first.name or first.vendor)[:NAME_CHARS_MAX]
        facts["mig"] = any(gpu.partitioned for gpu in hardware.gpus)
        if first.compute_capability is not None:
            facts["compute_capability"] = "{}.{}".format(*first.compute_capability)
    if hardware.cuda_version is not None:
        facts["cuda"] = hardware.cuda_version
    return facts
