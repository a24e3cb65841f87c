"""Strangers who want more than their share, or to be believed without proof."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from octonode.ids import HELLO_PROTOCOL
from octonode.network import keys
from tests.network.peers.world import World, key_of


async def test_one_peer_cannot_hold_all_handlers(world: World, autojump_clock: MockClock) -> None:
    a, b, c = [await world.listen_only(name) for name in "abc"]
    for each in (b, c):
        await each.network.host.connect(a.address)
    held = [await b.network.host.open(a.id, HELLO_PROTOCOL) for _ in range(a.peers.hello.limits.requests_burst)]
    await trio.sleep(0.5)
    held += [await b.network.host.open(a.id, HELLO_PROTOCOL) for _ in range(10)]  # what its rate allows by now
    await trio.sleep(0.1)
    for _ in range(10):
        assert await c.peers.hello.ping(a.id) >= 0, "another peer is served meanwhile"
    for stream in held:
        await stream.reset()


async def test_junk_shown_for_a_name_does_not_end_the_search_for_it(world: World, autojump_clock: MockClock) -> None:
    """Whoever we are connected to answers before the DHT has led us to who really holds the manifest."""
    holder, c = [await world.listen_only(name) for name in ("holder", "c")]
    publisher = key_of("publisher").peer_id
    holder.shown.named[publisher, "smol"] = b"true"
    c.network.host.learn(holder.id, (holder.address,))
    for number in range(8):
        liar = await world.listen_only(f"liar {number}")
        liar.shown.named[publisher, "smol"] = b"junk %d" % number
        await c.network.host.connect(liar.address)
    await holder.network.host.connect(liar.address)
    await holder.network.routing.provide(keys.name_key(publisher, "smol"))
    world.memory.latency_seconds = 0.5

    async def genuine(data: bytes) -> bool:
        await trio.lowlevel.checkpoint()
        return data == b"true"

    found = await c.peers.discovery.find_manifest(publisher, "smol", genuine)
    assert found[0].data == b"true"
    assert len(found) > 1, "what was wrong is told as well"


async def test_peers_of_another_kind_are_no_company(world: World, autojump_clock: MockClock) -> None:
    """Plain IPFS nodes may stay, by the dozen, and we go on looking for our own, who do not look for us."""
    a = await world.start("a")
    for number in range(12):
        stranger = world.memory.node(key_of(f"IPFS {number}").peer_id)
        await world.nursery.start(stranger.run)
        await stranger.host.connect(a.address)
    await trio.sleep(30)
    b, *others = [await world.listen_only(name) for name in "bcde"]
    for each in others:
        await each.network.host.connect(b.address)
        await each.peers.hello.greet(b.id)
    await a.peers.membership.join(b.address)
    await trio.sleep(60)
    assert a.connected(b, *others)
    assert len(a.network.host.connected) == 12 + 4, "nobody was sent away"
    assert a.peers.membership.report().findings == ()
