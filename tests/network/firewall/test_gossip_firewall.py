"""Gossip that breaks the rules: forged, oversized, of no key at all."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import trio
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import PUBSUB_SIGNING_PREFIX

from octonode.config import NetworkConfig
from octonode.identity import NodeKey
from octonode.ids import PeerId
from octonode.network.libp2p import containment, gossip
from octonode.network.libp2p.gossip import PROTOCOL_ID_V11, Gossip
from octonode.network.libp2p.host import Libp2pHost
from octonode.network.libp2p.library import to_library_id

TOPIC = "/test/topic/1"
GENEROUS_SECONDS = 60


async def pair(nursery: trio.Nursery) -> tuple[tuple[Libp2pHost, Gossip], tuple[Libp2pHost, Gossip]]:
    """Two nodes subscribed to the topic, whose gossip has met."""
    nodes = []
    for index in range(2):
        key = NodeKey(hashlib.sha256(f"gossip {index}".encode()).digest())
        host = Libp2pHost(key, NetworkConfig(listen="127.0.0.1:0"))
        nodes.append((host, Gossip(host)))
        await nursery.start(host.run)
    (a_host, a), (b_host, b) = nodes
    await a_host.connect(b_host.addresses[0])
    await a.subscribe(TOPIC)
    return (a_host, a), (b_host, b)


async def met(a: Gossip, b_id: PeerId) -> None:
    while b_id not in a.neighbours(TOPIC):
        await trio.sleep(0.05)


def message(host: Libp2pHost, *, author: bytes, data: bytes, serial: int, topics: tuple[str, ...] = (TOPIC,)) -> Any:
    """Signed by `host`, whoever the author is said to be."""
    out = rpc_pb2.Message(data=data, topicIDs=topics, from_id=author, seqno=serial.to_bytes(8, "big"))
    payload = PUBSUB_SIGNING_PREFIX.encode() + out.SerializeToString()
    out.signature = host.library.get_private_key().sign(payload)
    out.key = host.library.get_public_key().serialize()
    return out


async def test_only_what_follows_the_rules_is_delivered(nursery: trio.Nursery) -> None:
    with trio.fail_after(GENEROUS_SECONDS):
        (a_host, a), (b_host, b) = await pair(nursery)
        ear = await b.subscribe(TOPIC)
        await met(a, b_host.peer_id)
        own = to_library_id(a_host.peer_id).to_bytes()
        stranger = to_library_id(NodeKey(bytes(32)).peer_id).to_bytes()
        victim = to_library_id(b_host.peer_id).to_bytes()
        keyless = b"\x12\x20" + bytes(32)

        forged = message(a_host, author=stranger, data=b"forged", serial=1)
        as_yourself = message(a_host, author=victim, data=b"as yourself", serial=2)
        unsigned = message(a_host, author=own, data=b"unsigned", serial=3)
        unsigned.ClearField("signature")
        changed = message(a_host, author=own, data=b"signed", serial=4)
        changed.data = b"changed"
        large = message(a_host, author=own, data=bytes(4097), serial=5)
        twofold = message(a_host, author=own, data=b"two topics", serial=6, topics=(TOPIC, "/other"))
        junk_key = message(a_host, author=keyless, data=b"junk key", serial=7)
        junk_key.key = b"\xff\xfe junk"
        good = message(a_host, author=own, data=b"good", serial=8)

        stream = a._pubsub.peers[to_library_id(b_host.peer_id)]
        for each in (forged, as_yourself, unsigned, changed, large, twofold, junk_key, good):
            assert await a._pubsub.write_msg(stream, rpc_pb2.RPC(publish=[each]))
        assert await ear.receive() == (a_host.peer_id, b"good")
        assert ear.statistics().current_buffer_used == 0


async def test_an_envelope_over_the_limit_costs_one_stream(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gossip, "UPKEEP_SECONDS", 0.3)
    with trio.fail_after(GENEROUS_SECONDS):
        (a_host, a), (b_host, b) = await pair(nursery)
        ear = await b.subscribe(TOPIC)
        await met(a, b_host.peer_id)
        stream = a._pubsub.peers[to_library_id(b_host.peer_id)]
        flood = rpc_pb2.RPC(publish=[rpc_pb2.Message(data=bytes(200_000), topicIDs=[TOPIC])])
        await a._pubsub.write_msg(stream, flood)
        while True:  # the stream is opened again, subscriptions are repeated, and then gossip goes on
            await a.publish(TOPIC, b"after all")
            with trio.move_on_after(0.3):
                assert await ear.receive() == (a_host.peer_id, b"after all")
                break
        assert b_host.peer_id in a_host.connected


async def test_the_service_starts_again_when_it_dies(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gossip, "UPKEEP_SECONDS", 0.3)
    monkeypatch.setattr(containment, "RESTART_PAUSE_SECONDS", 0.05)
    with trio.fail_after(GENEROUS_SECONDS):
        (a_host, a), (b_host, b) = await pair(nursery)
        ear = await b.subscribe(TOPIC)
        await met(a, b_host.peer_id)
        for node in (a, b):
            first_life = node._pubsub
            first_life.manager.finish()
            while node._pubsub in (None, first_life):
                await trio.sleep(0.02)
        while True:
            await a.publish(TOPIC, b"again")
            with trio.move_on_after(0.3):
                assert await ear.receive() == (a_host.peer_id, b"again")
                break


async def test_one_version_is_offered(nursery: trio.Nursery) -> None:
    (a_host, _), _ = await pair(nursery)
    offered = [str(each) for each in a_host.library.get_mux().get_protocols() if "meshsub" in str(each)]
    assert offered == [str(PROTOCOL_ID_V11)] == ["/meshsub/1.1.0"]
