"""NVIDIA GPUs by NVML, through nvidia-ml-py (which imports as pynvml).

Every field of every device may answer NotSupported or FunctionNotFound, by card, driver, virtualization and MIG: each
is None then and the others stand. No driver means no NVIDIA GPU, which is no error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from octonode.hardware.facts import Gpu, GpuPartition

log = logging.getLogger(__name__)

GPUS_MAX = 64
PARTITIONS_MAX = 16
"""Of one GPU; NVIDIA's largest parts allow 7."""
PROCESSES_MAX = 4096
"""Of one GPU that are looked at."""

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
        gpus = tuple(_gpu(pynvml, index, handle) for index, handle in _handles(pynvml, count))
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


class Session:
    """NVML kept open between readings, since opening it may wake the cards. Blocking: used by one thread at a time."""

    def __init__(self) -> None:
        self._pynvml: Any = None

    def read(self) -> tuple[tuple[Gpu, ...], Mapping[int, int]]:
        """The GPUs now, and the bytes that each process holds on all of them together, by process id. Never raises.

        Nothing where there is no driver, or it went away: the next reading tries again. A driver in a container tells
        the process ids of the host, and some drivers tell no bytes: such processes are not here.
        """
        pynvml = self._pynvml or self._open()
        count = _ask(pynvml, pynvml.nvmlDeviceGetCount) if pynvml is not None else None
        if not count:
            self.close()
            return (), {}
        handles = list(_handles(pynvml, count))
        by_process: dict[int, int] = {}
        for _, handle in handles:
            for user in _processes(pynvml, handle):
                if user.usedGpuMemory is not None:
                    by_process[user.pid] = by_process.get(user.pid, 0) + int(user.usedGpuMemory)
        return tuple(_gpu(pynvml, index, handle) for index, handle in handles), by_process

    def close(self) -> None:
        """Lets NVML go. Harmless when it is not open."""
        pynvml, self._pynvml = self._pynvml, None
        if pynvml is not None:
            _ask(pynvml, pynvml.nvmlShutdown)

    def _open(self) -> Any:
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            log.debug("NVML: %s", error)
            return None
        self._pynvml = pynvml
        return pynvml


def _problem(pynvml: Any, error: Any) -> str:
    if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return "the NVIDIA driver was updated and the old one still runs; restart the machine"
    if error.value == pynvml.NVML_ERROR_NO_PERMISSION:
        return "this user may not use the NVIDIA driver; add it to the group that owns /dev/nvidia*"
    return f"the NVIDIA driver does not answer ({error}); see: nvidia-smi"


def _ask(pynvml: Any, call: Callable[..., T], *arguments: Any) -> T | None:
    """What `call` returns, or None for whatever NVML has against it.

    ValueError: a name that is not UTF-8. NVMLLibraryMismatchError, which is no NVMLError: the driver is too old for it.
    """
    try:
        return call(*arguments)
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError, ValueError) as error:
        log.debug("%s: %s", getattr(call, "__name__", call), error)
        return None


def _handles(pynvml: Any, count: int) -> Iterator[tuple[int, Any]]:
    """(index, handle) of each GPU that answers."""
    for index in range(min(count, GPUS_MAX)):
        handle = _ask(pynvml, pynvml.nvmlDeviceGetHandleByIndex, index)
        if handle is not None:
            yield index, handle


def _processes(pynvml: Any, handle: Any) -> list[Any]:
    """What computes on a GPU; with MIG what computes on its instances, which the GPU itself tells root alone."""
    found: list[Any] = []
    for each in [instance for _, instance in _instances(pynvml, handle)] or [handle]:
        users = _ask(pynvml, pynvml.nvmlDeviceGetComputeRunningProcesses_v3, each)
        if users is None:  # drivers before 510
            users = _ask(pynvml, pynvml.nvmlDeviceGetComputeRunningProcesses_v2, each)
        found += (users or ())[:PROCESSES_MAX]
    return found


def _gpu(pynvml: Any, index: int, handle: Any) -> Gpu:
    memory = _ask(pynvml, pynvml.nvmlDeviceGetMemoryInfo, handle)
    rates = _ask(pynvml, pynvml.nvmlDeviceGetUtilizationRates, handle)
    milliwatts = _ask(pynvml, pynvml.nvmlDeviceGetPowerUsage, handle)
    partitioned = _is_partitioned(pynvml, handle)
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


def _is_partitioned(pynvml: Any, handle: Any) -> bool:
    mig = _ask(pynvml, pynvml.nvmlDeviceGetMigMode, handle)
    return mig is not None and mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE


def _instances(pynvml: Any, handle: Any) -> Iterator[tuple[int, Any]]:
    """(slot, handle) of each MIG instance of a GPU in MIG mode; slots without one answer NotFound."""
    slots = _ask(pynvml, pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) if _is_partitioned(pynvml, handle) else 0
    for slot in range(min(slots or 0, PARTITIONS_MAX)):
        instance = _ask(pynvml, pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot)
        if instance is not None:
            yield slot, instance


def _partitions(pynvml: Any, handle: Any) -> tuple[GpuPartition, ...]:
    found = []
    for _, instance in _instances(pynvml, handle):
        memory = _ask(pynvml, pynvml.nvmlDeviceGetMemoryInfo, instance)
        found.append(
            GpuPartition(
                uuid=_ask(pynvml, pynvml.nvmlDeviceGetUUID, instance),
                name=_ask(pynvml, pynvml.nvmlDeviceGetName, instance),
                memory_bytes=None if memory is None else int(memory.total),
                memory_used_bytes=None if memory is None else int(memory.used),
            )
        )
    return tuple(found)
