"""Routing, values and gossip of the in-memory network: records at every node within reach, validated by each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from octonode.errors import LocalProtocolError
from octonode.ids import PeerId
from octonode.network.host import SelectRecord, ValidateRecord
from octonode.network.keys import KEY_BYTES, in_namespace
from octonode.testing.connections import MemoryHost

if TYPE_CHECKING:
    from octonode.testing.network import MemoryNetwork

PROVIDERS_MAX = 20
REPLICAS = 20
GOSSIP_BYTES_MAX = 4096
SUBSCRIPTION_MESSAGES_MAX = 256


class MemoryRouting:
    """See `ContentRouting`. A record lives `record_ttl_seconds` at the node that keeps it."""

    def __init__(self, network: MemoryNetwork, host: MemoryHost, *, record_ttl_seconds: float) -> None:
        self._network = network
        self._host = host
        self._ttl_seconds = record_ttl_seconds
        self._kept: dict[bytes, dict[PeerId, float]] = {}

    async def provide(self, key: bytes) -> bool:
        assert len(key) == KEY_BYTES
        await trio.sleep(self._network.latency_seconds)
        if not self._host.running:
            return False
        self.keep(key, self._host.peer_id)
        others = list(self._network.within_reach(self._host))[:REPLICAS]
        for node in others:
            node.routing.keep(key, self._host.peer_id)
        return bool(others)

    async def find_providers(self, key: bytes) -> tuple[PeerId, ...]:
        assert len(key) == KEY_BYTES
        await trio.sleep(2 * self._network.latency_seconds)
        found = dict.fromkeys(self.kept(key))
        if self._host.running:
            for node in self._network.within_reach(self._host):
                found.update(dict.fromkeys(node.routing.kept(key)))
        return tuple(found)[:PROVIDERS_MAX]

    def keep(self, key: bytes, provider: PeerId) -> None:
        self._kept.setdefault(key, {})[provider] = trio.current_time() + self._ttl_seconds

    def kept(self, key: bytes) -> tuple[PeerId, ...]:
        now = trio.current_time()
        fresh = {peer: expires for peer, expires in self._kept.get(key, {}).items() if expires > now}
        self._kept[key] = fresh
        return tuple(fresh)


class MemoryValues:
    """See `ValueStore`."""

    def __init__(
        self, network: MemoryNetwork, host: MemoryHost, validate: ValidateRecord, select: SelectRecord
    ) -> None:
        self._network = network
        self._host = host
        self._validate = validate
        self._select = select
        self._kept: dict[str, bytes] = {}

    async def put(self, key: str, value: bytes) -> bool:
        if not in_namespace(key):
            raise LocalProtocolError(f"{key!r} is in none of the namespaces of values")
        self._validate(key, value)
        await trio.sleep(self._network.latency_seconds)
        if not self.keep(key, value) or not self._host.running:
            return False
        others = list(self._network.within_reach(self._host))[:REPLICAS]
        taken = [node.values.keep(key, value) for node in others]
        return any(taken)

    async def get(self, key: str, timeout_seconds: float = 30.0) -> bytes | None:
        await trio.sleep(2 * self._network.latency_seconds)
        values = [self._kept.get(key)]
        if self._host.running:
            values += [node.values._kept.get(key) for node in self._network.within_reach(self._host)]
        good = [value for value in dict.fromkeys(values) if value is not None and self._accepts(key, value)]
        return good[self._select(key, good)] if good else None

    def keep(self, key: str, value: bytes) -> bool:
        """False when our validator refuses the value, and when we keep a better one."""
        if not in_namespace(key) or not self._accepts(key, value):
            return False
        kept = self._kept.get(key)
        choice = [value] if kept is None or not self._accepts(key, kept) else [kept, value]
        self._kept[key] = choice[self._select(key, choice)]
        return self._kept[key] == value

    def _accepts(self, key: str, value: bytes) -> bool:
        try:
            self._validate(key, value)
        except Exception:
            return False
        return True


class MemoryPubSub:
    """See `PubSub`. Our own messages do not come back to us."""

    def __init__(self, network: MemoryNetwork, host: MemoryHost) -> None:
        self._network = network
        self._host = host
        self._subscriptions: dict[str, list[trio.MemorySendChannel[tuple[PeerId, bytes]]]] = {}
        self.dropped = 0

    async def publish(self, topic: str, data: bytes) -> None:
        if len(data) > GOSSIP_BYTES_MAX:
            raise LocalProtocolError(f"a gossip message of {len(data)} bytes; at most {GOSSIP_BYTES_MAX} are allowed")
        await trio.sleep(self._network.latency_seconds)
        if self._host.running:
            for node in self._network.within_reach(self._host):
                node.pubsub.deliver(topic, self._host.peer_id, data)

    async def subscribe(self, topic: str) -> trio.MemoryReceiveChannel[tuple[PeerId, bytes]]:
        send, receive = trio.open_memory_channel[tuple[PeerId, bytes]](SUBSCRIPTION_MESSAGES_MAX)
        self._subscriptions.setdefault(topic, []).append(send)
        await trio.lowlevel.checkpoint()
        return receive

    def deliver(self, topic: str, author: PeerId, data: bytes) -> None:
        for channel in tuple(self._subscriptions.get(topic, ())):
            try:
                channel.send_nowait((author, data))
            except trio.WouldBlock:
                self.dropped += 1
            except trio.BrokenResourceError:
                self._subscriptions[topic].remove(channel)
