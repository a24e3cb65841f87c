"""Announcements over standing streams: who gets them that way, and how a stream ends."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from octonode.errors import RemoteProtocolError
from octonode.ids import ANNOUNCE_TOPIC, FANOUT_PROTOCOL, PeerId
from octonode.network.fanout import LOOK_EVERY_SECONDS
from octonode.network.host import ProtocolNotSupported
from octonode.protocol.announcement import Serving
from tests.network.peers.saying import (
    TOPIC,
    counting,
    met,
    opening,
    region,
    unheard,
)
from tests.network.peers.world import ROOT, Node, World, until


async def test_after_the_first_greeting_nothing_goes_by_hello(world: World, autojump_clock: MockClock) -> None:
    nodes = await met(world, "a", "b", "c")
    a, b, c = nodes
    greeted, opened = [counting(node) for node in nodes], [opening(node) for node in nodes]
    a.now(region="eu")
    await until(lambda: region(b, a) == region(c, a) == "eu", 2)
    for _ in range(100):
        await trio.sleep(6)
        assert all(n.knows(*(o for o in nodes if o is not n)) for n in nodes)
        assert [n.peers.announcer.status.pushed for n in nodes] == [2, 2, 2]
    assert greeted == opened == [[], [], []]
    assert not any(n.peers.announcer.status.push_failures for n in nodes)


async def test_gossip_is_not_needed_for_it(world: World, autojump_clock: MockClock) -> None:
    a, b = await met(world, "a", "b")
    a.network.pubsub.publish = unheard  # type: ignore[method-assign]
    a.now(serving=(Serving(ROOT),))
    await until(lambda: bool(b.peers.discovery.known(ROOT)), 2)


async def test_a_peer_that_does_not_speak_it_is_told_by_hello(world: World, autojump_clock: MockClock) -> None:
    async def one_of_old() -> Node:
        node = world.make("old")
        del node.network.host._handlers[FANOUT_PROTOCOL]
        await world.nursery.start(world.run, node)
        await a.network.host.connect(node.address)
        return node

    a = await world.start("a")
    opened = opening(a)
    old = await one_of_old()
    await trio.sleep(130)
    greeted = counting(a)
    a.now(region="eu")
    await until(lambda: region(old, a) == "eu", 2)
    await trio.sleep(300)
    assert len(greeted) > 5
    assert opened == [old.id], "it is asked once a connection"
    assert a.peers.announcer.status.pushed == 1
    with pytest.raises(ProtocolNotSupported):
        await a.peers.fanout.tell(old.id, TOPIC, b"x")
    world.kill(old)
    await trio.sleep(2 * LOOK_EVERY_SECONDS)
    await one_of_old()
    await trio.sleep(130)
    assert opened == [old.id, old.id]


async def test_who_refuses_is_asked_by_hello_why(world: World, autojump_clock: MockClock) -> None:
    """A clock that runs wrong from now on is named in `status`, though nobody answers over fan-out."""
    a, b = await met(world, "a", "b")
    greeted, take = counting(a), b.peers.intake.take

    def refuse(data: bytes, bringer: PeerId, *, must_be_own: bool = False) -> Any:
        raise RemoteProtocolError("an announcement issued 3600 s in the future", code="CLOCK_SKEW")

    b.peers.intake.take = refuse  # type: ignore[method-assign]
    b.peers.fanout.hear(ANNOUNCE_TOPIC, partial(refuse, must_be_own=True))
    await until(lambda: bool(a.peers.announcer.status.push_failures), 130)
    [(peer, reason)] = a.peers.announcer.status.push_failures
    assert peer == b.id
    assert "CLOCK_SKEW" in reason
    b.peers.intake.take = take  # type: ignore[method-assign]
    b.peers.fanout.hear(ANNOUNCE_TOPIC, partial(take, must_be_own=True))
    await trio.sleep(130)
    greeted.clear()
    await trio.sleep(300)
    assert greeted == [], "once it is taken again, a stream stands again"
    assert a.peers.announcer.status.pushed == 1


# How a stream ends.


async def test_who_leaves_has_said_so_when_it_goes(world: World, autojump_clock: MockClock) -> None:
    a, b, c = await met(world, "a", "b", "c")
    world.memory.latency_seconds = 0.2
    a.network.pubsub.publish = unheard  # type: ignore[method-assign]
    greeted = counting(a)
    await a.peers.announcer.leave(2.0)
    assert not b.knows(a)
    assert not c.knows(a)
    assert (greeted, a.peers.announcer.status.pushed) == ([], 2)
    assert not a.peers.fanout.stands(b.id)


async def test_who_leaves_and_has_no_stream_says_so_by_hello(world: World, autojump_clock: MockClock) -> None:
    a, b = await world.start("a"), await world.start("b")
    await a.peers.membership.join(b.address)
    await until(lambda: b.knows(a))
    greeted, opened = counting(a), opening(a)
    await a.peers.announcer.leave(2.0)
    assert (greeted, opened) == ([b.id], [])
    assert not b.knows(a)


async def test_of_a_peer_that_is_gone_nothing_is_kept(world: World, autojump_clock: MockClock) -> None:
    a, b = await met(world, "a", "b")
    assert a.peers.fanout.stands(b.id)
    world.kill(b)
    await trio.sleep(2 * LOOK_EVERY_SECONDS)
    fanout = a.peers.fanout
    assert [len(kept) for kept in (fanout._lines, fanout._inbound, fanout._broken, fanout._without)] == [0, 0, 0, 0]
    assert a.network.host.streams_open == 0


async def test_a_connection_that_comes_back_has_a_stream_again(world: World, autojump_clock: MockClock) -> None:
    a, b = await met(world, "a", "b")
    for pause_seconds in (0.0, 5.0):
        await a.network.host.disconnect(b.id)
        await trio.sleep(pause_seconds)
        await a.network.host.connect(b.address)
        await trio.sleep(130)
        greeted = counting(a)
        a.now(region=f"after {pause_seconds}")
        await until(lambda: region(b, a) == f"after {pause_seconds}", 2)  # noqa: B023
        assert a.peers.fanout.stands(b.id)
        assert b.peers.fanout.stands(a.id)
        assert greeted == []


async def test_where_connections_are_scarce_no_stream_stands(world: World, autojump_clock: MockClock) -> None:
    """Connections are told apart by their streams there: the unused ones are dropped."""
    a = await world.start("a", connections_max=4)
    b, c = await world.start("b"), await world.start("c")
    for other in (b, c):
        await a.peers.membership.join(other.address)
    await trio.sleep(130)
    assert all(n.peers.fanout.stands(m.id) for n, m in ((a, b), (b, a), (a, c), (c, a)))
    others = [await world.listen_only(name) for name in ("d", "e")]
    for other in others:
        await other.network.host.connect(a.address)
    await trio.sleep(30)
    # What is said meanwhile opens a stream, which the next look ends.
    await until(lambda: not any(n.peers.fanout.stands(m.id) for n, m in ((a, b), (b, a), (a, c), (c, a))), 5)
    greeted = counting(a), counting(b)
    for node in (a, b):
        node.now(region="eu")
    await until(lambda: region(b, a) == region(a, b) == "eu", 2)
    await trio.sleep(2 * LOOK_EVERY_SECONDS)
    assert a.network.host.streams_open == 0
    assert greeted == ([], [])
    for other in others:
        world.kill(other)
    await trio.sleep(130)
    assert a.peers.fanout.stands(b.id)
    assert b.peers.fanout.stands(a.id)
