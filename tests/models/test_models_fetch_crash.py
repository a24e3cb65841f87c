"""Fetches that die: a process killed with SIGKILL, and disks that are full, with real processes and file systems."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from octonode.errors import OctonodeError
from octonode.ipfs.gateway import GatewayLimits
from octonode.ipfs.unixfs import PROFILES, Profile
from octonode.models.fetch import FetchLimits, fetch
from octonode.models.library import Library
from octonode.models.sources.gateway import GatewaySource
from octonode.models.store import ModelStore

MIB = 1024 * 1024
SYNC = 4 * MIB
Make = Callable[..., Library]

CHILD = """
import resource, sys
from pathlib import Path
import trio
from octonode.errors import OctonodeError
from octonode.ipfs.cid import Cid
from octonode.ipfs.gateway_client import GatewayAddress
from octonode.models.fetch import FetchLimits, fetch
from octonode.models.sources.gateway import GatewaySource
from octonode.models.store import ModelStore

home, port, root, file_limit = sys.argv[1:]
store = ModelStore(Path(home))
if int(file_limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(file_limit),) * 2)

def told(progress):
    model = store.get(progress.root)
    print(model.have_bits().bit_count() if model else 0, flush=True)

async def main():
    sources = [GatewaySource(GatewayAddress("127.0.0.1", int(port)))]
    limits = FetchLimits(window_bytes_start=2 << 20, window_bytes_max=2 << 20, sync_bytes=4 << 20, give_up_seconds=5)
    await fetch(Cid.parse(root), store, sources=sources, progress=told, limits=limits)

try:
    trio.run(main)
except OctonodeError as error:
    print(error.code, error.message, flush=True)
    sys.exit(3)
"""


@pytest.fixture
def big_file(tmp_path: Path, gguf: Callable[..., bytes]) -> Path:
    path = tmp_path / "big.gguf"
    path.write_bytes(gguf(40 * MIB + 77))
    return path


async def _killed_halfway(home: Path, port: int, root: str) -> int:
    """Run a fetch in a child and kill it once a group is marked; the leaves that were marked when it was killed."""
    command = [sys.executable, "-c", CHILD, str(home), str(port), root, "0"]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    buffer = b""
    try:
        async for data in process.stdout:
            buffer += data
            lines = buffer.split(b"\n")
            if len(lines) > 1 and int(lines[-2]) >= 4:
                break
    finally:
        process.send_signal(signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()
    assert process.returncode == -signal.SIGKILL, "the fetch ended before it could be killed"
    return int(buffer.split(b"\n")[-2])


@pytest.mark.process
@pytest.mark.parametrize("profile", [PROFILES["unixfs-v1-2025"], PROFILES["unixfs-v0-2015"]], ids=["raw", "wrapped"])
async def test_kill_9_loses_at_most_the_group_that_was_not_synced(
    make_library: Make, big_file: Path, serve_store: Any, home: Path, profile: Profile
) -> None:
    library = make_library("a")
    entry = library.add(big_file, profile=profile)
    slow = GatewayLimits(upload_bytes_per_second_max=16 * MIB)
    with trio.fail_after(120):
        async with serve_store(library.store, slow) as address:
            told = await _killed_halfway(home, address.port, entry.root.text)
            store = ModelStore(home)
            model = store.require(entry.root)
            held = model.have_bits()
            data = big_file.read_bytes()
            on_disk = model.paths[0].read_bytes()
            assert told <= held.bit_count() < entry.row.leaf_count
            for leaf in model.layout().leaves:  # what is marked is right, without a look at the rest
                if held >> leaf.number & 1:
                    end = leaf.offset_bytes + leaf.size_bytes
                    assert on_disk[leaf.offset_bytes : end] == data[leaf.offset_bytes : end]
        async with serve_store(library.store) as address:
            report = await fetch(
                entry.root, store, sources=[GatewaySource(address)], limits=FetchLimits(sync_bytes=SYNC)
            )
    fetched = sum(report.bytes_by_source.values())
    assert (
        fetched <= len(data) - (held.bit_count() - 1) * profile.leaf_bytes
    )  # nothing that was marked was fetched again
    assert model.paths[0].read_bytes() == data
    assert make_library("a").store.require(entry.root).row.complete


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of 120 MiB, or None where mounting is not allowed: then RLIMIT_FSIZE below has to do."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(place)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    yield place if mounted else None
    if mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


async def test_a_full_disk_is_told_before_and_during_a_fetch(
    make_library: Make, big_file: Path, serve_store: Any, tiny_disk: Path | None
) -> None:
    if tiny_disk is None:
        return
    library = make_library("a")
    entry = library.add(big_file)
    filler = tiny_disk / "filler"
    with trio.fail_after(120):
        async with serve_store(library.store) as address:
            sources, store = [GatewaySource(address)], ModelStore(tiny_disk)
            filler.write_bytes(bytes(30 * MIB))
            with pytest.raises(OctonodeError, match="MiB are free") as caught:
                await fetch(entry.root, store, sources=sources)
            assert caught.value.code == "DISK_FULL"
            assert list((tiny_disk / "models").iterdir()) == []
            filler.unlink()
            store.prepare(store_layout(library, entry.root.text))
            _fill(filler)  # to the last byte: what was taken before is ours all the same
            with pytest.raises(OctonodeError) as caught:
                await fetch(entry.root, store, sources=sources)
            assert caught.value.code == "DISK_FULL"
            filler.unlink()
            report = await fetch(entry.root, store, sources=sources)
    assert sum(report.bytes_by_source.values()) == 0
    assert store.require(entry.root).row.complete
    assert store.require(entry.root).paths[0].read_bytes() == big_file.read_bytes()


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.mark.process
async def test_a_disk_that_fills_up_keeps_what_came_and_goes_on_later(
    make_library: Make, big_file: Path, serve_store: Any, home: Path
) -> None:
    """Preallocation is undone and the child may write 24 MiB a file: pwrite fails in the middle, as on a full disk."""
    library = make_library("a")
    entry = library.add(big_file)
    with trio.fail_after(120):
        async with serve_store(library.store) as address:
            store = ModelStore(home)
            store.prepare(store_layout(library, entry.root.text))
            data_file = store.require(entry.root).paths[0]
            os.truncate(data_file, 0)
            command = [sys.executable, "-c", CHILD, str(home), str(address.port), entry.root.text, str(24 * MIB)]
            child = await trio.run_process(command, capture_stdout=True, check=False)
            assert child.returncode == 3
            last = child.stdout.decode().strip().split("\n")[-1]
            assert last.startswith("DISK_FULL")
            assert "run the same command again" in last
            held = store.require(entry.root).have_bits().bit_count()
            report = await fetch(entry.root, store, sources=[GatewaySource(address)])
    assert sum(report.bytes_by_source.values()) <= entry.row.size_bytes - (held - 1) * MIB
    assert store.require(entry.root).paths[0].read_bytes() == big_file.read_bytes()


def store_layout(library: Library, root: str) -> Any:
    return library.store.require(library.show(root).root).layout()
