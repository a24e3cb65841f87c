"""What routing, values and gossip do, in memory and over libp2p."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from octonode.errors import LocalProtocolError
from octonode.ids import PeerId
from octonode.network.host import Network, PubSub

KEY = hashlib.sha256(b"some content").digest()
TOPIC = "/test/topic/1"
GENEROUS_SECONDS = 60


async def until(condition: Callable[[], Awaitable[Any]]) -> None:
    """Inside a fail_after: records need a moment to be where they should be."""
    while not await condition():
        await trio.sleep(0.1)


def finds(node: Network, providers: set[PeerId]) -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        return set(await node.routing.find_providers(KEY)) == providers

    return condition


def reads(node: Network, value: bytes) -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        return await node.values.get("/octo/some") == value

    return condition


async def line(world: Any, count: int, **settings: Any) -> list[Network]:
    """Nodes in a row, each connected to the one before it."""
    nodes: list[Network] = []
    for _ in range(count):
        node = await world.running(**settings)
        if nodes:
            await node.host.connect(nodes[-1].host.addresses[0])
        nodes.append(node)
    return nodes


async def provide(node: Network, key: bytes) -> None:
    """Provide until a peer took the record, as the announcer does."""
    await until(lambda: node.routing.provide(key))


async def test_nobody_takes_a_record_of_a_node_alone(world: Any) -> None:
    node = await world.running()
    with trio.fail_after(GENEROUS_SECONDS):
        assert not await node.routing.provide(KEY)
        assert not await node.values.put("/octo/me", b"good")


async def test_a_provider_is_found_from_the_other_end(world: Any) -> None:
    with trio.fail_after(GENEROUS_SECONDS):
        a, b, c = await line(world, 3)
        assert await c.routing.find_providers(KEY) == ()
        await provide(a, KEY)
        await until(finds(c, {a.host.peer_id}))
        await provide(b, KEY)
        await until(finds(c, {a.host.peer_id, b.host.peer_id}))


async def test_a_record_ends_with_its_time(world: Any) -> None:
    with trio.fail_after(GENEROUS_SECONDS):
        a, b = await line(world, 2, announcement_ttl_seconds=1.5)

        async def provided_and_found() -> bool:  # provided anew each time: on a busy machine the record may be over
            await a.routing.provide(KEY)
            return await b.routing.find_providers(KEY) == (a.host.peer_id,)

        await until(provided_and_found)
        await until(finds(b, set()))
        await until(finds(a, set()))


async def put(node: Network, key: str, value: bytes) -> None:
    await until(lambda: node.values.put(key, value))


async def test_a_value_is_read_elsewhere_and_the_better_one_wins(world: Any) -> None:
    with trio.fail_after(GENEROUS_SECONDS):
        a, b, c = await line(world, 3)
        assert await c.values.get("/octo/some") is None
        await put(a, "/octo/some", b"good 1")
        await until(reads(c, b"good 1"))
        await put(b, "/octo/some", b"good 2")
        for node in (a, b, c):
            await until(reads(node, b"good 2"))


async def test_an_older_value_does_not_come_back(world: Any) -> None:
    with trio.fail_after(GENEROUS_SECONDS):
        a, b, c = await line(world, 3)
        await put(a, "/octo-model/some/name", b"good 2")
        await until(lambda: c.values.put("/octo-model/some/name", b"good 2"))  # what is kept already counts as taken
        assert not await c.values.put("/octo-model/some/name", b"good 1")
        for node in (a, b, c):
            assert await node.values.get("/octo-model/some/name", 10.0) == b"good 2"


async def test_a_key_of_no_namespace_is_refused(world: Any) -> None:
    with trio.fail_after(GENEROUS_SECONDS):
        a, b = await line(world, 2)
        for key in ("/other/some", "/octo", "octo/some", "/octo-models/some/name"):
            with pytest.raises(LocalProtocolError):
                await a.values.put(key, b"good")
            assert await b.values.get(key) is None


async def test_our_own_bad_value_is_refused(world: Any) -> None:
    with trio.fail_after(GENEROUS_SECONDS):
        a, b = await line(world, 2)
        with pytest.raises(ValueError, match="is not good"):
            await a.values.put("/octo/some", b"evil")
        assert await b.values.get("/octo/some") is None


async def say_until_heard(speaker: PubSub, hears: trio.MemoryReceiveChannel[Any], data: bytes) -> Any:
    """Gossip may be lost, the more so while subscriptions still travel: say it again."""
    while True:
        await speaker.publish(TOPIC, data)
        with trio.move_on_after(0.3):
            return await hears.receive()


async def test_gossip_goes_over_hops_and_not_back(world: Any) -> None:
    with trio.fail_after(GENEROUS_SECONDS):
        nodes = await line(world, 4)
        ears = [await node.pubsub.subscribe(TOPIC) for node in nodes]
        speaker = nodes[0]
        for ear in ears[1:]:
            assert await say_until_heard(speaker.pubsub, ear, b"hello") == (speaker.host.peer_id, b"hello")
        with pytest.raises(trio.WouldBlock):
            ears[0].receive_nowait()


async def test_large_gossip_is_refused_before_it_leaves(world: Any) -> None:
    with trio.fail_after(GENEROUS_SECONDS):
        a, b = await line(world, 2)
        await a.pubsub.subscribe(TOPIC)
        ear = await b.pubsub.subscribe(TOPIC)
        with pytest.raises(LocalProtocolError):
            await a.pubsub.publish(TOPIC, bytes(4097))
        assert await say_until_heard(a.pubsub, ear, bytes(4096)) == (a.host.peer_id, bytes(4096))


async def test_a_full_subscriber_loses_new_messages_and_nothing_else(world: Any) -> None:
    with trio.fail_after(GENEROUS_SECONDS):
        a, b = await line(world, 2)
        await a.pubsub.subscribe(TOPIC)
        ear = await b.pubsub.subscribe(TOPIC)
        assert await say_until_heard(a.pubsub, ear, b"first")
        while not b.pubsub.dropped:
            await a.pubsub.publish(TOPIC, b"flood")
            await trio.sleep(0.02)
        assert ear.statistics().current_buffer_used == 256
        assert b.host.peer_id in a.host.connected
