"""Who may have the blocks of a model, as sources of a fetch: octonodes that announce it, and configured IPFS peers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, Protocol

import trio

from octonode.errors import OctonodeError
from octonode.ids import PeerId
from octonode.ipfs.cid import Cid
from octonode.ipfs.gateway_client import GatewayAddress
from octonode.models.sources.gateway import GatewaySource
from octonode.models.sources.source import Source
from octonode.network.discovery import Discovery, Holder
from octonode.network.host import Host

log = logging.getLogger(__name__)

SEARCH_SECONDS: Final = 10.0
"""Between two searches of the network for one model; in between what peers announce by themselves is looked at."""
DIAL_SECONDS: Final = 10.0
LINGER_SECONDS: Final = 1.0
"""For those still being dialled, where others are known."""
IPFS_PEERS_MAX: Final = 16


class MakeSource(Protocol):
    """A source of a peer over bitswap; `partial`: it may lack leaves."""

    def __call__(self, peer_id: PeerId, *, partial: bool) -> Source: ...


class BlockPeers:
    """`models.fetching.BlockPeers` for one fetch. `ipfs_peers`: multiaddrs of nodes that speak bitswap alone."""

    def __init__(
        self, discovery: Discovery, host: Host, over_bitswap: MakeSource | None, ipfs_peers: Sequence[str] = ()
    ) -> None:
        self._discovery = discovery
        self._host = host
        self._over_bitswap = over_bitswap
        self._ipfs_peers = ipfs_peers[:IPFS_PEERS_MAX] if over_bitswap is not None else ()
        self._searched_at = trio.current_time()
        self._searched_once = False
        self._dialled: dict[str, PeerId] = {}

    async def sources(self, root: Cid) -> Sequence[Source]:
        """Gateways first, then the same peers over bitswap, for where a gateway does not answer."""
        found: list[Source] = []
        async with trio.open_nursery() as nursery:
            for address in self._ipfs_peers:
                nursery.start_soon(self._dial, address)
            holders = await self._holders(root)
            nursery.cancel_scope.deadline = trio.current_time() + (LINGER_SECONDS if holders else DIAL_SECONDS)
        for holder in holders:
            if holder.gateway is not None:
                gateway = GatewayAddress(holder.gateway.host, holder.gateway.port, holder.gateway.peer_id)
                found.append(GatewaySource(gateway))
        if self._over_bitswap is not None:
            partial = {
                holder.announcement.peer_id: not all(
                    each.complete for each in holder.announcement.holding if each.root == root.v1.text
                )
                for holder in holders
            }
            peers = dict.fromkeys(self._dialled.values(), False) | partial
            found += [self._over_bitswap(peer, partial=some) for peer, some in peers.items()]
        return found

    async def _holders(self, root: Cid) -> Sequence[Holder]:
        """Those at hand come at once, and the network is searched when they have been at work for a while."""
        now = trio.current_time()
        if now < self._searched_at + SEARCH_SECONDS:
            known = await self._discovery.holders(root.text, ask=False)
            if known or self._searched_once:
                return known
        self._searched_once = True
        self._searched_at = now
        return await self._discovery.holders(root.text, ask=True)

    async def _dial(self, address: str) -> None:
        """Connect where there is no connection; one that cannot be reached is tried again at the next question."""
        known = self._dialled.get(address)
        if known is not None and known in self._host.connected:
            return
        with trio.move_on_after(DIAL_SECONDS):
            try:
                self._dialled[address] = await self._host.connect(address)
            except (OctonodeError, ValueError) as error:
                log.info("the IPFS peer %s is not reached: %s", address, error)
