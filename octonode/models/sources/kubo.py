"""Blocks from the Kubo node of this machine's owner, one a call; Kubo finds them in the IPFS network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from octonode.ids import PeerId
from octonode.ipfs.cid import Cid
from octonode.ipfs.kubo_rpc import KuboRPC, rpc_base
from octonode.ipfs.layout import Layout, Leaf
from octonode.ipfs.outside import OutsideTimeouts
from octonode.models.sources.source import Arrived, Lane

LANES: Final = 4


class KuboSource:
    """`url` is that of its RPC, such as http://127.0.0.1:5001 (setting `models.kubo_rpc`)."""

    rank, lanes, verifies = 2, LANES, False
    peer_id: PeerId | None = None

    def __init__(self, url: str, timeouts: OutsideTimeouts | None = None) -> None:
        self._timeouts = timeouts or OutsideTimeouts()
        self._url = rpc_base(url)
        self.name = self.label = f"kubo:{self._url}"

    def open(self) -> Lane:
        return _KuboLane(KuboRPC(self._url, self._timeouts))


class _KuboLane:
    def __init__(self, rpc: KuboRPC) -> None:
        self._rpc = rpc

    def close(self) -> None:
        self._rpc.close()

    async def have(self, layout: Layout) -> int | None:
        return None

    async def block(self, cid: Cid) -> bytes:
        return await self._rpc.block_get(cid)

    async def leaves(self, file_root: Cid, leaves: Sequence[Leaf], arrived: Arrived) -> None:
        for leaf in leaves:
            arrived([(leaf, memoryview(await self._rpc.block_get(leaf.cid)))])
