"""The library's publish-subscribe service as we run it: it ends its streams, and does nothing twice.

Three of its methods are replaced because of what they cost a message: the way in verified a peer record with each
envelope, read its length byte by byte, each byte answered by a frame of the muxer, and started a task for each message;
the way out repeated our record; and publishing verified what it had just signed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import trio
from libp2p.exceptions import ParseError
from libp2p.io.exceptions import IOException, MessageTooLarge
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.utils import maybe_consume_signed_record

from octonode.network.libp2p.containment import contained, reset_quietly
from octonode.network.libp2p.gossip_host import GossipHost

log = logging.getLogger(__name__)

READ_BYTES = 64 * 1024
VARINT_BYTES_MAX = 10


class AccountablePubsub(Pubsub):  # type: ignore[misc]
    """The library's service; see the module. Its host is a `GossipHost`."""

    def __init__(self, host: GossipHost, router: Any, **settings: Any) -> None:
        super().__init__(host, router, **settings)
        self._taken: set[Any] = set()

    async def stream_handler(self, stream: Any) -> None:
        """The library's own returns and leaves the stream open: the peer writes to nobody and never learns."""
        self._taken.add(stream)
        try:
            await super().stream_handler(stream)
        finally:
            self._taken.discard(stream)
            await reset_quietly(stream)

    async def end_streams(self) -> None:
        for stream in (*self._taken, *self.peers.values()):
            await reset_quietly(stream)

    async def upkeep(self, connected: Iterable[ID]) -> None:
        """Say again what we are subscribed to, with a new peer record if there is one, and open what is missing.

        When one of the two streams between peers is lost, the library forgets the other end's subscriptions, which
        the other end has no reason to repeat: without this the two stay deaf while they are connected.
        """
        self.host.refresh()
        for topic in tuple(self.topic_ids):
            packet, _ = self._build_announce_rpc(topic, subscribe=True)
            await self.message_all_peers(packet.SerializeToString())
        for peer in connected:
            if peer not in self.peers:
                self._schedule_peer_stream_retry(peer)

    # The way in.

    async def continuously_read_stream(self, stream: Any) -> None:
        """In place of the library's: a record is verified when it is another than the last on this stream."""
        peer, envelopes = stream.muxed_conn.peer_id, Envelopes(stream, self.max_inbound_rpc_size)
        verified: bytes | None = None
        try:
            while self.manager.is_running:
                envelope = rpc_pb2.RPC.FromString(await envelopes.receive())
                if envelope.HasField("senderRecord"):
                    if envelope.senderRecord != verified:
                        if not maybe_consume_signed_record(envelope, self.host, peer):
                            log.debug("an envelope of %s is dropped: its peer record is forged or another's", peer)
                            continue
                        verified = envelope.senderRecord
                    envelope.ClearField("senderRecord")  # or the router would verify it again
                await self._take(peer, envelope)
        except MessageTooLarge as error:
            log.debug("gossip of %s: %s", peer, error)
            self._handle_dead_peer(peer)
        except IOException as error:
            log.debug("gossip of %s has ended: %r", peer, error)

    async def _take(self, peer: ID, envelope: Any) -> None:
        for message in envelope.publish:
            if self._is_subscribed_to_msg(message):
                # `super`: even a peer with our own key does not publish in our name, see `push_msg`.
                await contained("a gossip message", super().push_msg, peer, message, level=logging.DEBUG)
                await trio.lowlevel.checkpoint()
        if len(envelope.subscriptions) <= self.max_subscriptions_per_rpc:
            for subscription in envelope.subscriptions:
                self.handle_subscription(peer, subscription)
        if envelope.HasField("control"):
            await self.router.handle_rpc(envelope, peer)

    # The way out.

    async def push_msg(self, msg_forwarder: ID, msg: Any) -> None:
        """Our own message, which `publish` has just signed: not verified again, not delivered to ourselves."""
        self._mark_msg_seen(msg)
        await self.router.publish(msg_forwarder, msg)

    async def write_msg(self, stream: Any, rpc_msg: Any) -> bool:
        """All envelopes go out here but for the greeting, the first on a stream, which holds our record."""
        self.host.say_once(stream, rpc_msg)
        return bool(await super().write_msg(stream, rpc_msg))


class Envelopes:
    """Length-prefixed envelopes off a stream of the library, as many at a time as there are."""

    def __init__(self, stream: Any, bytes_max: int) -> None:
        self._stream = stream
        self._bytes_max = bytes_max
        self._held = bytearray()

    async def receive(self) -> bytes:
        """Raises MessageTooLarge, ParseError, and what the stream raises at its end."""
        if (envelope := self._next()) is not None:
            await trio.lowlevel.checkpoint()
            return envelope
        while envelope is None:
            data = await self._stream.read(READ_BYTES)
            if not data:
                raise StreamEOF("the stream has ended")
            self._held += data
            envelope = self._next()
        return envelope

    def _next(self) -> bytes | None:
        length = 0
        for index, byte in enumerate(self._held[:VARINT_BYTES_MAX]):
            length |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                break
        else:
            if len(self._held) >= VARINT_BYTES_MAX:
                raise ParseError("a length of more than ten bytes")
            return None
        if length > self._bytes_max:
            raise MessageTooLarge(f"an envelope of {length} bytes; at most {self._bytes_max} are allowed")
        end = index + 1 + length
        if len(self._held) < end:
            return None
        envelope = bytes(self._held[index + 1 : end])
        del self._held[:end]
        return envelope
