"""The processor cores that this process may use."""

from __future__ import annotations

import os

import psutil


def logical_cores() -> int:
    """Hardware threads, at least 1; fewer than the machine has where this process is bound to some of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores() -> int:
    """Whole cores, at least 1: engines gain nothing by a second thread on one of them."""
    allowed = logical_cores()
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))
