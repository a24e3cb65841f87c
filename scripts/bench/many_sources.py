"""Fetching from four holders at once, each held to 20 MB/s: all honest, and one with other bytes on its disk."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from octonode.api.schema import AddModel, FetchModel
from octonode.client import AsyncClient
from octonode.testing.daemon import Daemon
from scripts.bench.nodes import MEBIBYTE, START_SECONDS, large_model, peak_bytes, reset_peak, resident_bytes, settings
from scripts.bench.rows import Goal, Row, median

HOLDERS = 4
CAP_BYTES_PER_SECOND = 20_000_000
FILE_BYTES = 1024 * MEBIBYTE
LARGE_BYTES = 2048 * MEBIBYTE
ROUNDS = 2
FETCH_SECONDS = 180.0

AGAINST = f"{HOLDERS} x 20 MB/s, {FILE_BYTES // MEBIBYTE} MiB, the whole verb from the API: finding holders included"
FOUR = Goal("fetch_four_sources", "ratio", ">=", 0.85, AGAINST)
CORRUPT = Goal("fetch_one_of_four_corrupt", "ratio", ">=", 0.6, AGAINST + "; the same bytes in the end")
MEMORY = Goal("fetch_memory_2g", "MiB", "<=", 256, "resident memory of the idle fetcher; peak over a fetch of 2 GiB")
GOALS = (FOUR, CORRUPT, MEMORY)


async def measure(folder: Path) -> list[Row]:
    capped = settings(gateway_upload_bytes_per_second_max=CAP_BYTES_PER_SECOND, bitswap_enabled="false")
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(Daemon(folder / "holder-0", "--public", environment=capped))
        flags = ("--public", "--trust-all", "--bootstrap", first.address)
        holders = [first]
        for number in range(1, HOLDERS):
            holders.append(
                await stack.enter_async_context(Daemon(folder / f"holder-{number}", *flags, environment=capped))
            )
        taker = await stack.enter_async_context(Daemon(folder / "taker", *flags, environment=settings()))
        async with Daemon(folder / "large", *flags, environment=settings()) as large:
            memory = await _memory(folder, large, taker)
        reference = await _spread(folder, holders)
        await _meet(taker, HOLDERS)
        honest = [await _fetch(taker, reference) for _ in range(ROUNDS)]
        _corrupt(holders[-1])
        corrupt = [await _fetch(taker, reference, banned=1) for _ in range(ROUNDS)]
    best = HOLDERS * CAP_BYTES_PER_SECOND
    return [
        FOUR.row(median(honest) / best, ROUNDS),
        CORRUPT.row(median(corrupt) / best, ROUNDS),
        MEMORY.row(memory, 1),
    ]


async def _spread(folder: Path, holders: list[Daemon]) -> str:
    """Every holder adds a file of its own, with the same bytes: one root, held by all."""
    references = []
    for number, holder in enumerate(holders):
        model = large_model(folder / f"model-{number}.scripted", FILE_BYTES)
        async with AsyncClient.from_home(holder.home) as client:
            added = await client.work(AddModel(str(model), name="many", version="1.0.0", publish=True))
        model.unlink()
        references.append(added.model.reference)
    return references[0]


async def _meet(taker: Daemon, count: int) -> None:
    async with AsyncClient.from_home(taker.home) as client:
        with trio.fail_after(START_SECONDS):
            while sum(peer.connected for peer in await client.peers()) < count:
                await trio.sleep(0.2)


async def _fetch(taker: Daemon, reference: str, banned: int = 0) -> float:
    """Bytes a second of one fetch; the model is removed again."""
    async with AsyncClient.from_home(taker.home) as client:
        begun = trio.current_time()
        with trio.fail_after(FETCH_SECONDS):
            outcome = await client.work(FetchModel(reference, trust=True))
        seconds = trio.current_time() - begun
        brought = sum(outcome.bytes_by_source.values())
        if brought != outcome.model.size_bytes or sum(count > 0 for count in outcome.bytes_by_source.values()) < 2:
            raise RuntimeError(f"not all was fetched, or not from several: {outcome.bytes_by_source}")
        await client.remove_model(reference, force=True)
    return brought / seconds


def _corrupt(holder: Daemon) -> None:
    """Other bytes in every MiB of its files, with the times as they were: as a failing disk would have it."""
    for path in (holder.home / "models").rglob("data/*"):
        status = path.stat()
        path.chmod(0o644)
        with path.open("r+b") as file:
            for offset in range(0, status.st_size, MEBIBYTE):
                file.seek(offset)
                file.write(b"\xff\x00\xff\x00")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


async def _memory(folder: Path, holder: Daemon, taker: Daemon) -> float:
    """MiB above idle at the peak of a large fetch."""
    model = large_model(folder / "large.scripted", LARGE_BYTES)
    async with AsyncClient.from_home(holder.home) as client:
        added = await client.work(AddModel(str(model), name="large", version="1.0.0", publish=True))
    model.unlink()
    idle = resident_bytes(taker.pid)
    reset_peak(taker.pid)
    async with AsyncClient.from_home(taker.home) as client:
        with trio.fail_after(FETCH_SECONDS):
            await client.work(FetchModel(added.model.reference, trust=True))
        grown = (peak_bytes(taker.pid) - idle) / MEBIBYTE
        await client.remove_model(added.model.reference, force=True)
    async with AsyncClient.from_home(holder.home) as client:
        await client.remove_model(added.model.reference, force=True)
    return grown
