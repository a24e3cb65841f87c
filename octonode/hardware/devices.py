"""What one engine process can be given of the GPUs: a whole one, or a MIG instance. Pure.

A device is named as the environment of a process names it, behind the interface that reads it: `cuda:0`, `hip:0`,
`cuda:MIG-...`, `metal:0`. Whole NVIDIA GPUs go by index in the order of the PCI bus, which is NVML's: vLLM of 2026 dies
of a UUID. MIG instances have nothing but their UUID. AMD's index is taken as the rank by PCI address. Numbers in a
`CUDA_VISIBLE_DEVICES` of the daemon's own are read in the order of the PCI bus too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from octonode.hardware.facts import Gpu

INTERFACES: Final = {"nvidia": "cuda", "amd": "hip", "apple": "metal"}
NO_GPU: Final = "cpu"
"""In place of devices: the process must not see any."""


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU or a MIG instance whose memory is known."""

    id: str
    vendor: str
    name: str
    memory_bytes: int
    memory_used_bytes: int
    """By whatever process; 0 where the driver does not say."""
    alone: bool = False
    """A MIG instance: a process sees one of them, and nothing beside it."""


def devices_of(gpus: Iterable[Gpu], environ: Mapping[str, str]) -> tuple[Device, ...]:
    """The devices that processes of ours may use, in the order of the drivers.

    Those that `CUDA_VISIBLE_DEVICES` or `HIP_VISIBLE_DEVICES` keep from us are left out, those that do not tell their
    memory, and with `ROCR_VISIBLE_DEVICES`, which renumbers them, all of AMD: their owner has placed them already.
    """
    gpus = tuple(gpu for gpu in gpus if gpu.vendor != "amd" or "ROCR_VISIBLE_DEVICES" not in environ)
    nvidia = [each for gpu in gpus if gpu.vendor == "nvidia" for each in _of_nvidia(gpu)]
    amd = sorted((gpu for gpu in gpus if gpu.vendor == "amd"), key=lambda gpu: (gpu.uuid or "", gpu.index))
    hip = [(_whole(gpu, f"hip:{rank}"), (str(rank),)) for rank, gpu in enumerate(amd)]
    metal = [_whole(gpu, f"metal:{gpu.index}") for gpu in gpus if gpu.vendor == "apple"]
    found = (
        *_visible(nvidia, environ.get("CUDA_VISIBLE_DEVICES")),
        *_visible(hip, environ.get("HIP_VISIBLE_DEVICES")),
        *metal,
    )
    return tuple(each for each in found if each.memory_bytes)


def environment(devices: Sequence[str]) -> dict[str, str]:
    """Variables for a process that may see `devices` and no others; `cpu`: none at all. Empty: nothing was chosen."""
    if not devices:
        return {}
    chosen: dict[str, list[str]] = {"cuda": [], "hip": []}
    for device in devices:
        interface, _, name = device.partition(":")
        if interface in chosen:
            chosen[interface].append(name)
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(chosen["cuda"]),
        "HIP_VISIBLE_DEVICES": ",".join(chosen["hip"]) or "-1",  # ROCm takes an empty text for no wish
    }


def _of_nvidia(gpu: Gpu) -> Iterable[tuple[Device, tuple[str, ...]]]:
    """Each device with the names by which CUDA_VISIBLE_DEVICES may mean it."""
    if not gpu.partitioned:
        yield _whole(gpu, f"cuda:{gpu.index}"), (str(gpu.index), *([gpu.uuid] if gpu.uuid else []))
        return
    for part in gpu.partitions:
        if part.uuid:
            size, used = part.memory_bytes or 0, part.memory_used_bytes or 0
            yield Device(f"cuda:{part.uuid}", "nvidia", part.name or "MIG", size, used, alone=True), (part.uuid,)


def _whole(gpu: Gpu, name: str) -> Device:
    return Device(name, gpu.vendor, gpu.name or gpu.vendor, gpu.memory_bytes or 0, gpu.memory_used_bytes or 0)


def _visible(known: Sequence[tuple[Device, tuple[str, ...]]], wish: str | None) -> Iterable[Device]:
    """Those named by a variable; an unknown name ends the list, as it does for the drivers. None: all."""
    if wish is None:
        return [device for device, _ in known]
    found: list[Device] = []
    for entry in wish.split(","):
        name = entry.strip()
        meant = [device for device, names in known if name and any(_means(name, each) for each in names)]
        if len(meant) != 1:
            break
        found += meant
    return found


def _means(wish: str, name: str) -> bool:
    """A UUID may be shortened, an index may not."""
    return wish == name or (not wish.isdecimal() and name.startswith(wish))
