"""Why does my node see nobody, get no work, or not start? One finding a check, each with the fix in a line.

`examine_machine` needs no daemon; `examine_node` adds what only a running one knows.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence

import psutil

from octonode.api.schema import Finding
from octonode.config import Config, split_host_port
from octonode.engines.select import available_engines, default_threads

DISK_WARNING_BYTES = 5_000_000_000
MEMORY_WARNING_BYTES = 2_000_000_000


def examine_machine(config: Config, *, daemon_runs: bool = False) -> list[Finding]:
    """Home, disk, memory, engines, driver; ports too while no daemon holds them."""
    findings = [_home(config), _disk(config), _memory(), _engines(), _driver()]
    if not daemon_runs:
        findings += [_port(name, getattr(config, name).listen) for name in ("api", "network", "gateway")]
        findings.append(Finding("daemon", "warning", "no daemon runs on this home", "octonode start"))
    return findings


def _home(config: Config) -> Finding:
    key = config.home / "node.key"
    if key.exists() and key.stat().st_mode & 0o077:
        return Finding("key", "failed", f"{key} can be read by others", f"chmod 600 {key}")
    return Finding("key", "ok", str(key) if key.exists() else "none yet; it is made at the first start")


def _disk(config: Config) -> Finding:
    place = config.home if config.home.exists() else config.home.parent
    free = shutil.disk_usage(place if place.exists() else "/").free
    text = f"{free / 1e9:.1f} GB free for models in {config.home}"
    if free < DISK_WARNING_BYTES:
        return Finding("disk", "warning", text, "free some space, or move OCTONODE_HOME to a larger disk")
    return Finding("disk", "ok", text)


def _memory() -> Finding:
    available = psutil.virtual_memory().available
    text = f"{available / 1e9:.1f} GB of memory available"
    if available < MEMORY_WARNING_BYTES:
        return Finding("memory", "warning", text, "close other programs, or serve a smaller model")
    return Finding("memory", "ok", text)


def _engines() -> Finding:
    real = [name for name in available_engines() if name != "scripted"]
    if not real:
        return Finding(
            "engines", "warning", "no engine is installed: this node asks and routes, and serves nothing", "pip install 'octonode[llama]'"
        )
    return Finding("engines", "ok", f"{', '.join(real)}; {default_threads()} threads a worker")


def _driver() -> Finding:
    from octonode.hardware.probe import probe

    hardware = probe()
    if hardware.gpus:
        return Finding("driver", "ok", "; ".join(gpu.name for gpu in hardware.gpus))
    return Finding("driver", "ok", "no GPU found: models run on the CPU")


def _port(section: str, listen: str) -> Finding:
    host, port = split_host_port(listen, f"{section}.listen")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    flag = {"api": "--api", "network": "--p2p", "gateway": "--gateway"}[section]
    with socket.socket(family, socket.SOCK_STREAM) as probe_socket:
        probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe_socket.bind((host, port))
        except OSError as error:
            fix = f"end what uses it, or start with {flag} {host}:0"
            return Finding(f"port {section}", "failed", f"{listen}: {error.strerror}", fix)
    return Finding(f"port {section}", "ok", f"{listen} is free")


def clock_finding(offsets_ms: Sequence[int], *, skew_ms_max: int) -> Finding:
    """How far our clock is from the middle of the peers' clocks (their announcements' issue times against arrival)."""
    if not offsets_ms:
        return Finding("clock", "ok", "no peer to compare with")
    offset = sorted(offsets_ms)[len(offsets_ms) // 2]
    if abs(offset) > skew_ms_max:
        way = "behind" if offset > 0 else "ahead of"
        text = f"this machine's clock is {abs(offset) / 1000:.0f} s {way} its peers': they refuse our messages"
        return Finding("clock", "failed", text, "turn on time synchronisation: timedatectl set-ntp true")
    return Finding("clock", "ok", f"within {abs(offset) / 1000:.1f} s of {len(offsets_ms)} peers")
