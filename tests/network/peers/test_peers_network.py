"""Nodes that meet: joining, finding, changing, leaving, and losing the node that they joined by."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from octonode.errors import ConfigError, OctonodeError, Unreachable
from octonode.network import keys
from octonode.network.host import Stream
from octonode.network.joinline import JoinLine, encode
from octonode.network.own_announcement import NodeFacts
from octonode.network.roots import root_digest
from octonode.protocol.announcement import Holding, Serving
from tests.network.peers.world import OTHER_ROOT, ROOT, Node, World, key_of, now_ms, until

DEAD = f"/ip4/127.0.0.1/tcp/1/p2p/{key_of('nobody').peer_id}"
SERVES = NodeFacts(serving=(Serving(ROOT),))


async def four(world: World) -> tuple[Node, Node, Node, Node]:
    """D is the only bootstrap of A, B and C."""
    d = await world.start("d")
    a, b, c = [await world.start(name, bootstrap=(d.address,)) for name in "abc"]
    return a, b, c, d


async def test_three_that_know_one_get_to_know_each_other(world: World, autojump_clock: MockClock) -> None:
    a, b, c, d = await four(world)
    await until(lambda: a.connected(b, c, d) and b.connected(a, c, d) and c.connected(a, b, d), 3)
    await until(lambda: a.knows(b, c, d) and d.knows(a, b, c))
    assert c.peers.membership.report().findings == ()


async def test_the_network_outlives_its_bootstrap(world: World, autojump_clock: MockClock) -> None:
    """The main job: D is stopped once all have joined; then B appears as a server and C finds it, and A's blocks."""
    a, b, c, d = await four(world)
    await until(lambda: all(n.peers.membership.report().greeted == 3 for n in (a, b, c)))
    world.kill(d)
    a.now(holding=(Holding(ROOT, name=f"{a.id}/smol"),), gateway_port=4810)
    a.shown.named[a.id, "smol"] = b"signed manifest"
    [holder] = await b.peers.discovery.holders(ROOT)
    assert (holder.announcement.peer_id, holder.gateway) == (a.id, (a.id, "127.0.0.1", 4810))
    b.now(serving=(Serving(ROOT),))
    await until(lambda: a.knows(b))
    found = await c.peers.discovery.find(ROOT)
    assert [announcement.peer_id for announcement in found] == [b.id]
    [shown] = await c.peers.discovery.find_manifest(a.id, "smol")
    assert (shown.data, shown.peer_id) == (b"signed manifest", a.id)
    await trio.sleep(300)  # several lives of an announcement
    assert not c.knows(d)
    assert c.knows(a, b)
    assert [announcement.peer_id for announcement in await c.peers.discovery.find(ROOT)] == [b.id]


async def test_a_server_is_found_through_the_dht_alone(world: World, autojump_clock: MockClock) -> None:
    """C has just come, its peerbook is empty, and the peer it is connected to has heard of nobody."""
    b = await world.start("b", facts=SERVES)
    middle = await world.listen_only("middle")
    c = await world.listen_only("c")
    await middle.network.host.connect(b.address)
    await until(lambda: b.peers.announcer.status.record_put_at_ms > 0)
    await until(lambda: all(r.provided_at_ms for r in b.peers.announcer.status.records))
    middle.peers.book.forget(b.id)
    await c.network.host.connect(middle.address)
    assert c.peers.discovery.known(ROOT) == []
    found = await c.peers.discovery.find(ROOT)
    assert [announcement.peer_id for announcement in found] == [b.id]
    assert c.connected(b), "a record is a hint, the truth is a hello"


async def test_a_provider_that_lies_in_the_dht_is_not_believed(world: World, autojump_clock: MockClock) -> None:
    liar = await world.listen_only("liar")
    c = await world.listen_only("c")
    await c.network.host.connect(liar.address)
    await liar.network.routing.provide(keys.serve_key(root_digest(ROOT)))
    assert await c.peers.discovery.find(ROOT) == []


async def test_an_unknown_manifest_and_an_unknown_model_are_empty(world: World, autojump_clock: MockClock) -> None:
    _, _, c, _ = await four(world)
    assert await c.peers.discovery.find(OTHER_ROOT) == []
    assert await c.peers.discovery.holders(OTHER_ROOT) == []
    assert await c.peers.discovery.find_manifest(c.id, "none") == []
    assert await c.peers.discovery.find_manifest_by_cid(OTHER_ROOT) == []


async def test_find_does_not_wait_for_a_silent_peer(world: World, autojump_clock: MockClock) -> None:
    b = await world.start("b", facts=SERVES)
    mute, c = await world.listen_only("mute"), await world.listen_only("c")
    await c.network.host.connect(b.address)
    await c.network.host.connect(mute.address)
    world.memory.silence(mute.id)
    with trio.fail_after(c.peers.hello.limits.request_timeout_seconds):
        assert [a.peer_id for a in await c.peers.discovery.find(ROOT)] == [b.id]


async def test_a_silent_network_ends_a_search_with_nothing(world: World, autojump_clock: MockClock) -> None:
    mute, c = await world.listen_only("mute"), await world.listen_only("c")
    await c.network.host.connect(mute.address)
    world.memory.silence(mute.id)
    assert await c.peers.discovery.find(ROOT) == []


async def test_searches_for_one_thing_are_one_search(world: World, autojump_clock: MockClock) -> None:
    b = await world.start("b", facts=SERVES)
    c = await world.listen_only("c", limits=None)
    await c.network.host.connect(b.address)
    results: list[int] = []

    async def find() -> None:
        results.append(len(await c.peers.discovery.find(ROOT)))

    async with trio.open_nursery() as nursery:
        for _ in range(300):  # more than the burst that B allows
            nursery.start_soon(find)
    assert results == [1] * 300


async def test_a_cancelled_search_leaves_the_others_to_search(world: World, autojump_clock: MockClock) -> None:
    b = await world.start("b", facts=SERVES)
    c = await world.listen_only("c")
    await c.network.host.connect(b.address)
    found: list[int] = []

    async def find(scope: trio.CancelScope) -> None:
        with scope:
            found.append(len(await c.peers.discovery.find(ROOT)))

    first = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(find, first)
        await trio.lowlevel.checkpoint()
        nursery.start_soon(find, trio.CancelScope())
        await trio.lowlevel.checkpoint()
        first.cancel()
    assert found == [1]


async def test_the_first_bootstrap_is_dead_and_the_second_is_not(world: World, autojump_clock: MockClock) -> None:
    d = await world.start("d")
    a = await world.start("a", bootstrap=(DEAD, d.address))
    await until(lambda: a.knows(d))
    await trio.sleep(30)
    dead, alive = a.peers.membership.report().dials
    assert dead.failures > 1
    assert alive.reached
    assert any("tcp/1/" in finding for finding in a.peers.membership.report().findings)


async def test_a_bootstrap_that_comes_late_is_reached(world: World, autojump_clock: MockClock) -> None:
    d = world.make("d")
    address = f"/ip4/127.0.0.1/tcp/20000/p2p/{d.id}"
    a = await world.start("a", bootstrap=(address,))
    await trio.sleep(120)
    assert a.peers.membership.report().greeted == 0
    world.nursery.start_soon(world.run, d)
    await until(lambda: a.knows(d) and d.knows(a), 120)


async def test_a_static_peer_is_dialled_again_after_a_loss(world: World, autojump_clock: MockClock) -> None:
    b = await world.start("b")
    a = await world.start("a", static_peers=(b.address,))
    await until(lambda: a.connected(b))
    await b.network.host.disconnect(a.id)
    assert not a.connected(b)
    await until(lambda: a.connected(b) and a.peers.hello.greeted_at_ms(b.id) is not None)


async def test_joining_by_a_line_while_running(world: World, autojump_clock: MockClock) -> None:
    d, a = await world.start("d"), await world.start("a")
    assert "no bootstrap peer" in a.peers.membership.report().findings[0]
    assert await a.peers.membership.join(d.address) == d.id
    assert a.knows(d)
    with pytest.raises(Unreachable):
        await a.peers.membership.join(DEAD)


async def test_a_malformed_bootstrap_is_a_config_error(world: World, autojump_clock: MockClock) -> None:
    with pytest.raises(ConfigError, match=r"network\.bootstrap"):
        world.make("a", bootstrap=("/ip4/127.0.0.1/tcp/4808",))
    with pytest.raises(ConfigError, match=r"network\.announce_addresses"):
        world.make("b", announce_addresses=("127.0.0.1:4808",))


async def test_an_address_that_cannot_be_dialled_ends_nothing(world: World, autojump_clock: MockClock) -> None:
    """A join line may name a websocket first: it is read, and no transport of ours dials it."""
    a = await world.start("a")
    websocket = f"/ip4/127.0.0.1/tcp/4809/ws/p2p/{a.id}"
    elsewhere = f"/ip4/127.0.0.1/tcp/4809/ws/p2p/{key_of('c').peer_id}"
    b = await world.start("b", bootstrap=(elsewhere,))
    await until(lambda: any("/ws" in dial.sentence and dial.failures for dial in b.peers.membership.report().dials))
    with pytest.raises(OctonodeError):
        await b.peers.membership.join(elsewhere)
    line = JoinLine(a.id, (websocket, a.address))
    assert await b.peers.membership.join(encode(line)) == a.id


async def test_our_own_address_as_bootstrap_is_said_so(world: World, autojump_clock: MockClock) -> None:
    a = world.make("a")
    again = world.make("a", bootstrap=(f"/ip4/127.0.0.1/tcp/4808/p2p/{a.id}",))
    world.nursery.start_soon(world.run, again)
    await trio.sleep(10)
    assert "own address" in again.peers.membership.report().findings[0]


async def test_a_change_is_seen_by_others_at_once(world: World, autojump_clock: MockClock) -> None:
    a, _, c, _ = await four(world)
    await until(lambda: c.knows(a))
    a.now(serving=(Serving(ROOT),), tier="prosumer")
    await until(lambda: bool(c.peers.discovery.known(ROOT)), 5)
    assert c.peers.discovery.known(ROOT)[0].tier == "prosumer"
    a.now(serving=())
    await until(lambda: not c.peers.discovery.known(ROOT), 5)


async def test_figures_of_every_task_do_not_flood_the_network(world: World, autojump_clock: MockClock) -> None:
    a, _, c, _ = await four(world)
    a.now(serving=(Serving(ROOT),))
    await until(lambda: c.knows(a))
    await trio.sleep(5)
    sequence = a.peers.announcer.status.sequence
    for running in range(50):
        a.now(serving=(Serving(ROOT, running=running),))
        await trio.sleep(0.1)
    assert a.peers.announcer.status.sequence - sequence < 5_000 + 60_000
    announced = {e.sequence for e in c.peers.book.peers(now_ms()) if e.peer_id == a.id}
    assert len(announced) == 1
    assert c.peers.intake.counts["NEWER"] < 20


async def test_who_leaves_is_gone_at_once_and_does_not_come_back(world: World, autojump_clock: MockClock) -> None:
    a, b, c, _ = await four(world)
    b.now(serving=(Serving(ROOT),))
    await until(lambda: bool(c.peers.discovery.known(ROOT)))
    old = b.peers.own.last
    assert old is not None
    await world.stop(b)
    assert not c.knows(b)
    assert await c.peers.discovery.find(ROOT) == []
    _, verdict = c.peers.intake.take(old.data, a.id)
    assert verdict.name == "OLDER"
    assert not c.knows(b)


async def test_who_is_killed_is_gone_when_its_announcement_expires(world: World, autojump_clock: MockClock) -> None:
    a, _, c, _ = await four(world)
    a.now(serving=(Serving(ROOT),))
    await until(lambda: bool(c.peers.discovery.known(ROOT)))
    world.kill(a)
    await until(lambda: not c.knows(a), 121)
    assert await c.peers.discovery.find(ROOT) == []


async def test_a_node_that_comes_back_is_heard_again(world: World, autojump_clock: MockClock) -> None:
    a, b, c, d = await four(world)
    await until(lambda: c.knows(a))
    await world.stop(a)
    assert not c.knows(a)
    again = await world.start("a", bootstrap=(d.address,))
    await until(lambda: c.knows(again) and b.knows(again))


async def test_the_network_heals_after_a_partition(world: World, autojump_clock: MockClock) -> None:
    a, b, c, d = await four(world)
    await until(lambda: c.knows(a, b, d) and a.knows(b, c, d))
    world.memory.partition([a.id, b.id], [c.id, d.id])
    await until(lambda: not c.knows(a, b) and not a.knows(c, d), 300)
    world.memory.heal()
    await until(lambda: c.knows(a, b) and a.knows(c, d), 600)


async def test_a_chain_of_bootstraps_becomes_a_mesh(world: World, autojump_clock: MockClock) -> None:
    nodes = [await world.start("n0")]
    for index in range(1, 12):
        nodes.append(await world.start(f"n{index}", bootstrap=(nodes[-1].address,)))
    await until(lambda: all(len(node.network.host.connected) >= 8 for node in nodes), 120)


async def test_drain_ends_in_time_when_nobody_listens(world: World, autojump_clock: MockClock) -> None:
    a, b, c, d = await four(world)
    await until(lambda: a.connected(b, c, d))
    world.memory.silence(b.id, c.id, d.id)
    with trio.fail_after(3):
        await a.peers.announcer.leave(2.0)


async def test_a_peer_that_does_not_speak_hello_is_named(world: World, autojump_clock: MockClock) -> None:
    a = await world.start("a")
    stranger = world.memory.node(key_of("stranger").peer_id)
    await world.nursery.start(stranger.run)
    await a.network.host.connect(stranger.host.addresses[0])
    await trio.sleep(10)
    [said] = [f for f in a.peers.membership.report().findings if "greeting it failed" in f]
    assert "does not speak" in said


async def test_a_peer_whose_hello_hangs_is_named_with_the_reason(world: World, autojump_clock: MockClock) -> None:
    a = await world.start("a")
    mute = world.memory.node(key_of("mute").peer_id)

    async def say_nothing(stream: Stream) -> None:
        await trio.sleep_forever()

    mute.host.handle("/cipherocto/hello/1.0.0", say_nothing)
    await world.nursery.start(mute.run)
    await a.network.host.connect(mute.host.addresses[0])
    await trio.sleep(30)
    assert any("DEADLINE" in finding for finding in a.peers.membership.report().findings)
