"""What one node keeps for the routing table: provider records and values, bounded, and gone when they expire.

The library keeps provider records for 48 hours, and worse, stamps a record anew whenever it hears of it from a third
party, so that a provider that left is passed on for ever. Here a record comes from its provider alone, lives
`ttl_seconds` from then, and is never republished by anybody else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.kad_dht import common
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.kad_dht.value_store import ValueStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import env_to_send_in_RPC
from libp2p.utils.varint import encode_uvarint, read_varint_prefixed_bytes_limited

from octonode.network.keys import KEY_BYTES, NAME_NAMESPACE

log = logging.getLogger(__name__)

PROVIDERS_PER_KEY_MAX = 20
KEYS_PER_PROVIDER_MAX = 1024
PROVIDER_RECORDS_MAX = 65_536
VALUES_MAX = 4_096
NAME_VALUES_MAX = 2_048
"""Name records among them when it is full: they do not drive out where peers are, nor the other way round."""
VALUE_BYTES_MAX = 4_096
MESSAGE_BYTES_MAX = 64 * 1024
"""20 peers with addresses and signed records are 8 KiB; the library would take 4 MiB."""
ECHO_SECONDS = 5.0
_NAMES = f"/{NAME_NAMESPACE}/".encode()


class FreshProviders(ProviderStore):  # type: ignore[misc]
    """Provider records by key, each with the time of its end. `now` is a monotonic clock in seconds."""

    def __init__(self, host: Any, peer_routing: Any, *, ttl_seconds: float, now: Callable[[], float]) -> None:
        super().__init__(host=host, peer_routing=peer_routing)
        self._ttl_seconds = ttl_seconds
        self._now = now
        self._kept: dict[bytes, dict[ID, tuple[PeerInfo, float]]] = {}
        self._keys_of: dict[ID, set[bytes]] = {}

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        """Keep a record that its provider itself sent; the caller has checked that. Dropped at any bound."""
        if len(key) != 2 + KEY_BYTES or not key.startswith(b"\x12\x20"):
            return
        self._drop_expired(key)
        records = self._kept.get(key, {})
        peer = provider.peer_id
        if peer not in records and not self._has_room(records, peer):
            return
        self._kept.setdefault(key, {})[peer] = (provider, self._now() + self._ttl_seconds)
        self._keys_of.setdefault(peer, set()).add(key)

    def _has_room(self, records: dict[ID, tuple[PeerInfo, float]], peer: ID) -> bool:
        if len(records) >= PROVIDERS_PER_KEY_MAX or len(self._keys_of.get(peer, ())) >= KEYS_PER_PROVIDER_MAX:
            return False
        if self.size() >= PROVIDER_RECORDS_MAX:
            self.cleanup_expired()
        return self.size() < PROVIDER_RECORDS_MAX

    def get_providers(self, key: bytes) -> list[PeerInfo]:
        self._drop_expired(key)
        return [provider for provider, _ in self._kept.get(key, {}).values()]

    def _drop_expired(self, key: bytes) -> None:
        records, now = self._kept.get(key), self._now()
        if records is None:
            return
        for peer in [peer for peer, (_, ends_at) in records.items() if ends_at <= now]:
            del records[peer]
            keys = self._keys_of[peer]
            keys.discard(key)
            if not keys:
                del self._keys_of[peer]
        if not records:
            del self._kept[key]

    def cleanup_expired(self) -> None:
        for key in list(self._kept):
            self._drop_expired(key)

    def size(self) -> int:
        return sum(len(keys) for keys in self._keys_of.values())

    async def _republish_provider_records(self) -> None:
        """Nothing: the announcer provides again what still holds, at its own pace."""

    async def find_providers(self, key: bytes, count: int = PROVIDERS_PER_KEY_MAX) -> list[PeerInfo]:
        raise NotImplementedError("kad.py asks the network instead; this one answers from its own store first")

    async def _send_add_provider(self, peer_id: ID, key: bytes) -> bool:
        """True when the peer echoed the record, which it does only after it has taken it."""
        stream = await self.host.new_stream(peer_id, [TProtocol(common.PROTOCOL_ID)])
        try:
            envelope, _ = env_to_send_in_RPC(self.host)
            message = Message(type=Message.MessageType.ADD_PROVIDER, key=key, senderRecord=envelope)
            addresses = [address.to_bytes() for address in self.host.get_addrs()]
            message.providerPeers.add(id=self.local_peer_id.to_bytes(), addrs=addresses, signedRecord=envelope)
            payload = message.SerializeToString()
            with trio.fail_after(ECHO_SECONDS):
                await stream.write(encode_uvarint(len(payload)) + payload)
                echo = Message.FromString(await read_varint_prefixed_bytes_limited(stream, MESSAGE_BYTES_MAX))
            return bool(echo.type == Message.MessageType.ADD_PROVIDER and echo.key == key)
        except Exception as error:
            log.debug("%s took no provider record: %r", peer_id, error)
            return False
        finally:
            await stream.close()


class CheckedValues(ValueStore):  # type: ignore[misc]
    """Values by key; one that its validator refuses by now, an expired announcement say, is dropped."""

    def __init__(self, host: Any, local_peer_id: ID, *, still_valid: Callable[[bytes, bytes], bool]) -> None:
        super().__init__(host=host, local_peer_id=local_peer_id)
        self._still_valid = still_valid

    def get(self, key: bytes) -> Any:
        record = super().get(key)
        if record is not None and not self._still_valid(key, record.value):
            self.remove(key)
            return None
        return record

    def remove(self, key: bytes) -> bool:
        self.local_keys.discard(key)
        return bool(super().remove(key))

    def cleanup_expired(self) -> int:
        before = len(self.store)
        for key in list(self.store):
            self.get(key)
        return before - len(self.store)

    def _evict_if_full(self) -> None:
        if len(self.store) >= VALUES_MAX:
            self.cleanup_expired()
        while len(self.store) >= VALUES_MAX:
            names = [key for key in self.store if key.startswith(_NAMES)]
            others = (key for key in self.store if not key.startswith(_NAMES))
            self.remove(names[0] if len(names) > NAME_VALUES_MAX else next(others))

    async def _republish_records(self, peer_routing: Any = None) -> None:
        """Nothing: the announcer puts its record again before it expires."""
