"""Small signed gossip: GossipSub 1.1 alone, whose cost a message is less than half of what later versions cost."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import trio
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pubsub_notifee import PubsubNotifee

from octonode.errors import LocalProtocolError
from octonode.ids import PeerId, public_key_from_peer_id
from octonode.network.libp2p.containment import ContainedTasks, contained
from octonode.network.libp2p.gossip_host import GossipHost
from octonode.network.libp2p.host import Libp2pHost
from octonode.network.libp2p.library import to_library_id, to_peer_id
from octonode.network.libp2p.pubsub import AccountablePubsub

log = logging.getLogger(__name__)

MESSAGE_BYTES_MAX = 4_096
SUBSCRIPTION_MESSAGES_MAX = 256
RPC_BYTES_MAX = 64 * 1024
"""Of one envelope on the wire, which may hold several messages."""
NEIGHBOUR_MESSAGES_PER_SECOND_MAX = 64.0
"""Of one topic through one neighbour; the library's 10 silently drops what a neighbour passes on for others."""
TOPICS_PER_PEER_MAX = 64
HEARTBEAT_SECONDS = 1
END_SECONDS = 2.0
UPKEEP_SECONDS = 20.0

Delivery = tuple[PeerId, bytes]


class Gossip:
    """See `PubSub`. Our own messages do not come back to us. It serves while the host runs."""

    def __init__(self, host: Libp2pHost) -> None:
        self._host = host
        self._channels: dict[str, list[trio.MemorySendChannel[Delivery]]] = {}
        self._pubsub: Any = None
        self._nursery: trio.Nursery | None = None
        self.dropped = 0
        """Messages that found a subscriber's channel full."""
        host.add_service("gossip", self._run)

    async def publish(self, topic: str, data: bytes) -> None:
        """Hand a message to the neighbours; it may be lost. Raises LocalProtocolError over 4 KiB."""
        if len(data) > MESSAGE_BYTES_MAX:
            raise LocalProtocolError(f"a gossip message of {len(data)} bytes; at most {MESSAGE_BYTES_MAX} are allowed")
        if self._pubsub is None:
            log.debug("a message for %s is lost: gossip does not run", topic)
            await trio.lowlevel.checkpoint()
            return
        await contained("publishing", self._pubsub.publish, topic, data)

    async def subscribe(self, topic: str) -> trio.MemoryReceiveChannel[Delivery]:
        """(author, data) pairs; close the channel to unsubscribe. Also before the host runs."""
        send, receive = trio.open_memory_channel[Delivery](SUBSCRIPTION_MESSAGES_MAX)
        is_new = topic not in self._channels
        self._channels.setdefault(topic, []).append(send)
        if is_new and self._pubsub is not None:
            await self._join(self._pubsub, topic)
        else:
            await trio.lowlevel.checkpoint()
        return receive

    def neighbours(self, topic: str) -> frozenset[PeerId]:
        """The peers that are known to have subscribed to a topic."""
        if self._pubsub is None:
            return frozenset()
        return frozenset(to_peer_id(peer) for peer in self._pubsub.peer_topics.get(topic, ()))

    async def _run(self) -> None:
        """One life of the library's services; whoever supervises us begins the next."""
        async with trio.open_nursery() as nursery:
            manager = ContainedTasks(partial(_spawn, nursery))
            router, pubsub = self._build()
            router._manager = pubsub._manager = manager
            manager.run_daemon_task(router.run)
            manager.run_daemon_task(pubsub.run)
            manager.run_daemon_task(self._upkeep, router, pubsub)
            await pubsub.wait_until_ready()
            self._nursery, self._pubsub = nursery, pubsub
            try:
                for topic in tuple(self._channels):
                    await self._join(pubsub, topic)
                await pubsub.upkeep(map(to_library_id, self._host.connected))
                await manager.wait_finished()
            finally:
                self._nursery = self._pubsub = None
                with trio.move_on_after(END_SECONDS, shield=True):
                    await pubsub.end_streams()
                nursery.cancel_scope.cancel()

    async def _upkeep(self, router: Any, pubsub: AccountablePubsub) -> None:
        while True:
            await trio.sleep(UPKEEP_SECONDS)
            # Counted for a feature that is off, and never forgotten by the library.
            router.recent_message_deliveries.clear()
            await pubsub.upkeep(map(to_library_id, self._host.connected))

    def _build(self) -> tuple[Any, AccountablePubsub]:
        network = self._host.library.get_network()
        for notifee in list(network.notifees):
            if isinstance(notifee, PubsubNotifee):
                network.remove_notifee(notifee)  # of a life that has ended
        router = GossipSub(
            protocols=[PROTOCOL_ID_V11],
            degree=6,
            degree_low=4,
            degree_high=12,
            heartbeat_interval=HEARTBEAT_SECONDS,
            max_messages_per_topic_per_second=NEIGHBOUR_MESSAGES_PER_SECOND_MAX,
            adaptive_gossip_enabled=False,
            eclipse_protection_enabled=False,
        )
        pubsub = AccountablePubsub(
            GossipHost(self._host.library),
            router,
            strict_signing=True,
            max_inbound_rpc_size=RPC_BYTES_MAX,
            max_subscriptions_per_rpc=TOPICS_PER_PEER_MAX,
            max_subscriptions_per_peer=TOPICS_PER_PEER_MAX,
        )
        return router, pubsub

    async def _join(self, pubsub: Any, topic: str) -> None:
        assert self._nursery is not None
        pubsub.set_topic_validator(topic, _acceptable, False)
        subscription = await pubsub.subscribe(topic)
        # The library holds 32 messages and drops the rest, so they are taken out at once.
        self._nursery.start_soon(contained, f"the subscription of {topic}", self._drain, subscription, topic)

    async def _drain(self, subscription: Any, topic: str) -> None:
        own = to_library_id(self._host.peer_id)
        while True:
            message = await subscription.get()
            author = ID(message.from_id)
            if author != own:
                self._deliver(topic, (to_peer_id(author), bytes(message.data)))

    def _deliver(self, topic: str, delivery: Delivery) -> None:
        for channel in tuple(self._channels.get(topic, ())):
            try:
                channel.send_nowait(delivery)
            except trio.WouldBlock:
                self.dropped += 1
            except trio.BrokenResourceError:
                self._channels[topic].remove(channel)


def _spawn(nursery: trio.Nursery, what: str, work: Any, *args: Any) -> None:
    nursery.start_soon(partial(contained, level=logging.DEBUG), what, work, *args)


def _acceptable(forwarder: Any, message: Any) -> bool:
    """Whether a message is delivered and passed on: its size, one topic, an author with an Ed25519 key."""
    if len(message.data) > MESSAGE_BYTES_MAX or len(message.topicIDs) != 1:
        return False
    try:
        public_key_from_peer_id(to_peer_id(ID(message.from_id)))
    except ValueError:
        return False
    return True
