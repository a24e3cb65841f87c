"""AMD GPUs by the amdgpu driver's files under /sys/class/drm, which need no library.

Fields: https://docs.kernel.org/gpu/amdgpu/driver-misc.html. Every file may be missing or refuse: None stands then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from octonode.hardware.facts import Gpu

AMD_VENDOR_ID = "0x1002"
_CARD = re.compile(r"card(\d+)")


def probe(sys_root: Path = Path("/sys")) -> tuple[Gpu, ...]:
    """All AMD GPUs of this machine, by rising card number. Never raises."""
    try:
        places = list((sys_root / "class/drm").iterdir())
    except OSError:
        return ()
    cards = sorted((int(match[1]), path / "device") for path in places if (match := _CARD.fullmatch(path.name)))
    return tuple(_gpu(index, device) for index, device in cards if _text(device / "vendor") == AMD_VENDOR_ID)


def process_bytes(sys_root: Path = Path("/sys")) -> Mapping[int, int]:
    """Bytes that each process of ROCm holds on all AMD GPUs together, by process id. Never raises.

    The compute driver (amdkfd) has a folder for each process, with a file `vram_<id of the GPU>` for each GPU.
    """
    found: dict[int, int] = {}
    for file in (sys_root / "class/kfd/kfd/proc").glob("*/vram_*"):
        held, process = _number(file), file.parent.name
        if held is not None and process.isdecimal():
            found[int(process)] = found.get(int(process), 0) + held
    return found


def _gpu(index: int, device: Path) -> Gpu:
    sensors = next(iter(sorted(device.glob("hwmon/hwmon*"))), device / "hwmon")
    millidegrees = _number(sensors / "temp1_input")
    microwatts = _number(sensors / "power1_average")
    if microwatts is None:
        microwatts = _number(sensors / "power1_input")  # newer cards tell only this one
    return Gpu(
        vendor="amd",
        index=index,
        name=_text(device / "product_name"),
        uuid=_pci_address(device),
        memory_bytes=_number(device / "mem_info_vram_total"),
        memory_used_bytes=_number(device / "mem_info_vram_used"),
        utilization_percent=_number(device / "gpu_busy_percent"),
        temperature_celsius=None if millidegrees is None else millidegrees // 1000,
        power_watts=None if microwatts is None else microwatts / 1e6,
    )


def _pci_address(device: Path) -> str | None:
    for line in (_text(device / "uevent") or "").splitlines():
        if line.startswith("PCI_SLOT_NAME="):
            return line.removeprefix("PCI_SLOT_NAME=")
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip() or None
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
