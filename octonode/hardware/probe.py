"""What this machine is: CPU, memory, disk, GPUs. Reads only; a missing fact is a None or a default, never an error."""

from __future__ import annotations

import platform
import re
import shutil
from pathlib import Path

import psutil

from octonode.hardware import amd, apple, nvidia
from octonode.hardware.cores import logical_cores, physical_cores
from octonode.hardware.facts import Cpu, Gpu, GpuPartition, Hardware, summary

__all__ = ["Cpu", "Gpu", "GpuPartition", "Hardware", "probe", "summary"]

INSTRUCTION_SETS: tuple[tuple[str, str], ...] = (
    ("avx", "avx"),
    ("avx2", "avx2"),
    ("fma", "fma"),
    ("f16c", "f16c"),
    ("avx512", "avx512f"),
    ("avx512_vnni", "avx512_vnni"),
    ("avx512_bf16", "avx512_bf16"),
    ("amx", "amx_int8"),
    ("neon", "asimd"),
    ("sve", "sve"),
)
"""(our name, the kernel's flag in /proc/cpuinfo), in the order they are shown."""


def probe(home: Path, *, proc: Path = Path("/proc"), sys_root: Path = Path("/sys")) -> Hardware:
    """The machine as it is now. Blocks (NVML may need seconds to wake a card): call it in a thread. Never raises.

    `home` need not exist; the disk is that of its nearest parent that does. `proc` and `sys_root` are for tests.
    """
    found = nvidia.probe()
    total_bytes, available_bytes = memory(sys_root)
    disk_total_bytes, disk_free_bytes = _disk(home)
    return Hardware(
        cpu=_cpu(proc),
        memory_bytes=total_bytes,
        memory_available_bytes=available_bytes,
        disk_total_bytes=disk_total_bytes,
        disk_free_bytes=disk_free_bytes,
        gpus=found.gpus + amd.probe(sys_root) + apple.probe(),
        nvidia_driver=found.driver,
        cuda_version=found.cuda_version,
        problems=(found.problem,) if found.problem else (),
    )


def memory(sys_root: Path = Path("/sys")) -> tuple[int, int]:
    """(bytes that this process may use, bytes of them that are free or can be freed). Quick."""
    found = psutil.virtual_memory()
    limit = _group_memory_bytes(sys_root)
    total_bytes = min(found.total, limit) if limit is not None else found.total
    return total_bytes, min(found.available, total_bytes)


def _cpu(proc: Path) -> Cpu:
    try:
        text = (proc / "cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    flags = set((_field(text, "flags") or _field(text, "Features") or "").split())
    return Cpu(
        model=_field(text, "model name") or platform.processor() or platform.machine() or "unknown",
        cores_physical=physical_cores(),
        cores_logical=logical_cores(),
        instruction_sets=tuple(name for name, flag in INSTRUCTION_SETS if flag in flags),
    )


def _field(cpuinfo: str, name: str) -> str | None:
    """Of the first processor listed; mixed cores of one machine are not told apart."""
    match = re.search(rf"^{re.escape(name)}[ \t]*:[ \t]*(.+)$", cpuinfo, re.MULTILINE)
    return " ".join(match[1].split()) if match else None


def _group_memory_bytes(sys_root: Path) -> int | None:
    """The limit of our control group as a container sees it (version 2, then 1), or None."""
    for name in ("fs/cgroup/memory.max", "fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = (sys_root / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        return int(text) if text.isdigit() and int(text) > 0 else None
    return None


def _disk(home: Path) -> tuple[int, int]:
    """(total, free for us) in bytes; zeros where even the root cannot be asked."""
    for place in (home, *home.absolute().parents):
        try:
            usage = shutil.disk_usage(place)
        except OSError:
            continue
        return usage.total, usage.free
    return 0, 0
