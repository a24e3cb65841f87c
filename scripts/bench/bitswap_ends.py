"""The two ends of `bitswap.py` that are ours, each a process: a host, a store and the bitswap service.

    python -m scripts.bench.bitswap_ends give FOLDER FILE PROFILE...   prints {"address": ..., "roots": {...}} and waits
    python -m scripts.bench.bitswap_ends take FOLDER ADDRESS ROOT      fetches ROOT from there; prints what came

Both print one line of JSON. FOLDER holds the store and must be new.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from octonode.config import NetworkConfig
from octonode.identity import NodeKey
from octonode.ipfs.bitswap import Bitswap
from octonode.ipfs.cid import Cid
from octonode.ipfs.unixfs import profile_named
from octonode.models.adding import describe
from octonode.models.fetch import fetch
from octonode.models.sources.bitswap import BitswapSource
from octonode.models.store import ModelStore
from octonode.network.libp2p.host import Libp2pHost

Node = tuple[Libp2pHost, ModelStore, Bitswap]


@asynccontextmanager
async def node(folder: Path) -> AsyncIterator[Node]:
    host = Libp2pHost(NodeKey(os.urandom(32)), NetworkConfig(listen="127.0.0.1:0"))
    store = ModelStore(folder)
    bitswap = Bitswap(host, store)
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        await nursery.start(bitswap.run)
        yield host, store, bitswap
        nursery.cancel_scope.cancel()
    store.close()


async def give(folder: str, file: str, *profiles: str) -> None:
    """Serve `file` under each of the profiles until killed."""
    async with node(Path(folder)) as (host, store, _):
        roots = {}
        for profile in profiles:
            described = describe(Path(file), profile=profile_named(profile))
            store.adopt(described.layout, described.sources)
            roots[profile] = str(described.layout.root)
        _say(address=host.addresses[0], roots=roots)
        await trio.sleep_forever()


async def take(folder: str, address: str, root: str) -> None:
    """As a daemon fetches: each block verified, written and synced. Starting and connecting do not count."""
    async with node(Path(folder)) as (host, store, bitswap):
        source = BitswapSource(bitswap, await host.connect(address))
        report = await fetch(Cid.parse(root), store, sources=[source])
        (path,) = store.require(report.root).paths
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        _say(bytes=path.stat().st_size, sha256=digest, seconds=report.seconds)


def _say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


ENDS: dict[str, Callable[..., Awaitable[None]]] = {"give": give, "take": take}

if __name__ == "__main__":
    trio.run(ENDS[sys.argv[1]], *sys.argv[2:])
