"""Leaves and nodes over bitswap: from Kubo, Helia, or an octonode whose gateway does not answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from octonode.ids import PeerId
from octonode.ipfs.cid import Cid
from octonode.ipfs.layout import Layout, Leaf
from octonode.models import bitmap
from octonode.models.sources.source import Arrived, Lane

LANES: Final = 2
"""While the blocks of one run are written the other is on its way."""
PRESENCES_MAX: Final = 2048
"""Leaves that a peer is asked about in one go; the others have their turn the next times."""


class BlockExchange(Protocol):
    """`octonode.ipfs.bitswap.Bitswap`."""

    async def block(self, peer_id: PeerId, cid: Cid) -> bytes: ...

    async def fetch(
        self, peer_id: PeerId, wants: Sequence[tuple[Cid, int]], arrived: Callable[[Cid, memoryview], None]
    ) -> None: ...

    async def have(self, peer_id: PeerId, cids: Iterable[Cid]) -> frozenset[Cid]: ...


class BitswapSource:
    """One peer. `partial`: it may lack leaves, and is asked which it has; else all of them are asked of it."""

    rank, lanes, verifies = 1, LANES, True

    def __init__(self, bitswap: BlockExchange, peer_id: PeerId, *, partial: bool = False) -> None:
        self._bitswap = bitswap
        self.peer_id: PeerId | None = peer_id
        self.name = self.label = f"bitswap:{peer_id}"
        self._peer_id = peer_id
        self._partial = partial
        self._known = 0
        """Leaves that the peer said it has; it is not asked about these again."""
        self._asked_from = random.getrandbits(32)

    def open(self) -> Lane:
        return _BitswapLane(self, self._bitswap, self._peer_id)

    async def have(self, layout: Layout) -> int | None:
        """What all lanes have learned of the peer so far, after a question about at most PRESENCES_MAX leaves."""
        if not self._partial:
            return None
        count = len(layout.leaves)
        unknown = bitmap.full(count) & ~self._known
        if not unknown:
            return None
        first = self._asked_from % count
        numbers = [number for number in bitmap.members(unknown) if number >= first][:PRESENCES_MAX]
        if len(numbers) < PRESENCES_MAX:
            numbers += [number for number in bitmap.members(unknown) if number < first][: PRESENCES_MAX - len(numbers)]
        self._asked_from = numbers[-1] + 1
        leaves = [layout.leaves[number] for number in numbers]
        held = await self._bitswap.have(self._peer_id, [leaf.cid for leaf in leaves])
        for leaf in leaves:
            if leaf.cid in held:
                self._known |= 1 << leaf.number
        return self._known


class _BitswapLane:
    def __init__(self, source: BitswapSource, bitswap: BlockExchange, peer_id: PeerId) -> None:
        self._source = source
        self._bitswap = bitswap
        self._peer_id = peer_id

    def close(self) -> None:
        """The streams to a peer belong to the service."""

    async def block(self, cid: Cid) -> bytes:
        return await self._bitswap.block(self._peer_id, cid)

    async def have(self, layout: Layout) -> int | None:
        return await self._source.have(layout)

    async def leaves(self, file_root: Cid, leaves: Sequence[Leaf], arrived: Arrived) -> None:
        """In the order of the peer's answers. A leaf that stands twice in the run is asked for once."""
        places: dict[bytes, list[Leaf]] = {}
        for leaf in leaves:
            places.setdefault(leaf.digest, []).append(leaf)

        def came(cid: Cid, block: memoryview) -> None:
            arrived([(leaf, block) for leaf in places[cid.digest]])

        wants = [(each[0].cid, each[0].block_bytes) for each in places.values()]
        await self._bitswap.fetch(self._peer_id, wants, came)
