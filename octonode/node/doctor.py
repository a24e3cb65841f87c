"""Why does my node see nobody, get no work, or not start? One finding a check, each with the fix in a line.

`examine_machine` needs no daemon; `examine_node` adds what only a running one knows.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import trio

from octonode.api.schema import Finding
from octonode.config import Config, split_host_port
from octonode.engines.installing import PLATFORM_NAMES, advise, gpu_kinds, installed
from octonode.engines.select import available_engines, default_threads, python_for
from octonode.engines.supervisor import Supervisor
from octonode.hardware.facts import Hardware
from octonode.models.disk import disk_error
from octonode.models.disk import probe as probe_disk
from octonode.models.placing import FREE_BYTES_MARGIN
from octonode.network import reachability
from octonode.network.announcer import Announcer
from octonode.network.clock import Chance, wall_clock_ms
from octonode.network.hello import Hello
from octonode.network.host import Host
from octonode.network.membership import Membership
from octonode.network.peerbook import Peerbook

CLOCK_WARNING_MS = 5_000
DISK_WARNING_BYTES = 5_000_000_000
MEMORY_WARNING_BYTES = 2_000_000_000


def examine_machine(config: Config, *, daemon_runs: bool = False) -> list[Finding]:
    """Home, disk, memory, engines, driver, what else could run here; ports too while no daemon holds them."""
    from octonode.hardware.probe import probe

    hardware = probe(config.home)
    findings = [_home(config), _disk(config), _memory(), _engines(config), _driver(hardware), *_storage(config)]
    findings += engines_for(hardware, config)
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
    models = config.home / "models"
    if models.exists():
        place = models
        fault = probe_disk(models)
        if fault is not None:
            return Finding("disk", "failed", disk_error(fault, models).message, "octonode models gc --free SIZE")
    free = shutil.disk_usage(place if place.exists() else "/").free
    text = f"{free / 1e9:.1f} GB free for models in {config.home}"
    if free < FREE_BYTES_MARGIN:
        return Finding("disk", "failed", text, "octonode models gc --free SIZE, or move OCTONODE_HOME to a larger disk")
    if free < DISK_WARNING_BYTES:
        return Finding("disk", "warning", text, "free some space, or move OCTONODE_HOME to a larger disk")
    return Finding("disk", "ok", text)


def _memory() -> Finding:
    available = psutil.virtual_memory().available
    text = f"{available / 1e9:.1f} GB of memory available"
    if available < MEMORY_WARNING_BYTES:
        return Finding("memory", "warning", text, "close other programs, or serve a smaller model")
    return Finding("memory", "ok", text)


def _storage(config: Config) -> list[Finding]:
    settings = config.storage
    if config.node.role != "storage" and not settings.allowed_peers:
        return []
    if not settings.allowed_peers:
        return [
            Finding(
                "storage",
                "warning",
                "nobody may pin models here",
                "list the peer ids (octonode id) in storage.allowed_peers, and start the node again",
            )
        ]
    whole = f"{settings.bytes_max / 1e9:.1f} GB" if settings.bytes_max else "what the disk has"
    share = f", {settings.bytes_per_peer_max / 1e9:.1f} GB each" if settings.bytes_per_peer_max else ""
    text = f"{len(settings.allowed_peers)} peers may pin models here: {whole} in all{share}"
    if not (config.gateway.enabled or config.bitswap.enabled):
        return [Finding("storage", "failed", f"{text}; nobody can fetch them", "set gateway.enabled = true")]
    return [Finding("storage", "ok", text)]


def _engines(config: Config) -> Finding:
    if config.node.role == "storage":
        return Finding("engines", "ok", "none needed: this node keeps models (node.role = storage)")
    real = [name for name in available_engines(config.engines.pythons) if name != "scripted"]
    if not real:
        return Finding(
            "engines",
            "warning",
            "no engine is installed: this node asks and routes, and serves nothing",
            "pip install 'octonode[llama]'",
        )
    return Finding("engines", "ok", f"{', '.join(real)}; {default_threads()} threads a worker")


def _driver(hardware: Hardware) -> Finding:
    if hardware.problems:
        return Finding(
            "driver", "warning", hardware.problems[0], "install or repair the driver, then start the node again"
        )
    if hardware.gpus:
        names = "; ".join(gpu.name or gpu.vendor for gpu in hardware.gpus)
        knows = f" for CUDA {hardware.cuda_version}" if hardware.cuda_version else ""
        version = f"; NVIDIA driver {hardware.nvidia_driver or ''}{knows}" if hardware.nvidia_driver or knows else ""
        return Finding("driver", "ok", names + version)
    return Finding("driver", "ok", "no GPU found: models run on the CPU")


def engines_for(hardware: Hardware, config: Config) -> list[Finding]:
    """What else this machine could run and what to type for it; first what leaves a GPU idle."""
    if config.node.role == "storage":
        return []
    idle, others = [], []
    for advice in advise(hardware):
        package, way = advice.package, advice.way
        here = installed(package) or any(python_for(name, config.engines.pythons) for name in package.engines)
        on_gpu = way is not None and way.platform != "cpu"
        name = f"engine {package.name}"
        if here and on_gpu and way is not None and not any(_uses_gpu(each, config) for each in package.engines):
            place = PLATFORM_NAMES[way.platform]
            text = f"it is installed for the CPU alone, and a GPU of {place} is here"
            idle.append(Finding(name, "warning", text, way.command))
        elif not here and way is not None:
            where = f"on the GPU ({PLATFORM_NAMES[way.platform]})" if on_gpu else "on the CPU"
            text = f"not installed; would run here {where}: {package.runs}"
            text += f"; needs {way.needs}" if way.needs else ""
            text += f"; {advice.lacks}" if advice.lacks else ""
            others.append(Finding(name, "ok", text, way.command))
        elif not here:
            others.append(Finding(name, "ok", f"cannot run here: {advice.lacks}"))
    return [*idle, *others]


def _uses_gpu(engine: str, config: Config) -> bool:
    return bool(gpu_kinds(engine, elsewhere=bool(python_for(engine, config.engines.pythons))))


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


@dataclass(frozen=True, slots=True)
class Doctor:
    """The checks of a running node."""

    config: Config
    host: Host
    hello: Hello
    peerbook: Peerbook
    membership: Membership
    announcer: Announcer
    supervisor: Supervisor
    random: Chance

    async def examine(self) -> list[Finding]:
        """Everything, dial-back by up to three peers among it. Takes at most 20 s."""
        machine = await trio.to_thread.run_sync(lambda: examine_machine(self.config, daemon_runs=True))
        return [*machine, *self._peers(), self._clock(), self._announcing(), await self._reachable(), *self._workers()]

    def _peers(self) -> list[Finding]:
        report = self.membership.report()
        text = f"{report.connected} connected, {report.known} known"
        if not report.findings:
            return [Finding("peers", "ok", text)]
        return [Finding("peers", "warning" if report.connected else "failed", text, report.findings[0])] + [
            Finding("peers", "warning", said) for said in report.findings[1:]
        ]

    def _clock(self) -> Finding:
        now_ms = wall_clock_ms()
        ages = [now_ms - each.issued_at_ms for each in self.peerbook.peers(now_ms)]
        ahead = sum(age < -CLOCK_WARNING_MS for age in ages)
        refused = any("clock" in said for said in self.membership.report().findings)
        # One stranger with a wrong clock says nothing of ours, where others agree with us.
        if 2 * ahead > len(ages) or (refused and not ages):
            return Finding(
                "clock",
                "failed",
                "peers' clocks and ours differ",
                "turn on time synchronisation: timedatectl set-ntp true",
            )
        return Finding("clock", "ok", f"agrees with {len(ages)} peers" if ages else "no peer to compare with yet")

    def _announcing(self) -> Finding:
        status = self.announcer.status
        failed = [f"{record.kind} {record.label[:24]}: {record.reason}" for record in status.records if record.failures]
        if status.fault:
            return Finding("announcing", "failed", status.fault, "free disk space and look at: octonode logs")
        if failed:
            return Finding(
                "announcing",
                "warning",
                "; ".join(failed[:3]),
                "it is tried again by itself; more peers help: octonode join LINE",
            )
        return Finding("announcing", "ok", f"{len(status.records)} records, told to {status.pushed} peers")

    async def _reachable(self) -> Finding:
        found = await reachability.check(self.host, self.hello, self.random)
        status = {"reachable": "ok", "local": "ok", "unreachable": "failed", "unknown": "warning"}[found.state]
        return Finding("reachable", status, found.reason, found.advice)  # type: ignore[arg-type]

    def _workers(self) -> list[Finding]:
        found = []
        for worker in self.supervisor.status():
            name = f"worker {worker.model_root[:16]}"
            if worker.state == "ready":
                text = f"{worker.engine}, pid {worker.pid}, isolation {worker.isolation} ({', '.join(worker.sandbox)})"
                held = worker.isolation == "full"
                found.append(Finding(name, "ok" if held else "warning", text, "" if held else tighter(worker.sandbox)))
            else:
                fix = "octonode logs" if worker.state in ("crashed", "quarantined") else ""
                found.append(Finding(name, "failed" if fix else "warning", f"{worker.state}: {worker.reason}", fix))
        return found


def tighter(layers: Sequence[str]) -> str:
    """What to do about a worker that is not held by every layer."""
    if any("engines.sandbox = false" in each for each in layers):
        return "octonode config set engines.sandbox true, and start the node again"
    if any(each.startswith("sandbox: off") for each in layers):
        return "run the node as a user of its own or in a container: this engine cannot be held any other way"
    return "use a kernel with Landlock and seccomp (Linux 6.7 or later has both whole)"
