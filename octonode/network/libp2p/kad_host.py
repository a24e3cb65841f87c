"""The library's host as its Kademlia sees it: our protocol id instead of the public one, and peers that prove it.

`KadDHT(protocol_prefix=...)` changes nothing on the wire. The id is mapped here at every place where it passes. The
routing table admits a peer whose protocols are not known; here an unknown peer speaks nothing, so that the table
holds only peers whose identify named our id, or who have negotiated it with us.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio
from libp2p.kad_dht.common import PROTOCOL_ID as PUBLIC_PROTOCOL
from libp2p.peer.id import ID
from libp2p.peer.peerstore import _peer_record_signer_matches
from multiaddr import Multiaddr

from octonode.ids import KAD_PROTOCOL
from octonode.network.libp2p.library import ADDRESSES_PER_PEER_MAX

log = logging.getLogger(__name__)

SPEAKERS_MAX = 4_096
INBOUND_PER_PEER_MAX = 16
"""Requests of one peer at once; more are reset. The library's own bound is for all peers together."""
REQUEST_SECONDS = 20.0
"""An inbound stream is given so long in all; a silent one would hold one of the library's places for ever."""
NOTHING = "/none"


class KadHost:
    """Delegates to the library's host, but for what is named here."""

    def __init__(self, library_host: Any, addresses_of: Callable[[ID], Sequence[Multiaddr]]) -> None:
        self._host = library_host
        self._speakers: OrderedDict[ID, None] = OrderedDict()
        self._inbound: Counter[ID] = Counter()
        self._peerstore = KadPeerStore(library_host.get_peerstore(), self.speaks, addresses_of)
        self.admitted: Callable[[ID], None] = lambda peer: None
        """Called with a peer that has just negotiated our protocol for the first time."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def get_peerstore(self) -> KadPeerStore:
        return self._peerstore

    def speaks(self, peer: ID) -> bool:
        return peer in self._speakers

    def proven(self, peer: ID) -> None:
        """This peer speaks our Kademlia."""
        is_new = peer not in self._speakers
        self._speakers[peer] = None
        self._speakers.move_to_end(peer)
        if len(self._speakers) > SPEAKERS_MAX:
            self._speakers.popitem(last=False)
        if is_new:
            self.admitted(peer)

    def disproven(self, peer: ID) -> None:
        self._speakers.pop(peer, None)

    async def new_stream(self, peer: ID, protocols: Sequence[str]) -> Any:
        mapped = [KAD_PROTOCOL if each == PUBLIC_PROTOCOL else each for each in protocols]
        stream = await self._host.new_stream(peer, mapped)
        if KAD_PROTOCOL in mapped:
            self.proven(peer)
        return stream

    def set_stream_handler(self, protocol: str, handler: Callable[[Any], Awaitable[None]]) -> None:
        if protocol != PUBLIC_PROTOCOL:
            self._host.set_stream_handler(protocol, handler)
            return

        async def serve(stream: Any) -> None:
            await self._serve(handler, stream)

        self._host.set_stream_handler(KAD_PROTOCOL, serve)

    def remove_stream_handler(self, protocol: str) -> None:
        self._host.remove_stream_handler(KAD_PROTOCOL if protocol == PUBLIC_PROTOCOL else protocol)

    async def _serve(self, handler: Callable[[Any], Awaitable[None]], stream: Any) -> None:
        peer = stream.muxed_conn.peer_id
        if self._inbound[peer] >= INBOUND_PER_PEER_MAX:
            await stream.reset()
            return
        self._inbound[peer] += 1
        self.proven(peer)
        try:
            with trio.move_on_after(REQUEST_SECONDS) as deadline:
                await handler(stream)
            if deadline.cancelled_caught:
                await stream.reset()
        finally:
            self._inbound[peer] -= 1
            if self._inbound[peer] <= 0:
                del self._inbound[peer]


class KadPeerStore:
    """The peer store as the library's Kademlia sees it. Delegates but for what is named here."""

    def __init__(
        self, store: Any, speaks: Callable[[ID], bool], addresses_of: Callable[[ID], Sequence[Multiaddr]]
    ) -> None:
        self._store = store
        self._speaks = speaks
        self._addresses_of = addresses_of

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get_protocols(self, peer: ID) -> list[str]:
        """Never empty and never raises: the routing table admits a peer in both cases."""
        if self._speaks(peer) or KAD_PROTOCOL in self.heard(peer):
            return [str(PUBLIC_PROTOCOL)]
        return [NOTHING]

    def heard(self, peer: ID) -> list[str]:
        try:
            return list(self._store.get_protocols(peer))
        except Exception:
            return []

    def peer_ids(self) -> list[ID]:
        """Where a lookup begins when the table is nearly empty: with peers of ours only."""
        return [peer for peer in self._store.peer_ids() if self.get_protocols(peer) != [NOTHING]]

    def addrs(self, peer: ID) -> list[Multiaddr]:
        """Those the host would dial; the library's own expire after two minutes. Never raises."""
        return list(self._addresses_of(peer))[:ADDRESSES_PER_PEER_MAX]

    def get_peer_record(self, peer: ID) -> None:
        """Answers carry no signed records of third parties: twenty signatures to check in each, for addresses that
        the handshake of a dial proves anyway."""
        return

    def consume_peer_record(self, envelope: Any, ttl: int) -> bool:
        """False for a forged record alone: the library also cuts off a peer whose clock was set back."""
        if not _peer_record_signer_matches(envelope):
            return False
        self._store.consume_peer_record(envelope, ttl)
        return True
