"""NVIDIA GPUs by NVML, through nvidia-ml-py (which imports as pynvml).

Every field of every device may answer NotSupported or FunctionNotFound, by card, driver, virtualization and MIG: each
is None then and the others stand. No driver means no NVIDIA GPU, which is no error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from octonode.hardware.facts import Gpu, GpuPartition

log = logging.getLogger(__name__)

GPUS_MAX = 64
PARTITIONS_MAX = 16
"""Of one GPU; NVIDIA's largest parts allow 7."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NvidiaFacts:
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda_version: str | None = None
    problem: str | None = None
    """A driver that is there and does not answer."""


def probe() -> NvidiaFacts:
    """All NVIDIA GPUs of this machine. Blocks, for seconds where the driver must wake the cards first. Never raises."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED):
            return NvidiaFacts()
        return NvidiaFacts(problem=_problem(pynvml, error))
    try:
        count = _ask(pynvml, pynvml.nvmlDeviceGetCount) or 0
        gpus = tuple(gpu for index in range(min(count, GPUS_MAX)) if (gpu := _gpu(pynvml, index)) is not None)
        cuda = _ask(pynvml, pynvml.nvmlSystemGetCudaDriverVersion_v2)
        mute = count - len(gpus)
        return NvidiaFacts(
            gpus=gpus,
            driver=_ask(pynvml, pynvml.nvmlSystemGetDriverVersion),
            cuda_version=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
            problem=f"{mute} of {count} NVIDIA GPUs do not answer; see: nvidia-smi" if mute else None,
        )
    finally:
        _ask(pynvml, pynvml.nvmlShutdown)


def _problem(pynvml: Any, error: Any) -> str:
    if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return "the NVIDIA driver was updated and the old one still runs; restart the machine"
    if error.value == pynvml.NVML_ERROR_NO_PERMISSION:
        return "this user may not use the NVIDIA driver; add it to the group that owns /dev/nvidia*"
    return f"the NVIDIA driver does not answer ({error}); see: nvidia-smi"


def _ask(pynvml: Any, call: Callable[..., T], *arguments: Any) -> T | None:
    """What `call` returns, or None for whatever NVML has against it. ValueError: a name that is not UTF-8."""
    try:
        return call(*arguments)
    except (pynvml.NVMLError, ValueError) as error:
        log.debug("%s: %s", getattr(call, "__name__", call), error)
        return None


def _gpu(pynvml: Any, index: int) -> Gpu | None:
    handle = _ask(pynvml, pynvml.nvmlDeviceGetHandleByIndex, index)
    if handle is None:
        return None
    memory = _ask(pynvml, pynvml.nvmlDeviceGetMemoryInfo, handle)
    rates = _ask(pynvml, pynvml.nvmlDeviceGetUtilizationRates, handle)
    milliwatts = _ask(pynvml, pynvml.nvmlDeviceGetPowerUsage, handle)
    mig = _ask(pynvml, pynvml.nvmlDeviceGetMigMode, handle)
    partitioned = mig is not None and mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    return Gpu(
        vendor="nvidia",
        index=index,
        name=_ask(pynvml, pynvml.nvmlDeviceGetName, handle),
        uuid=_ask(pynvml, pynvml.nvmlDeviceGetUUID, handle),
        memory_bytes=None if memory is None else int(memory.total),
        memory_used_bytes=None if memory is None else int(memory.used),
        utilization_percent=None if rates is None else int(rates.gpu),
        temperature_celsius=_ask(pynvml, pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        power_watts=None if milliwatts is None else milliwatts / 1000,
        compute_capability=_ask(pynvml, pynvml.nvmlDeviceGetCudaComputeCapability, handle),
        partitioned=partitioned,
        partitions=_partitions(pynvml, handle) if partitioned else (),
    )


def _partitions(pynvml: Any, handle: Any) -> tuple[GpuPartition, ...]:
    """MIG instances; slots without one answer NotFound."""
    slots = _ask(pynvml, pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
    found = []
    for slot in range(min(slots, PARTITIONS_MAX)):
        instance = _ask(pynvml, pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot)
        if instance is None:
            continue
        memory = _ask(pynvml, pynvml.nvmlDeviceGetMemoryInfo, instance)
        found.append(
            GpuPartition(
                uuid=_ask(pynvml, pynvml.nvmlDeviceGetUUID, instance),
                name=_ask(pynvml, pynvml.nvmlDeviceGetName, instance),
                memory_bytes=None if memory is None else int(memory.total),
            )
        )
    return tuple(found)
