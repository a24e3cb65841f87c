"""kill -9 at twenty random moments of a fetch and of an import: the store opens, goes on, and the bytes are right."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from octonode.ipfs.cid import Cid
from octonode.ipfs.gateway import GatewayLimits
from octonode.models.fetch import fetch
from octonode.models.library import Library
from octonode.models.sources.gateway import GatewaySource
from octonode.models.store import ModelStore

MIB = 1024 * 1024
KILLS = 20
SEED = int(os.environ.get("KILL_SEED", "20261127"))
Make = Callable[..., Library]

FETCH = """
import sys
from pathlib import Path
import trio
from octonode.ipfs.cid import Cid
from octonode.ipfs.gateway_client import GatewayAddress
from octonode.models.fetch import FetchLimits, fetch
from octonode.models.sources.gateway import GatewaySource
from octonode.models.store import ModelStore

home, port, root = sys.argv[1:]
source = GatewaySource(GatewayAddress("127.0.0.1", int(port)))
limits = FetchLimits(window_bytes_start=1 << 20, window_bytes_max=1 << 20, sync_bytes=2 << 20)
print("ready", flush=True)
trio.run(lambda: fetch(Cid.parse(root), ModelStore(Path(home)), sources=[source], limits=limits))
print("done", flush=True)
"""

IMPORT = """
import sys
from pathlib import Path
from octonode.identity import NodeKey
from octonode.models.library import Library
from octonode.models.store import ModelStore
from octonode.models.trust import TrustTable

home, path, placement = sys.argv[1:]
library = Library(ModelStore(Path(home)), TrustTable(Path(home)), NodeKey(b"k" * 32))
print("ready", flush=True)
library.add(Path(path), placement=placement)
print("done", flush=True)
"""


def _run(code: str, *arguments: str, kill_after_seconds: float | None = None) -> bool:
    """Run the child and kill it so long after it has begun, or let it end; True when it was done before."""
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        if kill_after_seconds is not None:
            time.sleep(kill_after_seconds)
            child.send_signal(signal.SIGKILL)
        said = child.stdout.read()
        child.wait()
    return said == "done\n"


def _check_marked(store: ModelStore, root: Cid, data: bytes) -> int:
    """Every leaf that is marked as held is right; how many are."""
    model = store.get(root)
    if model is None:
        return 0
    held = model.have_bits()
    on_disk = model.paths[0].read_bytes()
    for leaf in model.layout().leaves:
        if held >> leaf.number & 1:
            end = leaf.offset_bytes + leaf.size_bytes
            assert on_disk[leaf.offset_bytes : end] == data[leaf.offset_bytes : end]
    return held.bit_count()


@pytest.mark.process
async def test_a_fetch_killed_at_twenty_random_moments(
    make_library: Make, serve_store: Any, home: Path, tmp_path: Path, gguf: Callable[..., bytes]
) -> None:
    print("seed", SEED)
    chance = random.Random(SEED)
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(24 * MIB + 5, seed=SEED))
    library = make_library("publisher")
    root = library.add(path).root
    data, before, finished = path.read_bytes(), 0, 0
    with trio.fail_after(280):
        async with serve_store(library.store, GatewayLimits(upload_bytes_per_second_max=16 * MIB)) as address:
            for number in range(KILLS):
                wait = chance.uniform(0.0, 0.8)
                done = await trio.to_thread.run_sync(
                    lambda wait=wait: _run(FETCH, str(home), str(address.port), root.text, kill_after_seconds=wait)
                )
                store = ModelStore(home)
                held = _check_marked(store, root, data)
                print(f"kill {number} after {wait:.3f} s: {held} leaves")
                assert held >= before, "nothing that was marked may be lost"
                assert not done or held == 25
                before = held
                if held == 25:
                    store.remove(root)
                    before, finished = 0, finished + 1
                store.close()
            store = ModelStore(home)
            await fetch(root, store, sources=[GatewaySource(address)])
    assert store.require(root).row.complete
    assert store.require(root).paths[0].read_bytes() == data


@pytest.mark.process
@pytest.mark.parametrize("placement", ["copy", "auto"])
def test_an_import_killed_at_twenty_random_moments(
    make_library: Make, home: Path, tmp_path: Path, gguf: Callable[..., bytes], placement: str
) -> None:
    print("seed", SEED)
    chance = random.Random(SEED + 1)
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(48 * MIB + 5, seed=SEED))
    data = path.read_bytes()
    for number in range(KILLS):
        wait = chance.uniform(0.0, 0.13)
        done = _run(IMPORT, str(home), str(path), placement, kill_after_seconds=wait)
        store = ModelStore(home)
        models = store.held()
        print(f"kill {number} after {wait:.3f} s: {len(models)} models")
        assert len(models) == len(store.roots()) <= 1, "a model is there wholly or not at all"
        assert models or not done
        for model in models:
            assert model.row.complete
            assert model.paths[0].read_bytes() == data
            store.remove(model.root)
        store.close()
    assert _run(IMPORT, str(home), str(path), placement)
    store = ModelStore(home)
    assert [model.paths[0].read_bytes() == data for model in store.held()] == [True]
    left = [each.name for each in store.directory.iterdir() if each.name.startswith(".new-")]
    assert left == [], "what the killed ones left behind is swept up"
    assert path.read_bytes() == data
