"""What the in-memory network adds for simulations: kill, silence, partition, latency, back-pressure, all in no time."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from octonode.config import NetworkConfig
from octonode.errors import Unreachable
from octonode.identity import NodeKey
from octonode.network.host import Stream, StreamReset
from octonode.network.slots import INBOUND_SLACK
from octonode.testing.network import MemoryNetwork, MemoryNode

ECHO = "/test/echo/1"
KEY = hashlib.sha256(b"content").digest()


async def echo(stream: Stream) -> None:
    while data := await stream.receive():
        await stream.send(data)


async def grow(nursery: trio.Nursery, net: MemoryNetwork, count: int, **settings: Any) -> list[MemoryNode]:
    """Nodes in a row, each connected to the one before it."""
    nodes: list[MemoryNode] = []
    for index in range(count):
        peer_id = NodeKey(hashlib.sha256(f"memory {index}".encode()).digest()).peer_id
        node = net.node(peer_id, NetworkConfig(**settings))
        node.host.handle(ECHO, echo)
        await nursery.start(node.run)
        if nodes:
            await node.host.connect(nodes[-1].host.addresses[0])
        nodes.append(node)
    return nodes


async def ask(a: MemoryNode, b: MemoryNode) -> bytes:
    stream = await a.host.open(b.host.peer_id, ECHO)
    await stream.send(b"?")
    answer = await stream.receive()
    await stream.finish()
    assert await stream.receive() == b""
    return answer


async def test_a_killed_peer_resets_its_streams_and_may_come_back(nursery: trio.Nursery) -> None:
    net = MemoryNetwork()
    a, b = await grow(nursery, net, 2)
    ended = trio.Event()

    async def stay(stream: Stream) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    b.host.handle("/stay", stay)
    stream = await a.host.open(b.host.peer_id, "/stay")
    net.kill(b.host.peer_id)
    with pytest.raises(StreamReset):
        await stream.receive()
    await ended.wait()
    assert a.host.connected == frozenset()
    with pytest.raises(Unreachable):
        await a.host.open(b.host.peer_id, ECHO)
    await nursery.start(b.run)
    a.host.learn(b.host.peer_id, b.host.addresses)
    assert await ask(a, b) == b"?"


async def test_silence_delivers_nothing_until_it_ends(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    net = MemoryNetwork()
    a, b = await grow(nursery, net, 2)
    stream = await a.host.open(b.host.peer_id, ECHO)
    net.silence(b.host.peer_id)
    await stream.send(b"into the void")
    with trio.move_on_after(3600) as hour:
        await stream.receive()
    assert hour.cancelled_caught
    with pytest.raises(Unreachable):
        await a.host.open(b.host.peer_id, ECHO)
    assert b.host.peer_id in a.host.connected  # nobody was told
    net.heal()
    assert await stream.receive() == b"into the void"


async def test_a_reset_in_silence_is_seen_when_it_ends(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    net = MemoryNetwork()
    a, b = await grow(nursery, net, 2)
    taken: list[Stream] = []

    async def take(stream: Stream) -> None:
        taken.append(stream)
        await trio.sleep_forever()

    b.host.handle("/take", take)
    stream = await a.host.open(b.host.peer_id, "/take")
    await trio.testing.wait_all_tasks_blocked()
    net.silence(b.host.peer_id)
    await taken[0].reset()
    with trio.move_on_after(60) as minute:
        await stream.receive()
    assert minute.cancelled_caught
    net.heal()
    with pytest.raises(StreamReset):
        await stream.receive()


async def test_a_partition_splits_routing_and_gossip_and_heals(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    net = MemoryNetwork()
    a, b, c = await grow(nursery, net, 3)
    net.partition([a.host.peer_id], [b.host.peer_id, c.host.peer_id])
    assert not await a.routing.provide(KEY)
    assert await c.routing.find_providers(KEY) == ()
    assert await ask(b, c) == b"?"
    ear = await c.pubsub.subscribe("/topic")
    await a.pubsub.publish("/topic", b"lost")
    net.heal()
    assert await a.routing.provide(KEY)
    assert await c.routing.find_providers(KEY) == (a.host.peer_id,)
    await a.pubsub.publish("/topic", b"heard")
    assert await ear.receive() == (a.host.peer_id, b"heard")


async def test_records_end(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    net = MemoryNetwork()
    a, b = await grow(nursery, net, 2, announcement_ttl_seconds=120.0)
    await a.routing.provide(KEY)
    net.kill(a.host.peer_id)
    assert await b.routing.find_providers(KEY) == (a.host.peer_id,)
    await trio.sleep(121)
    assert await b.routing.find_providers(KEY) == ()


async def test_latency_is_paid_once_a_way(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    net = MemoryNetwork(latency_seconds=0.05)
    a, b = await grow(nursery, net, 2)
    stream = await a.host.open(b.host.peer_id, ECHO)
    sent_at = trio.current_time()
    await stream.send(b"1")
    await stream.send(b"2")
    got = b""
    while len(got) < 2:
        got += await stream.receive()
    assert trio.current_time() - sent_at == pytest.approx(0.1)


async def test_a_writer_waits_for_a_reader(nursery: trio.Nursery) -> None:
    net = MemoryNetwork(window_bytes=1000)
    a, b = await grow(nursery, net, 2)

    async def hold(stream: Stream) -> None:
        await trio.sleep_forever()

    b.host.handle("/hold", hold)
    stream = await a.host.open(b.host.peer_id, "/hold")
    await stream.send(bytes(1000))
    with trio.move_on_after(0.02) as waited:
        await stream.send(b"one more")
    assert waited.cancelled_caught
    await stream.reset()


async def test_no_stream_is_left_behind(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    net = MemoryNetwork()
    a, b = await grow(nursery, net, 2, streams_per_peer_max=3)
    for _ in range(3 * INBOUND_SLACK):
        assert await ask(a, b) == b"?"
    async with trio.open_nursery() as rush:
        for _ in range(6):
            rush.start_soon(ask, a, b)
    await trio.sleep(10)
    assert (a.host.streams_open, b.host.streams_open) == (0, 0)
