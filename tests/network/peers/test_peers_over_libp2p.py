"""The same services over real connections: four hosts on loopback, one bootstrap that goes away."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

import pytest
import trio

from octonode.config import NetworkConfig
from octonode.errors import RemoteProtocolError
from octonode.ids import FANOUT_PROTOCOL, PeerId
from octonode.network.announcer import Announcer
from octonode.network.clock import wall_clock_ms
from octonode.network.dialback import tcp_probe
from octonode.network.host import Network, StreamReset
from octonode.network.libp2p import build_network
from octonode.network.own_announcement import NodeFacts
from octonode.network.reachability import check
from octonode.network.records import RecordRules
from octonode.network.sequence import SequenceFile
from octonode.protocol.announcement import Holding, Serving
from tests.network.peers.world import ROOT, Peers, Shown, key_of, until

SLOW_SECONDS = 60
Muxer = Literal["own", "stock"]


class RealNode:
    def __init__(self, name: str, home: Path, bootstrap: tuple[str, ...] = (), muxer: Muxer = "own") -> None:
        self.key, self.told, self.shown = key_of(f"real {name}"), [NodeFacts()], Shown()
        settings = NetworkConfig(listen="127.0.0.1:0", bootstrap=bootstrap, muxer=muxer)
        rules = RecordRules(wall_clock_ms)
        home = home / name
        home.mkdir()
        self.network: Network = build_network(self.key, settings, validator=rules.validate, select=rules.select)
        self.peers = Peers(
            network=self.network, signer=self.key, settings=settings, facts=lambda: self.told[0],
            manifests=self.shown, now_ms=wall_clock_ms, random=random.Random(name), probe=tcp_probe,
            sequence=SequenceFile(home),
        )  # fmt: skip
        self.scope = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.network.run)
                await nursery.start(self.peers.run)
                task_status.started()

    @property
    def announcer(self) -> Announcer:
        return self.peers.announcer

    def now(self, facts: NodeFacts) -> None:
        self.told[0] = facts
        self.announcer.changed()

    def greeted(self, *others: RealNode) -> bool:
        return all(self.peers.hello.greeted_at_ms(other.key.peer_id) is not None for other in others)


async def test_the_network_outlives_its_bootstrap_over_libp2p(nursery: trio.Nursery, tmp_path: Path) -> None:
    d = RealNode("d", tmp_path)
    await nursery.start(d.run)
    a, b, c = [RealNode(name, tmp_path, (d.network.host.addresses[0],)) for name in "abc"]
    for node in (a, b, c):
        await nursery.start(node.run)
    await until(lambda: a.greeted(b, c, d) and b.greeted(a, c, d) and c.greeted(a, b, d), SLOW_SECONDS)
    d.scope.cancel()
    await until(lambda: all(d.key.peer_id not in node.network.host.connected for node in (a, b, c)), SLOW_SECONDS)

    a.now(NodeFacts(holding=(Holding(ROOT, name=f"{a.key.peer_id}/smol"),), gateway_port=4810))
    a.shown.named[a.key.peer_id, "smol"] = b"signed"
    await until(lambda: any(r.kind == "blocks" and r.provided_at_ms for r in a.announcer.status.records), SLOW_SECONDS)
    with trio.fail_after(SLOW_SECONDS):
        [gateway] = await b.peers.discovery.gateways(ROOT)
        assert gateway == (a.key.peer_id, "127.0.0.1", 4810)
        b.now(NodeFacts(serving=(Serving(ROOT),)))
        await until(lambda: any(r.kind == "serve" and r.provided_at_ms for r in b.announcer.status.records))
        c.peers.book.forget(b.key.peer_id)
        found = await c.peers.discovery.find(ROOT)
        assert [announcement.peer_id for announcement in found] == [b.key.peer_id]
        [shown] = await c.peers.discovery.find_manifest(a.key.peer_id, "smol")
        assert shown.data == b"signed"
        await until(lambda: c.announcer.status.record_put_at_ms > 0)
        assert (await check(c.network.host, c.peers.hello, random.Random(1))).state == "local"
        await b.announcer.leave(5)
    assert b.key.peer_id not in {announcement.peer_id for announcement in c.peers.discovery.known(ROOT)}
    nursery.cancel_scope.cancel()


def counted_greetings(node: RealNode) -> list[PeerId]:
    greeted: list[PeerId] = []
    greet = node.peers.hello.greet

    async def counted(peer_id: PeerId) -> Any:
        greeted.append(peer_id)
        return await greet(peer_id)

    node.peers.hello.greet = counted  # type: ignore[method-assign]
    return greeted


@pytest.mark.parametrize(("one", "other"), [("own", "own"), ("stock", "stock"), ("own", "stock")])
async def test_announcements_go_over_standing_streams_over_libp2p(
    nursery: trio.Nursery, tmp_path: Path, one: Muxer, other: Muxer
) -> None:
    a = RealNode("a", tmp_path, muxer=one)
    await nursery.start(a.run)
    b = RealNode("b", tmp_path, (a.network.host.addresses[0],), muxer=other)
    await nursery.start(b.run)
    nodes = [(a, b), (b, a)]
    ids = {node: node.key.peer_id for node in (a, b)}
    await until(lambda: a.greeted(b) and b.greeted(a), SLOW_SECONDS)

    def region_of(node: RealNode, of: RealNode) -> str:
        known = node.peers.book.get(ids[of], wall_clock_ms())
        return known.region if known else ""

    async def all_say(text: str) -> None:
        for speaker, listener in nodes:
            speaker.now(NodeFacts(region=text))
            await until(lambda: region_of(listener, speaker) == text, SLOW_SECONDS)  # noqa: B023

    with trio.fail_after(SLOW_SECONDS):
        while not all(speaker.peers.fanout.stands(ids[listener]) for speaker, listener in nodes):
            await all_say(f"{trio.current_time()}")
    greeted = [counted_greetings(node) for node in (a, b)]
    await all_say("eu")

    with trio.fail_after(SLOW_SECONDS):
        stray = await b.network.host.open(ids[a], FANOUT_PROTOCOL)
        await stray.send(b"\xff\xff\xff\x7f")
        with pytest.raises(StreamReset):
            await stray.receive()
    await until(lambda: not b.peers.fanout.stands(ids[a]), SLOW_SECONDS)  # the stray one took its place
    assert ids[b] in a.network.host.connected
    assert greeted == [[], []]
    await all_say("told by hello again, and then over a new stream")
    await until(lambda: greeted == [[], [ids[a]]], SLOW_SECONDS)
    await all_say("us")
    assert greeted == [[], [ids[a]]]

    def refuse(data: bytes, bringer: PeerId) -> None:
        raise RemoteProtocolError("not to be had")

    a.peers.fanout.hear("/test/topic/1", refuse)
    with trio.fail_after(SLOW_SECONDS):
        with pytest.raises(StreamReset):
            await b.peers.fanout.tell(ids[a], "/test/topic/1", b"x", last=True)
        await a.announcer.leave(5)
    assert ids[a] not in {each.peer_id for each in b.peers.book.peers(wall_clock_ms())}, "it has arrived before we go"
    assert a.announcer.status.pushed == 1
    assert greeted[0] == []
    nursery.cancel_scope.cancel()
