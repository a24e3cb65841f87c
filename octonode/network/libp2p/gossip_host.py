"""The library's host as its gossip sees it: our signed peer record is ready made, and said once on each stream.

The library asks for our addresses, compares them and serialises the record for every envelope that it builds, and puts
the record into each. Here it gets the same bytes each time until `refresh` finds other addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from libp2p.peer.id import ID
from libp2p.peer.peerstore import _peer_record_signer_matches, env_to_send_in_RPC
from multiaddr import Multiaddr


class GossipHost:
    """Delegates to the library's host, but for what is named here."""

    def __init__(self, library_host: Any) -> None:
        self._host = library_host
        self._peerstore = GossipPeerStore(library_host.get_peerstore())
        self._addresses: list[Multiaddr] = []
        self._told: WeakKeyDictionary[Any, bytes] = WeakKeyDictionary()
        """Outbound streams, and the record that was last said on each."""
        self.refresh()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    @property
    def record(self) -> bytes:
        """Our signed peer record as it goes into an envelope."""
        return self._peerstore.own.data

    def refresh(self) -> None:
        """Look whether our addresses are others than those of the record; if so there is a new one from now on."""
        data, _ = env_to_send_in_RPC(self._host)
        self._addresses = self._host.get_addrs()
        self._peerstore.own = OwnRecord(frozenset(self._addresses), data)

    def get_addrs(self) -> list[Multiaddr]:
        return self._addresses

    def get_peerstore(self) -> GossipPeerStore:
        return self._peerstore

    async def new_stream(self, peer: ID, protocols: Sequence[str]) -> Any:
        """The library's next step is an envelope of greeting, which holds the record as it is now."""
        stream = await self._host.new_stream(peer, protocols)
        self.refresh()
        self._told[stream] = self.record
        return stream

    def say_once(self, stream: Any, envelope: Any) -> None:
        """Put our record into an envelope that goes out on `stream` now, or take it out when it is no news there.

        An empty field would not do: receivers take it for a forged record.
        """
        if self._told.get(stream) == self.record:
            envelope.ClearField("senderRecord")
        else:
            envelope.senderRecord = self._told[stream] = self.record


class OwnRecord:
    """Stands in for the library's envelope of our own record, which would be serialised with each question."""

    def __init__(self, addresses: frozenset[Multiaddr], data: bytes) -> None:
        self._addresses = addresses
        self.data = data

    def _env_addrs_set(self) -> frozenset[Multiaddr]:
        return self._addresses

    def marshal_envelope(self) -> bytes:
        return self.data


class GossipPeerStore:
    """The peer store as the library's gossip sees it. Delegates but for what is named here."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.own = OwnRecord(frozenset(), b"")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get_local_record(self) -> OwnRecord:
        return self.own

    def consume_peer_record(self, envelope: Any, ttl: int) -> bool:
        """False for a forged record alone: the library also drops the greeting of a peer whose clock was set back."""
        if not _peer_record_signer_matches(envelope):
            return False
        self._store.consume_peer_record(envelope, ttl)
        return True
