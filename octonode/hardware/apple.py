"""The GPU of a Mac with Apple silicon, by `sysctl`: it shares the machine's memory. Written from documentation.

Metal lets a process use two thirds of the memory, three quarters from 36 GB on (`recommendedMaxWorkingSetSize`), unless
`iogpu.wired_limit_mb` says otherwise. Load, temperature and power need root (`powermetrics`) and are left out.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import psutil

from octonode.hardware.facts import Gpu

SYSCTL_SECONDS = 5.0
LARGE_BYTES = 36 * 2**30

Sysctl = Callable[[str], str | None]


def probe(system: str = sys.platform, sysctl: Sysctl | None = None) -> tuple[Gpu, ...]:
    """The one GPU, or none on any other machine. Never raises."""
    if system != "darwin":
        return ()
    ask = sysctl or _sysctl
    chip = ask("machdep.cpu.brand_string") or ""
    total = _number(ask("hw.memsize"))
    if not chip.startswith("Apple") or total is None:
        return ()  # Intel Macs: their cards are not looked at
    limit = _number(ask("iogpu.wired_limit_mb"))
    usable = limit * 2**20 if limit else total * 3 // 4 if total >= LARGE_BYTES else total * 2 // 3
    memory = psutil.virtual_memory()
    return (
        Gpu(
            vendor="apple",
            index=0,
            name=chip,
            memory_bytes=min(usable, total),
            memory_used_bytes=max(0, min(usable, total) - memory.available),
        ),
    )


def _sysctl(name: str) -> str | None:
    try:
        done = subprocess.run(
            ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=SYSCTL_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
