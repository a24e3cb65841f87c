"""Leaves that another model of this store holds already: two quantizations share few, two versions often most."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from octonode.errors import NotFound
from octonode.ids import PeerId
from octonode.ipfs.cid import Cid
from octonode.ipfs.layout import Layout, Leaf
from octonode.models.sources.source import Arrived, Lane
from octonode.models.store import ModelStore

LABEL = "this store"


def held_elsewhere(store: ModelStore, layout: Layout) -> StoreSource | None:
    """A source of those leaves of `layout` that some model in `store` holds; None when there are none. Blocks."""
    wanted: dict[bytes, int] = {}
    for leaf in layout.leaves:
        wanted[leaf.digest] = wanted.get(leaf.digest, 0) | 1 << leaf.number
    found = 0
    for model in store.sharing(layout):
        shared = [leaf for leaf in model.layout().leaves if leaf.digest in wanted]
        held = model.have_bits() if shared else 0
        for leaf in shared:
            found |= wanted[leaf.digest] if held >> leaf.number & 1 else 0
    return StoreSource(store, found) if found else None


class StoreSource:
    """`leaves`: the set of those it has (see models.bitmap)."""

    name = label = LABEL
    rank, lanes, verifies = 0, 1, True
    peer_id: PeerId | None = None

    def __init__(self, store: ModelStore, leaves: int) -> None:
        self._store = store
        self._leaves = leaves

    def open(self) -> Lane:
        return _StoreLane(self._store, self._leaves)


class _StoreLane:
    def __init__(self, store: ModelStore, leaves: int) -> None:
        self._store = store
        self._leaves = leaves

    def close(self) -> None:
        """Nothing is held open between two calls."""

    async def block(self, cid: Cid) -> bytes:
        data = await trio.to_thread.run_sync(self._store.read_block, cid)
        if data is None:
            raise NotFound(f"no model here has {cid}")
        return data

    async def have(self, layout: Layout) -> int | None:
        return self._leaves

    async def leaves(self, file_root: Cid, leaves: Sequence[Leaf], arrived: Arrived) -> None:
        for leaf in leaves:
            try:
                data = await self.block(leaf.cid)
            except NotFound:  # removed since, or damaged: not to be asked for again
                self._leaves &= ~(1 << leaf.number)
                raise
            arrived([(leaf, memoryview(data))])
