"""Models on the move: a fetch between two nodes against plain TCP, its memory, and the speed of computing a CID."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import trio

from octonode.api.schema import AddModel, FetchModel
from octonode.client import AsyncClient
from octonode.testing.daemon import Daemon
from scripts.bench.nodes import MEBIBYTE, START_SECONDS, large_model, peak_bytes, reset_peak, resident_bytes, settings
from scripts.bench.rows import Goal, Row, median

ROUNDS = 5
FILE_BYTES = 512 * MEBIBYTE
CID_FILE_BYTES = 2048 * MEBIBYTE
"""As models are; the start of the process (0.2 s) would be half of what a small file takes."""
FETCH_SECONDS = 120.0

FETCH = Goal(
    "fetch_ratio",
    "ratio",
    ">=",
    0.5,
    "a receiver doing recv 1 MiB, sha256, write, and one fdatasync at the end, from plain TCP; 512 MiB, in turn",
)
MEMORY = Goal("fetch_memory", "MiB", "<=", 256, "resident memory of the idle fetcher; peak over 512 MiB fetches")
CID = Goal("models_cid_ratio", "ratio", ">=", 0.9, "hashlib.file_digest(sha256) of the same 2 GiB, each as a process")
GOALS = (FETCH, MEMORY)
CID_GOALS = (CID,)


async def measure(folder: Path) -> list[Row]:
    model = large_model(folder / "model.scripted", FILE_BYTES)
    environment = settings()
    async with Daemon(folder / "A", "--public", environment=environment) as holder:
        with trio.fail_after(START_SECONDS):
            async with AsyncClient.from_home(holder.home) as client:
                added = await client.work(AddModel(str(model), name="bench", version="1.0.0", publish=True))
        flags = ("--trust-all", "--bootstrap", holder.address)
        async with Daemon(folder / "B", *flags, environment=environment) as fetcher:
            return await _rounds(folder, model, fetcher, added.model.reference)


async def _rounds(folder: Path, model: Path, fetcher: Daemon, reference: str) -> list[Row]:
    ratios, grown = [], []
    async with AsyncClient.from_home(fetcher.home) as client:
        for number in range(-1, ROUNDS):  # the first warms and does not count
            plain = await trio.to_thread.run_sync(plain_tcp_seconds, model, folder / "plain")
            idle = resident_bytes(fetcher.pid)
            reset_peak(fetcher.pid)
            begun = trio.current_time()
            with trio.fail_after(FETCH_SECONDS):
                outcome = await client.work(FetchModel(reference, trust=True))
            seconds = trio.current_time() - begun
            if sum(outcome.bytes_by_source.values()) < FILE_BYTES:
                raise RuntimeError(f"not all was fetched: {outcome.bytes_by_source}")
            if number >= 0:
                ratios.append(plain / seconds)
                grown.append((peak_bytes(fetcher.pid) - idle) / MEBIBYTE)
            await client.remove_model(reference, force=True)
    return [FETCH.row(median(ratios), ROUNDS), MEMORY.row(max(grown), ROUNDS)]


def plain_tcp_seconds(source: Path, target: Path) -> float:
    """One process sends `source`, another receives, hashes and writes it: seconds of the receiver."""
    command = [sys.executable, "-m", "scripts.bench.plain_tcp"]
    receiver = subprocess.Popen([*command, "receive", str(target)], stdout=subprocess.PIPE, text=True)
    with receiver:
        assert receiver.stdout is not None
        port = receiver.stdout.readline().strip()
        subprocess.run([*command, "send", str(source), port], check=True)
        seconds = float(receiver.stdout.readline())
    target.unlink()
    return seconds


async def measure_cid(folder: Path) -> list[Row]:
    file = large_model(folder / "model.scripted", CID_FILE_BYTES)
    digest = "import hashlib, sys; print(hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256').hexdigest())"
    theirs = [sys.executable, "-c", digest, str(file)]
    ours = [sys.executable, "-m", "octonode.cli.main", "models", "cid", str(file)]
    ratios = []
    for number in range(-1, ROUNDS):
        ratio = await _timed(theirs) / await _timed(ours)
        if number >= 0:
            ratios.append(ratio)
    return [CID.row(median(ratios), ROUNDS)]


async def _timed(command: list[str]) -> float:
    begun = time.perf_counter()
    await trio.run_process(command, capture_stdout=True)
    return time.perf_counter() - begun
