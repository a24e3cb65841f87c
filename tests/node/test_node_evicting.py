"""A full quota: what goes to make room for a model, and what never does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from octonode.config import ModelsConfig
from octonode.errors import OctonodeError
from octonode.identity import NodeKey
from octonode.ipfs.cid import Cid
from octonode.ipfs.gateway import Gateway
from octonode.metrics import Metrics
from octonode.models.library import Library
from octonode.models.store import ModelStore
from octonode.models.trust import TrustTable
from octonode.network.peerbook import Peerbook
from octonode.node.events import Events
from octonode.node.evicting import Evictor
from octonode.node.fetcher import Fetcher
from octonode.node.fetches import Fetch
from octonode.node.names import Names
from octonode.node.resolving import Resolver
from octonode.node.shelf import Shelf
from octonode.node.source import Source
from octonode.testing.testnet import write_scripted_model

MIB = 1024 * 1024
PUBLISHER, US = NodeKey(b"p" * 32), NodeKey(b"u" * 32)


class NoPeers:
    """Discovery of a node that knows only its configured gateway."""

    async def holders(self, root: str, *, ask: bool) -> list[Any]:
        return []


class Node:
    """Fetches models of 1 MiB from one gateway, with room for two of them."""

    def __init__(self, home: Path, url: str) -> None:
        self.now_ms = 1_000
        self.store = ModelStore(home, disk_bytes_max=2 * MIB + 512 * 1024, now_ms=self._tick)
        self.library = Library(self.store, TrustTable(home, always=(PUBLISHER.peer_id,)), US)
        self.shelf = Shelf(self.library)
        self.others: dict[str, int] = {}
        self.served: set[str] = set()
        self.told: list[tuple[str, dict[str, Any]]] = []
        resolver = Resolver(self.library, self.shelf, Peerbook(US.peer_id))
        names = Names(self.library, self.shelf, US)
        self.source = Source(library=self.library, shelf=self.shelf, resolver=resolver, names=names)
        evictor = Evictor(
            self.library, self.shelf, others=lambda root: self.others.get(root, 0),
            in_use=self.served.__contains__, emit=lambda event, **fields: self.told.append((event, fields)),
        )  # fmt: skip
        self.fetcher = Fetcher(
            settings=ModelsConfig(gateways=(url,)), library=self.library, discovery=NoPeers(), host=None,  # type: ignore[arg-type]
            over_bitswap=None, evictor=evictor, events=Events(), metrics=Metrics("1"), own=US.peer_id,
            changed=self.source.refresh,
        )  # fmt: skip

    def _tick(self) -> int:
        self.now_ms += 1
        return self.now_ms

    async def fetch(self, root: Cid) -> None:
        await self.fetcher.act(Fetch(root, 1), lambda progress: None)

    def here(self) -> set[Cid]:
        return set(self.store.roots())


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[tuple[Node, list[Cid]]]:
    library = Library(ModelStore(tmp_path / "publisher"), TrustTable(tmp_path / "publisher"), PUBLISHER)
    roots = []
    for number in range(3):
        file = write_scripted_model(tmp_path / f"{number}.model", seed=number, size_bytes=MIB)
        roots.append(library.add(file, name=f"model-{number}").root)
    async with served(library.store) as url:
        node = Node(tmp_path / "node", url)
        for root in roots[:2]:
            await node.fetch(root)
        node.others = {root.text: 1 for root in roots}
        yield node, roots


@asynccontextmanager
async def served(store: ModelStore) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        gateway = Gateway("127.0.0.1:0", store)
        await nursery.start(gateway.run)
        yield f"http://127.0.0.1:{gateway.port}"
        nursery.cancel_scope.cancel()


async def test_the_model_unused_for_longest_makes_room(world: tuple[Node, list[Cid]]) -> None:
    node, (first, second, third) = world
    await node.fetch(first)  # it is here already: that is a use
    await node.fetch(third)
    assert node.here() == {first, third}
    assert node.told == [("evicted", {"root": second.text, "size_bytes": MIB})]
    assert node.shelf.get(second.text) is None
    third_held = node.shelf.get(third.text)
    assert third_held is not None
    assert third_held.complete


@pytest.mark.parametrize("reason", ["pinned", "served", "last copy"])
async def test_what_must_stay_stays(world: tuple[Node, list[Cid]], reason: str) -> None:
    node, (first, second, third) = world
    if reason == "pinned":
        node.store.set_flags(first, pinned=True)
    elif reason == "served":
        node.served.add(first.text)
    else:
        node.others[first.text] = 0
    await node.fetch(third)
    assert node.here() == {first, third}, "the younger one went"
    node.others = {}
    with pytest.raises(OctonodeError) as caught:
        await node.fetch(second)
    assert caught.value.code == "DISK_FULL"
    assert "disk_bytes_max" in caught.value.message
    assert node.here() == {first, third}


async def test_nothing_goes_where_it_would_not_be_enough(world: tuple[Node, list[Cid]], tmp_path: Path) -> None:
    node, (first, second, _) = world
    node.others[second.text] = 0
    large = Library(ModelStore(tmp_path / "large"), TrustTable(tmp_path / "large"), PUBLISHER)
    root = large.add(write_scripted_model(tmp_path / "large.model", size_bytes=2 * MIB), name="large").root
    async with served(large.store) as url:
        node.fetcher._settings = ModelsConfig(gateways=(url,))
        with pytest.raises(OctonodeError) as caught:
            await node.fetch(root)
    assert caught.value.code == "DISK_FULL"
    assert node.here() == {first, second}
    assert node.told == []
