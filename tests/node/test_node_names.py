"""Names, records and manifests among several nodes in memory: what a name means, and what liars get."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from octonode.config import NetworkConfig
from octonode.errors import OctonodeError
from octonode.identity import NodeKey
from octonode.ids import PeerId
from octonode.ipfs.cid import Cid
from octonode.models.formats import SCRIPTED_MAGIC
from octonode.models.library import Library
from octonode.models.manifest import SignedManifest
from octonode.models.store import ModelStore
from octonode.models.trust import TrustTable
from octonode.network.clock import wall_clock_ms
from octonode.network.keys import name_record_key
from octonode.network.own_announcement import NodeFacts
from octonode.network.records import RecordRules
from octonode.node.names import Names
from octonode.node.resolving import Resolver
from octonode.node.shelf import Shelf
from octonode.protocol.announcement import Holding
from octonode.protocol.name_record import (
    NAME_RECORD_LIFE_MS_MAX,
    NamedVersion,
    NameRecord,
    open_name_record,
    sign_name_record,
)
from octonode.testing.network import MemoryNetwork, MemoryNode
from tests.network.peers.world import Numbers, Peers

PATIENCE_SECONDS = 40


@dataclass
class Node:
    key: NodeKey
    network: MemoryNode
    library: Library
    shelf: Shelf
    names: Names
    resolver: Resolver
    peers: Peers

    @property
    def id(self) -> PeerId:
        return self.key.peer_id

    def file(self, version: str) -> Path:
        path = self.library.store.directory.parent / f"{version}.model"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SCRIPTED_MAGIC + random.Random(version).randbytes(3000))
        return path

    async def publish(self, version: str, name: str = "m") -> SignedManifest:
        file = self.file(version)
        entry = await trio.to_thread.run_sync(lambda: self.library.add(file, name=name, version=version))
        await self.refresh()
        assert entry.manifest is not None
        return entry.manifest

    async def hold(self, signed: SignedManifest) -> None:
        """As if it had been fetched: the same bytes, under the publisher's manifest."""
        file = self.file(signed.manifest.version)
        await trio.to_thread.run_sync(lambda: self.library.add(file, name="copy", version=signed.manifest.version))
        await trio.to_thread.run_sync(lambda: self.library.accept(signed.encode(), trust=True, expected=signed.cid))
        await self.refresh()

    async def refresh(self) -> None:
        await self.shelf.refresh()
        await self.names.renew()
        self.resolver.forget()

    async def root(self, reference: str) -> Cid:
        return (await self.resolver.root_and_manifest(reference))[0]

    async def refused(self, reference: str) -> OctonodeError:
        with pytest.raises(OctonodeError) as caught:
            await self.root(reference)
        return caught.value

    def kept(self, publisher: PeerId, name: str = "m") -> bytes | None:
        """What this node's part of the network keeps under a name."""
        return self.network.values._kept.get(name_record_key(publisher, name))


class World:
    def __init__(self, place: Path, nursery: trio.Nursery) -> None:
        self._place = place
        self._nursery = nursery
        self.memory = MemoryNetwork()
        self.nodes: list[Node] = []

    async def node(self, name: str, *known: Node) -> Node:
        key, rules, home = NodeKey(name.encode() * 32), RecordRules(wall_clock_ms), self._place / name
        network = self.memory.node(key.peer_id, NetworkConfig(), validator=rules.validate, select=rules.select)
        library = Library(ModelStore(home), TrustTable(home, always=(key.peer_id,)), key)
        shelf = Shelf(library)
        names = Names(library, shelf, key)
        names.connect(network.host, network.values, random.Random(name))

        def facts() -> NodeFacts:
            return NodeFacts(holding=tuple(Holding(h.root, h.manifest, h.name, h.version) for h in shelf.public()))

        async def probe(host: str, port: int) -> str:
            return "reached"

        peers = Peers(
            network=network, signer=key, settings=NetworkConfig(), facts=facts, manifests=shelf,
            random=random.Random(name), probe=probe, sequence=Numbers(), now_ms=wall_clock_ms,  # type: ignore[arg-type]
        )  # fmt: skip
        resolver = Resolver(library, shelf, peers.book, names=names)
        resolver.connect(peers.discovery)
        node = Node(key, network, library, shelf, names, resolver, peers)
        await self._nursery.start(network.run)
        await self._nursery.start(names.run)
        for other in known:
            await network.host.connect(other.network.host.addresses[0])
        self.nodes.append(node)
        return node

    async def settled(self, publisher: Node, seq: int, *nodes: Node, name: str = "m") -> None:
        """Until all these nodes keep the publisher's record of that seq."""
        for node in nodes:
            while True:
                data = node.kept(publisher.id, name)
                if data is not None and record_of(data).seq >= seq:
                    break
                await trio.sleep(0.02)


def record_of(data: bytes) -> NameRecord:
    return open_name_record(data, None)


@asynccontextmanager
async def worlds(place: Path) -> AsyncIterator[World]:
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            yield World(place, nursery)
            nursery.cancel_scope.cancel()


def made(key: NodeKey, name: str, *versions: NamedVersion, seq: int = 1, ahead_ms: int = 0) -> bytes:
    now_ms = wall_clock_ms() + ahead_ms
    return sign_name_record(key, NameRecord(key.peer_id, name, seq, now_ms, now_ms + NAME_RECORD_LIFE_MS_MAX, versions))


async def test_a_range_means_what_the_record_and_its_holders_say_when_the_publisher_is_gone(tmp_path: Path) -> None:
    async with worlds(tmp_path) as world:
        a = await world.node("a")
        b = await world.node("b", a)
        c = await world.node("c", a, b)
        one, two = await a.publish("1.0.0"), await a.publish("1.1.0")
        await world.settled(a, 2, a, b, c)
        await b.hold(one)
        assert await c.root(f"{a.id}/m@^1.0") == two.manifest.root
        world.memory.kill(a.id)
        assert await c.root(f"{a.id}/m@1.0.0") == one.manifest.root
        assert await c.root(f"{a.id}/m@^1.0") == two.manifest.root  # remembered
        # Nobody is left who can show 1.1.0: the older one does not take its place in silence.
        d = await world.node("d", b)
        error = await d.refused(f"{a.id}/m")
        assert error.code == "MODEL_NOT_FOUND"
        assert "1.1.0 is what its publisher's record names" in error.message
        assert await d.root(f"{a.id}/m@1.0.0") == one.manifest.root
        await b.hold(two)
        assert await d.root(f"{a.id}/m@latest") == two.manifest.root
        # A holder keeps the record alive for those who come later.
        await world.settled(a, 2, await world.node("e", b))


async def test_deprecated_versions_are_passed_over_where_there_are_others(tmp_path: Path) -> None:
    async with worlds(tmp_path) as world:
        a = await world.node("a")
        b = await world.node("b", a)
        one, two = await a.publish("1.0.0"), await a.publish("1.1.0")
        await b.hold(two)
        assert await b.root(f"{a.id}/m@^1.0") == two.manifest.root
        assert await a.names.deprecate("m", "1.1.0", reason="bad", replaced_by="1.0.0", undo=False)
        await world.settled(a, 3, b)
        assert await b.names.ask(a.id, "m") is not None  # as the keeper does
        b.resolver.forget()
        assert await b.root(f"{a.id}/m@^1.0") == one.manifest.root
        assert await b.root(f"{a.id}/m@latest") == one.manifest.root
        assert await b.root(f"{a.id}/m@1.1.0") == two.manifest.root
        assert await b.root(f"{a.id}/m@^1.1") == two.manifest.root  # nothing else
        assert await a.names.deprecate("m", "1.1.0", reason="", replaced_by="", undo=True)
        await world.settled(a, 4, b)
        await b.names.ask(a.id, "m")
        b.resolver.forget()
        assert await b.root(f"{a.id}/m@^1.0") == two.manifest.root


async def test_an_old_record_brings_nothing_back(tmp_path: Path) -> None:
    async with worlds(tmp_path) as world:
        a = await world.node("a")
        b = await world.node("b", a)
        liar = await world.node("l", a, b)
        one = await a.publish("1.0.0")
        await world.settled(a, 1, b, liar)
        old = a.kept(a.id)
        assert old is not None
        two = await a.publish("1.1.0")
        await world.settled(a, 2, b, liar)
        assert await b.root(f"{a.id}/m") == two.manifest.root
        assert not await liar.network.values.put(name_record_key(a.id, "m"), old)
        for node in (a, b, liar):
            assert record_of(node.kept(a.id) or b"").seq == 2
        # Even where the whole network has forgotten the new one, whoever has seen it does not believe the old one.
        world.memory.kill(a.id)
        for node in (b, liar):
            node.network.values._kept[name_record_key(a.id, "m")] = old
        b.resolver.forget()
        assert "1.1.0 is what its publisher's record names" in (await b.refused(f"{a.id}/m")).message
        await b.hold(two)
        assert await b.root(f"{a.id}/m@latest") == two.manifest.root
        record = await b.names.ask(a.id, "m")
        assert record is not None
        assert record.seq == 2
        assert one.manifest.root != two.manifest.root


async def test_what_a_stranger_writes_under_a_name_is_refused_by_every_node(tmp_path: Path) -> None:
    async with worlds(tmp_path) as world:
        a = await world.node("a")
        b = await world.node("b", a)
        stranger = await world.node("s", a, b)
        one = await a.publish("1.0.0")
        await world.settled(a, 1, b, stranger)
        key = name_record_key(a.id, "m")
        evil = NamedVersion("9.9.9", b"\x01\x71\x12\x20" + bytes(32))
        own = made(stranger.key, "m", evil, seq=99)
        forged = own.replace(stranger.id.encode(), a.id.encode())
        huge = made(a.key, "m", NamedVersion("1.0.0", one.cid.raw), seq=50) + bytes(5000)
        ahead = made(a.key, "m", NamedVersion("1.0.0", one.cid.raw), seq=50, ahead_ms=120_000)
        other_name = made(a.key, "other", evil, seq=50)
        for bad in (own, forged, huge, ahead, other_name, b"junk"):
            with pytest.raises(OctonodeError):
                await stranger.network.values.put(key, bad)
            for node in (a, b):
                assert not node.network.values.keep(key, bad)
                # And what got onto a node by other ways is not read from there.
                stranger.network.values._kept[key] = bad
                assert await node.network.values.get(key) == a.kept(a.id)
        assert await b.root(f"{a.id}/m") == one.manifest.root
        skewed = made(a.key, "m", NamedVersion("1.0.0", one.cid.raw), seq=50, ahead_ms=30_000)
        assert b.network.values.keep(key, skewed)  # half a minute is the clocks'


async def test_a_bare_name_that_a_stranger_sits_on_is_not_taken(tmp_path: Path) -> None:
    async with worlds(tmp_path) as world:
        a = await world.node("a")
        b = await world.node("b", a)
        squatter = await world.node("s", a, b)
        second = await world.node("t", a, b)
        evil, good = await squatter.publish("9.0.0"), await a.publish("1.0.0")
        await world.settled(squatter, 1, b)
        await world.settled(a, 1, b)
        assert (await b.refused("m")).code == "MODEL_NOT_FOUND"
        b.library.trust(a.id, "alice")
        assert await b.root("m") == good.manifest.root != evil.manifest.root
        other = await second.publish("2.0.0")
        await world.settled(second, 1, b)
        b.library.trust(second.id, "bob")
        b.resolver.forget()
        fresh = await world.node("f", a, second)  # has heard of neither, and asks the records of those it trusts
        for publisher, alias in ((a.id, "alice"), (second.id, "bob")):
            fresh.library.trust(publisher, alias)
        error = await fresh.refused("m")
        assert error.code == "BAD_REQUEST"
        assert f"{a.id}/m (alice)" in error.message
        assert f"{second.id}/m (bob)" in error.message
        assert squatter.id not in error.message
        assert await fresh.root("bob/m") == other.manifest.root


async def test_a_record_that_names_another_models_manifest_is_not_followed(tmp_path: Path) -> None:
    async with worlds(tmp_path) as world:
        a = await world.node("a")
        b = await world.node("b", a)
        one = await a.publish("1.0.0")
        await world.settled(a, 1, b)
        crossed = made(a.key, "other", NamedVersion("1.0.0", one.cid.raw), seq=1)
        assert await a.network.values.put(name_record_key(a.id, "other"), crossed)
        error = await b.refused(f"{a.id}/other")
        assert error.code == "VERIFICATION_FAILED"


async def test_a_publisher_whose_disk_is_older_than_the_network_goes_on_from_there(tmp_path: Path) -> None:
    async with worlds(tmp_path) as world:
        a = await world.node("a")
        b = await world.node("b", a)
        one = await a.publish("1.0.0")
        ahead = made(a.key, "m", NamedVersion("1.0.0", one.cid.raw, deprecated=True, reason="said before"), seq=7)
        await world.settled(a, 1, b)
        assert b.network.values.keep(name_record_key(a.id, "m"), ahead)
        await a.names.ask(a.id, "m")
        await a.publish("1.1.0")
        await world.settled(a, 8, b)
        record = record_of(b.kept(a.id) or b"")
        assert [(each.version, each.deprecated) for each in record.versions] == [("1.0.0", True), ("1.1.0", False)]


async def test_an_expired_record_is_not_believed_and_manifests_decide(tmp_path: Path) -> None:
    async with worlds(tmp_path) as world:
        a = await world.node("a")
        b = await world.node("b", a)
        one = await a.publish("1.0.0")
        await world.settled(a, 1, b)
        data = b.kept(a.id)
        assert data is not None
        expired = replace(record_of(data), issued_at_ms=1, expires_at_ms=2)
        for node in (a, b):
            node.network.values._kept[name_record_key(a.id, "m")] = sign_name_record(a.key, expired)
        assert await b.names.ask(a.id, "m") is None
        assert await b.root(f"{a.id}/m") == one.manifest.root
