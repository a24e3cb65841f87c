"""Envelopes of gossip on the wire: our peer record once on each stream, a peer's verified once, frames cut anywhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from libp2p import new_host as new_stock_host
from libp2p.exceptions import ParseError
from libp2p.io.exceptions import MessageTooLarge
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.envelope import consume_envelope, seal_record
from libp2p.peer.peer_record import PeerRecord
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub import utils as library_check
from libp2p.pubsub.gossipsub import PROTOCOL_ID, PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import PUBSUB_SIGNING_PREFIX, Pubsub
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

from octonode.config import NetworkConfig
from octonode.network.libp2p import gossip
from octonode.network.libp2p.gossip import PROTOCOL_ID_V11, Gossip
from octonode.network.libp2p.host import Libp2pHost
from octonode.network.libp2p.library import to_library_id
from octonode.network.libp2p.pubsub import Envelopes
from tests.network.firewall.conftest import new_key

TOPIC = "/test/topic/1"
GENEROUS_SECONDS = 60
NewHost = Callable[..., Awaitable[Libp2pHost]]
Until = Callable[[Callable[[], Any]], Awaitable[None]]


class BarePeer:
    """Speaks the protocol by hand: keeps what it is sent, sends what it is told to."""

    def __init__(self, host: Libp2pHost) -> None:
        self.host = host
        self.streams: list[Any] = []
        self.received: list[Any] = []
        self._out: Any = None
        self._serial = 0
        host.library.set_stream_handler(PROTOCOL_ID_V11, self._keep)

    async def _keep(self, stream: Any) -> None:
        self.streams.append(stream)
        envelopes = Envelopes(stream, 1_000_000)
        while True:
            self.received.append(rpc_pb2.RPC.FromString(await envelopes.receive()))

    async def say(self, to: Libp2pHost, envelope: Any) -> None:
        if self._out is None:
            self._out = await self.host.library.new_stream(to_library_id(to.peer_id), [PROTOCOL_ID_V11])
        await self._out.write(encode_varint_prefixed(envelope.SerializeToString()))

    async def subscribe(self, to: Libp2pHost) -> None:
        await self.say(to, rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=TOPIC)]))

    def message(self, data: bytes) -> Any:
        self._serial += 1
        own = to_library_id(self.host.peer_id).to_bytes()
        out = rpc_pb2.Message(data=data, topicIDs=[TOPIC], from_id=own, seqno=self._serial.to_bytes(8, "big"))
        payload = PUBSUB_SIGNING_PREFIX.encode() + out.SerializeToString()
        out.signature = self.host.library.get_private_key().sign(payload)
        return out

    def has(self, data: bytes) -> bool:
        return any(message.data == data for envelope in self.received for message in envelope.publish)

    @property
    def records(self) -> list[bytes]:
        return [each.senderRecord for each in self.received if each.HasField("senderRecord")]


def record_of(host: Libp2pHost, place: str = "/ip4/192.0.2.1/tcp/1", *, sequence: int | None = None) -> bytes:
    """A good peer record, signed by the host itself."""
    owner = to_library_id(host.peer_id)
    record = PeerRecord(owner, [Multiaddr(f"{place}/p2p/{host.peer_id}")], sequence)
    return bytes(seal_record(record, host.library.get_private_key()).marshal_envelope())


async def node_beside(nursery: trio.Nursery, muxer: Any, peer: BarePeer) -> tuple[Libp2pHost, Gossip]:
    """A node of ours with gossip that is connected to `peer`."""
    host = Libp2pHost(new_key(), NetworkConfig(listen="127.0.0.1:0", muxer=muxer))
    service = Gossip(host)
    await nursery.start(host.run)
    await host.connect(peer.host.addresses[0])
    return host, service


async def say_until_heard(service: Gossip, peer: BarePeer, data: bytes) -> None:
    """Each time it is another message, and the first may find no way yet."""
    while not peer.has(data):
        await service.publish(TOPIC, data)
        await trio.sleep(0.05)


async def test_our_record_goes_once_on_each_stream(nursery: trio.Nursery, muxer: str, new_host: NewHost) -> None:
    with trio.fail_after(GENEROUS_SECONDS):
        peer = BarePeer(await new_host())
        host, service = await node_beside(nursery, muxer, peer)
        await service.subscribe(TOPIC)
        await peer.subscribe(host)
        for data in (b"one", b"two", b"three"):
            await say_until_heard(service, peer, data)
        assert peer.received[0].HasField("senderRecord")
        (record,) = peer.records
        assert consume_envelope(record, "libp2p-peer-record")[1].peer_id == to_library_id(host.peer_id)

        await peer.streams[0].reset()
        while len(peer.streams) < 2:
            await service.publish(TOPIC, b"who writes learns that the stream is lost")
            await trio.sleep(0.05)
        await peer.subscribe(host)  # which is forgotten when a stream is lost
        await say_until_heard(service, peer, b"on another stream")
        await say_until_heard(service, peer, b"and more")
        assert peer.records == [record, record]
        assert len(peer.streams) == 2


async def test_a_new_record_goes_once_when_our_addresses_change(
    nursery: trio.Nursery, muxer: str, new_host: NewHost, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gossip, "UPKEEP_SECONDS", 0.1)
    with trio.fail_after(GENEROUS_SECONDS):
        peer = BarePeer(await new_host())
        host, service = await node_beside(nursery, muxer, peer)
        await service.subscribe(TOPIC)
        await until(lambda: len(peer.received) > 3)  # of upkeep
        (old,) = {*peer.records}
        assert len(peer.records) <= len(peer.streams)  # on a busy machine the library may try a second one
        host._places = ("/ip4/192.0.2.7/tcp/4001",)
        await until(lambda: {*peer.records} != {old})
        (new,) = {*peer.records} - {old}
        (address,) = consume_envelope(new, "libp2p-peer-record")[1].addrs
        assert str(address).startswith("/ip4/192.0.2.7/tcp/4001")
        count = len(peer.received)
        await until(lambda: len(peer.received) > count + 3)
        assert peer.records.count(new) <= len(peer.streams)
        assert {*peer.records} == {old, new}


async def test_what_comes_with_a_forged_record_is_dropped(nursery: trio.Nursery, muxer: str, new_host: NewHost) -> None:
    with trio.fail_after(GENEROUS_SECONDS):
        peer, good = BarePeer(await new_host()), BarePeer(await new_host())
        host, service = await node_beside(nursery, muxer, peer)
        ear = await service.subscribe(TOPIC)
        own = record_of(peer.host)
        forged = own[:-1] + bytes([own[-1] ^ 1])
        foreign = record_of(good.host)
        for record in (forged, foreign, b"", b"junk"):
            await peer.say(host, rpc_pb2.RPC(publish=[peer.message(b"bad")], senderRecord=record))
        await peer.say(host, rpc_pb2.RPC(publish=[peer.message(b"no record")]))
        await peer.say(host, rpc_pb2.RPC(publish=[peer.message(b"own record")], senderRecord=own))
        await peer.say(host, rpc_pb2.RPC(publish=[peer.message(b"forged later")], senderRecord=forged))
        await peer.say(host, rpc_pb2.RPC(publish=[peer.message(b"again")], senderRecord=own))
        for data in (b"no record", b"own record", b"again"):
            assert await ear.receive() == (peer.host.peer_id, data)
        await good.host.connect(host.addresses[0])
        await good.say(host, rpc_pb2.RPC(publish=[good.message(b"good")], senderRecord=foreign))
        assert await ear.receive() == (good.host.peer_id, b"good")


async def test_a_record_is_verified_when_it_is_another(
    nursery: trio.Nursery, muxer: str, new_host: NewHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[bytes] = []

    def counted(data: bytes, domain: str) -> Any:
        verified.append(data)
        return consume_envelope(data, domain)

    monkeypatch.setattr(library_check, "consume_envelope", counted)
    with trio.fail_after(GENEROUS_SECONDS):
        peer = BarePeer(await new_host())
        host, service = await node_beside(nursery, muxer, peer)
        ear = await service.subscribe(TOPIC)
        new = record_of(peer.host, "/ip4/192.0.2.2/tcp/2", sequence=2)
        old = record_of(peer.host, "/ip4/192.0.2.1/tcp/1", sequence=1)
        graft = rpc_pb2.ControlMessage(graft=[rpc_pb2.ControlGraft(topicID=TOPIC)])
        for record in (new, new, new, old, old):  # the old one: a peer whose clock was set back
            envelope = rpc_pb2.RPC(publish=[peer.message(b"x")], senderRecord=record, control=graft)
            await peer.say(host, envelope)
            assert await ear.receive() == (peer.host.peer_id, b"x")
        assert verified == [new, old]


async def test_a_stock_host_hears_us_and_is_heard(nursery: trio.Nursery, muxer: Any) -> None:
    """It sends its record with each envelope, and takes ours without."""
    async with AsyncExitStack() as stack:
        stack.enter_context(trio.fail_after(GENEROUS_SECONDS))
        host = Libp2pHost(new_key(), NetworkConfig(listen="127.0.0.1:0", muxer=muxer))
        service = Gossip(host)
        await nursery.start(host.run)
        ear = await service.subscribe(TOPIC)

        stock = new_stock_host()
        await stack.enter_async_context(stock.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]))
        router = GossipSub(
            protocols=[PROTOCOL_ID_V12, PROTOCOL_ID_V11, PROTOCOL_ID],
            degree=6,
            degree_low=4,
            degree_high=12,
            heartbeat_interval=1,
        )
        theirs = Pubsub(stock, router, strict_signing=True)
        await stack.enter_async_context(background_trio_service(theirs))
        await stack.enter_async_context(background_trio_service(router))
        await theirs.wait_until_ready()
        subscription = await theirs.subscribe(TOPIC)
        place = Multiaddr(host.addresses[0].split("/p2p/")[0])
        await stock.connect(PeerInfo(to_library_id(host.peer_id), [place]))
        await theirs.wait_for_mesh(to_library_id(host.peer_id), TOPIC, GENEROUS_SECONDS)

        for number in range(5):
            await theirs.publish(TOPIC, b"theirs %d" % number)
            assert await ear.receive() == (stock.get_id().to_base58(), b"theirs %d" % number)
        heard: list[bytes] = []
        while len(heard) < 5:
            await service.publish(TOPIC, b"ours %d" % len(heard))
            with trio.move_on_after(1):
                while (message := await subscription.get()).from_id != to_library_id(host.peer_id).to_bytes():
                    pass
                if message.data not in heard:  # one that was published again because it came late
                    heard.append(message.data)
        assert heard == [b"ours %d" % number for number in range(5)]


class Pieces:
    """A stream that gives these bytes, then ends."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    async def read(self, count: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._pieces.pop(0) if self._pieces else b""


async def test_envelopes_are_read_whole_however_they_are_cut() -> None:
    contents = [b"", b"x", bytes(range(200)), bytes(300)]
    wire = b"".join(encode_varint_prefixed(each) for each in contents)
    for cut in range(len(wire) + 1):
        envelopes = Envelopes(Pieces(*(piece for piece in (wire[:cut], wire[cut:]) if piece)), 300)
        assert [await envelopes.receive() for _ in contents] == contents
        with pytest.raises(StreamEOF):
            await envelopes.receive()


@pytest.mark.parametrize(
    ("wire", "fault"),
    [
        (encode_varint_prefixed(bytes(301)), MessageTooLarge),
        (b"\xff" * 9 + b"\x01", MessageTooLarge),
        (b"\xff" * 10, ParseError),
        (encode_varint_prefixed(bytes(200))[:-1], StreamEOF),
        (b"\x80", StreamEOF),
    ],
)
async def test_a_bad_length_or_half_an_envelope_is_a_fault(wire: bytes, fault: type[Exception]) -> None:
    with pytest.raises(fault):
        await Envelopes(Pieces(wire), 300).receive()
