"""The models on disk: how fast a store with a large model opens, and what serving one costs in memory."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import trio

from octonode.api.schema import AddModel, FetchModel
from octonode.client import AsyncClient
from octonode.ipfs.layout import FileLayout, Layout, Leaf
from octonode.ipfs.unixfs import LEAF_BYTES, TreeBuilder
from octonode.models import bitmap
from octonode.models.staging import guard, write_index
from octonode.models.store import ModelStore
from octonode.testing.daemon import Daemon
from scripts.bench.nodes import MEBIBYTE, START_SECONDS, large_model, peak_bytes, reset_peak, resident_bytes, settings
from scripts.bench.rows import Goal, Row, median

LEAVES = 40 * 1024
ROUNDS = 5
SERVED_BYTES = 2048 * MEBIBYTE
FETCH_SECONDS = 300.0
SETTLE_SECONDS = 5.0
OPEN_PROGRAM = """
import sys, time
from pathlib import Path
from octonode.identity import NodeKey
from octonode.ipfs.cid import RAW, Cid
from octonode.models.library import Library
from octonode.models.store import ModelStore
from octonode.models.trust import TrustTable
begun = time.perf_counter()
home = Path(sys.argv[1])
library = Library(ModelStore(home), TrustTable(home), NodeKey(bytes(32)))
(entry,) = library.list()
assert entry.complete
body = library.store.block(Cid(RAW, bytes.fromhex(sys.argv[2])))
assert body is not None
body.close()
print(time.perf_counter() - begun)
"""

OPEN = Goal(
    "store_open_40g", "s", "<=", 1.0, "a new process: list the models and find the last block of one of 40 GiB (sparse)"
)
SERVING = Goal(
    "serving_memory",
    "MiB",
    "<=",
    64,
    "resident memory of the idle server; its peak while a 2 GiB model is fetched from it",
)
OPEN_GOALS = (OPEN,)
SERVING_GOALS = (SERVING,)


def sparse_model(home: Path, leaves: int) -> bytes:
    """A whole model that takes no disk, of leaves that nobody made; the digest of its last one."""
    dice, builder = random.Random(0), TreeBuilder()
    for _ in range(leaves):
        builder.add(dice.randbytes(32), LEAF_BYTES)
    made = builder.finish()
    found = tuple(Leaf(i, 0, i * LEAF_BYTES, LEAF_BYTES, digest) for i, digest in enumerate(made.leaves))
    layout = Layout(made.root, (FileLayout("", made.root, made.size_bytes, 0, leaves),), found, dict(made.nodes))
    store = ModelStore(home)
    with store.staging.fresh(made.root) as new:
        with open(new / "data" / "model", "wb") as file:
            file.truncate(made.size_bytes)
        guard(write_index(new, layout, ["model"], have=bitmap.full(leaves), public=True, now_ms=1))
        new.rename(store.directory / made.root.text)
    store.close()
    return made.leaves[-1]


async def measure_open(folder: Path) -> list[Row]:
    """The first time without the index of blocks, as after an upgrade: that one counts too, it is the slowest."""
    digest = await trio.to_thread.run_sync(sparse_model, folder / "home", LEAVES)
    taken = []
    for _ in range(ROUNDS):
        for path in (folder / "home").glob("blocks.sqlite*"):
            path.unlink()
        command = [sys.executable, "-c", OPEN_PROGRAM, str(folder / "home"), digest.hex()]
        done = await trio.run_process(command, capture_stdout=True)
        taken.append(float(done.stdout))
    return [OPEN.row(median(taken), ROUNDS)]


async def measure_serving(folder: Path) -> list[Row]:
    model = large_model(folder / "model.scripted", SERVED_BYTES)
    environment = settings()
    async with Daemon(folder / "A", "--public", environment=environment) as holder:
        with trio.fail_after(START_SECONDS):
            async with AsyncClient.from_home(holder.home) as client:
                added = await client.work(AddModel(str(model), name="bench", version="1.0.0", publish=True))
    model.unlink()
    # Started anew: an import leaves memory behind that would pass for idle.
    async with Daemon(folder / "A", "--public", environment=environment) as holder:
        flags = ("--trust-all", "--bootstrap", holder.address)
        async with Daemon(folder / "B", *flags, environment=environment) as fetcher:
            await trio.sleep(SETTLE_SECONDS)
            idle = resident_bytes(holder.pid)
            reset_peak(holder.pid)
            async with AsyncClient.from_home(fetcher.home) as client:
                with trio.fail_after(FETCH_SECONDS):
                    outcome = await client.work(FetchModel(added.model.reference, trust=True))
            if sum(outcome.bytes_by_source.values()) < SERVED_BYTES:
                raise RuntimeError(f"not all was fetched: {outcome.bytes_by_source}")
            return [SERVING.row((peak_bytes(holder.pid) - idle) / MEBIBYTE, 1)]
