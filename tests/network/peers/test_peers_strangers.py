"""Strangers who want more than their share, or to be believed without proof."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from octonode.ids import HELLO_PROTOCOL
from tests.network.peers.world import World


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
