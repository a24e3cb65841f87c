"""What the daemon itself costs: to start, to keep, and with sixteen peers; and how long `--help` takes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import trio

from octonode.client import AsyncClient
from octonode.testing.daemon import Daemon
from scripts.bench.nodes import START_SECONDS, resident_bytes, settings
from scripts.bench.rows import Goal, Row, median

ROUNDS = 5
PEERS = 16
SETTLE_SECONDS = 5.0
MET_SECONDS = 20.0
"""From the last handshake until the first records have been provided."""
WINDOW_SECONDS = 16.0
"""Five of them see every node announce itself anew twice (each 40 s, a third of an announcement's life)."""
IMPORTS = "import octonode.cli.main, octonode.node.main"
CLI = (sys.executable, "-m", "octonode.cli.main")

READY = Goal("daemon_ready", "s", "<=", 2.0, "the same process doing its imports alone; no peers, to the first 200")
IDLE_RSS = Goal("daemon_rss_idle", "MB", "<=", 160, "resident memory of the daemon, no peers, no model")
IDLE_CPU = Goal(
    "daemon_cpu_16_peers", "%", "<=", 1.0, f"one core; an idle daemon connected to {PEERS} peers, windows of 16 s"
)
HELP = Goal("help", "s", "<=", 0.3, "`octonode --help`, as a process")
START_GOALS = (READY, IDLE_RSS)
CPU_GOALS = (IDLE_CPU,)
HELP_GOALS = (HELP,)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def measure_start(folder: Path) -> list[Row]:
    ready, resident = [], []
    for number in range(-1, ROUNDS):
        imports = await trio.to_thread.run_sync(_imports_seconds)
        seconds, size_bytes = await trio.to_thread.run_sync(_start, folder / f"home{number}")
        if number >= 0:
            ready.append(max(0.0, seconds - imports))
            resident.append(size_bytes / 1e6)
    return [READY.row(median(ready), ROUNDS), IDLE_RSS.row(median(resident), ROUNDS)]


def _imports_seconds() -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.perf_counter() - begun


def _start(home: Path) -> tuple[float, int]:
    """(seconds from the start of the process to the first 200 of /healthz, resident bytes when it has settled)."""
    port = free_port()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OCTONODE_")}
    environ |= {"OCTONODE_HOME": str(home), **settings()}
    listen = ["--api", f"127.0.0.1:{port}", "--p2p", "127.0.0.1:0", "--gateway", "127.0.0.1:0"]
    begun = time.perf_counter()
    process = subprocess.Popen(
        [*CLI, "start", *listen], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not _answers(port):
            if process.poll() is not None or time.perf_counter() - begun > START_SECONDS:
                raise RuntimeError(f"the daemon does not answer (exit status {process.poll()})")
            time.sleep(0.005)
        seconds = time.perf_counter() - begun
        time.sleep(SETTLE_SECONDS)
        return seconds, resident_bytes(process.pid)
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


async def measure_cpu(folder: Path) -> list[Row]:
    async with AsyncExitStack() as stack:
        peers: list[Daemon] = []
        for number in range(PEERS):
            bootstrap = ("--bootstrap", peers[0].address) if peers else ()
            node = Daemon(folder / f"peer{number}", *bootstrap, environment=settings())
            peers.append(await stack.enter_async_context(node))
        flags = [part for peer in peers for part in ("--bootstrap", peer.address)]
        watched = await stack.enter_async_context(Daemon(folder / "watched", *flags, environment=settings()))
        with trio.fail_after(START_SECONDS):
            async with AsyncClient.from_home(watched.home) as client:
                while (await client.node()).peers_connected < PEERS:
                    await trio.sleep(0.2)
        await trio.sleep(MET_SECONDS)
        shares = [await _cpu_share(watched.pid) for _ in range(ROUNDS)]
    return [IDLE_CPU.row(100 * median(shares), ROUNDS)]


async def _cpu_share(pid: int) -> float:
    process = psutil.Process(pid)
    before, begun = sum(process.cpu_times()[:2]), trio.current_time()
    await trio.sleep(WINDOW_SECONDS)
    return float(sum(process.cpu_times()[:2]) - before) / (trio.current_time() - begun)


async def measure_help(folder: Path) -> list[Row]:
    del folder
    taken = []
    for _ in range(2 * ROUNDS + 1):
        begun = time.perf_counter()
        await trio.run_process([*CLI, "--help"], capture_stdout=True)
        taken.append(time.perf_counter() - begun)
    return [HELP.row(median(taken[1:]), 2 * ROUNDS)]
