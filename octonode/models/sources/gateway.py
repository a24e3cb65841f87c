"""Leaves from the block gateway of another octonode: a run of consecutive leaves is one response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from octonode.errors import VerificationFailed
from octonode.ipfs.car import Section
from octonode.ipfs.cid import Cid
from octonode.ipfs.gateway_client import (
    CAR_OVERHEAD_BYTES,
    SECTION_OVERHEAD_BYTES,
    GatewayAddress,
    GatewayClient,
    Timeouts,
)
from octonode.ipfs.layout import Layout, Leaf
from octonode.models import bitmap
from octonode.models.sources.source import Arrived, Lane

LANES: Final = 2
"""While one response is on its way the other is asked for, so that the line never falls silent between two."""


class GatewaySource:
    """The gateway at an address that the network layer has checked."""

    rank, lanes, verifies = 1, LANES, False

    def __init__(self, address: GatewayAddress, timeouts: Timeouts | None = None) -> None:
        self.address = address
        self._timeouts = timeouts
        self.peer_id = address.peer_id
        self.name = str(address)
        self.label = f"gateway:{address.peer_id}" if address.peer_id else self.name

    def open(self) -> Lane:
        return _GatewayLane(GatewayClient(self.address, self._timeouts))


class _GatewayLane:
    def __init__(self, client: GatewayClient) -> None:
        self._client = client
        self._buffer = bytearray()

    def close(self) -> None:
        self._client.close()

    async def block(self, cid: Cid) -> bytes:
        return await self._client.block(cid)

    async def have(self, layout: Layout) -> int | None:
        return bitmap.from_bytes(await self._client.have(layout.root), len(layout.leaves))

    async def leaves(self, file_root: Cid, leaves: Sequence[Leaf], arrived: Arrived) -> None:
        size = sum(leaf.size_bytes for leaf in leaves)
        needed = CAR_OVERHEAD_BYTES + sum(leaf.block_bytes + SECTION_OVERHEAD_BYTES for leaf in leaves)
        if len(self._buffer) < needed:
            self._buffer = bytearray(needed)
        view = memoryview(self._buffer)
        waiting = list(reversed(leaves))

        def on_sections(sections: list[Section]) -> None:
            found = []
            for section in sections:
                if not waiting or section.cid.digest != waiting[-1].digest:
                    raise VerificationFailed(f"{self._client.address} sent {section.cid}, which was not asked for")
                found.append((waiting.pop(), view[section.start : section.end]))
            arrived(found)

        first = leaves[0].offset_bytes
        await self._client.run(file_root, first, first + size - 1, self._buffer, on_sections)
        if waiting:
            raise VerificationFailed(f"{self._client.address} left out {waiting[-1].cid}")
