"""Models fetched over bitswap between real stores: whole, in part, of every form of leaf, and from those that lie."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from octonode.errors import NotFound, Unreachable, VerificationFailed
from octonode.ids import PeerId
from octonode.ipfs.bitswap import Bitswap, BitswapLimits
from octonode.ipfs.blocks import Body
from octonode.ipfs.cid import Cid
from octonode.ipfs.unixfs import PROFILES
from octonode.models import bitmap
from octonode.models.fetch import FetchLimits, fetch
from octonode.models.library import Library
from octonode.models.sources.bitswap import BitswapSource
from octonode.models.store import ModelStore
from tests.ipfs.bitswap_peers import World

MIB = 1024 * 1024
LIMITS = FetchLimits(
    retry_seconds=0.05, set_aside_seconds=0.3, read_bitmap_seconds=0.1, give_up_seconds=30.0, settle_seconds=0.1
)
Make = Callable[..., Library]
Speak = Callable[..., Awaitable[tuple[PeerId, Bitswap]]]


@pytest.fixture(params=["memory", "own", "stock"])
def world(request: pytest.FixtureRequest, nursery: trio.Nursery) -> World:
    return World(request.param, nursery)


@pytest.fixture
def memory(nursery: trio.Nursery) -> World:
    return World("memory", nursery)


async def speaking(world: World, source: Any, asker: Bitswap | None = None) -> tuple[PeerId, Bitswap]:
    """A node that serves `source` over bitswap, connected to `asker`."""
    host = await world.host()
    bitswap = Bitswap(host, source, BitswapLimits(stall_seconds=1.0))
    await world.nursery.start(bitswap.run)
    if asker is not None:
        await asker._host.connect(host.addresses[0])
    return host.peer_id, bitswap


async def fetched(root: Cid, store: ModelStore, *sources: BitswapSource) -> dict[str, int]:
    with trio.fail_after(60):
        report = await fetch(root, store, sources=sources, limits=LIMITS, rng=random.Random(1))
    return report.bytes_by_source


@pytest.mark.parametrize("profile", PROFILES)
async def test_a_model_of_every_profile_comes_whole(
    world: World, make_library: Make, model_file: Path, profile: str
) -> None:
    """Blocks of 256 KiB and of 1 MiB, raw and wrapped in dag-pb."""
    entry = (holder := make_library("a")).add(model_file, profile=PROFILES[profile])
    store = make_library("b").store
    _, asker = await speaking(world, store)
    peer, _ = await speaking(world, holder.store, asker)
    by_source = await fetched(entry.root, store, BitswapSource(asker, peer))
    assert by_source == {f"bitswap:{peer}": model_file.stat().st_size}
    (path,) = store.require(entry.root).paths
    assert path.read_bytes() == model_file.read_bytes()
    assert not asker.counts


async def test_a_directory_with_leaves_that_are_alike(memory: World, make_library: Make, tmp_path: Path) -> None:
    """What stands at several places of a run is asked for once."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.gguf").write_bytes(make_gguf_of_zeros(5 * MIB))
    (folder / "b.json").write_bytes(b'{"architectures": ["x"]}')
    holder, store = make_library("a"), make_library("b").store
    entry = holder.add(folder)
    _, asker = await speaking(memory, store)
    peer, server = await speaking(memory, holder.store, asker)
    await fetched(entry.root, store, BitswapSource(asker, peer))
    held = store.require(entry.root)
    assert [path.read_bytes() for path in held.paths] == [(folder / name).read_bytes() for name in ("a.gguf", "b.json")]
    assert server.sent_bytes < 4 * MIB


def make_gguf_of_zeros(size: int) -> bytes:
    from tests.models.conftest import make_gguf

    head = make_gguf(4096)
    return head + bytes(size - len(head))


async def test_several_peers_share_the_work(memory: World, make_library: Make, model_file: Path) -> None:
    holders = [make_library(name) for name in "abc"]
    (root,) = {library.add(model_file).root for library in holders}
    store = make_library("d").store
    _, asker = await speaking(memory, store)
    peers = [(await speaking(memory, library.store, asker))[0] for library in holders]
    by_source = await fetched(root, store, *(BitswapSource(asker, peer) for peer in peers))
    assert sum(by_source.values()) == model_file.stat().st_size
    assert store.require(root).row.complete


class Wrong:
    """A store that is another's, and gives other bytes for its leaves."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    def block(self, cid: Cid) -> Body | None:
        body = self._store.block(cid)
        if body is None or body.size_bytes < 100_000:
            return body
        data = body.read()
        body.close()
        return Body([bytes([data[0] ^ 1]) + data[1:]])


class _Liar(Bitswap):
    """Sends what it has without a look at it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._serving._answer = self._send_anything  # type: ignore[method-assign]

    def _send_anything(self, entry: Any) -> Any:
        from octonode.ipfs.bitswap_messages import Block, prefix_of
        from octonode.ipfs.bitswap_server import _Answer

        cid = Cid.from_bytes(entry.cid)
        body = self._serving.blocks.block(cid)
        return _Answer(entry.cid, block=Block(prefix_of(cid), body.read())) if body else _Answer(entry.cid)


async def test_a_liar_is_banned_and_the_rest_comes_of_the_others(
    memory: World, make_library: Make, model_file: Path
) -> None:
    holder, store = make_library("a"), make_library("b").store
    root = holder.add(model_file).root
    _, asker = await speaking(memory, store)
    honest, _ = await speaking(memory, holder.store, asker)
    host = await memory.host()
    liar = _Liar(host, Wrong(holder.store))
    await memory.nursery.start(liar.run)
    await asker._host.connect(host.addresses[0])
    sources = [BitswapSource(asker, host.peer_id), BitswapSource(asker, honest)]
    with trio.fail_after(60):
        report = await fetch(root, store, sources=sources, limits=LIMITS, rng=random.Random(1))
    assert host.peer_id in report.banned[sources[0].name]
    assert report.bytes_by_source == {f"bitswap:{honest}": model_file.stat().st_size}
    assert store.require(root).paths[0].read_bytes() == model_file.read_bytes()
    with pytest.raises(VerificationFailed):
        await fetched(root, make_library("c").store, BitswapSource(asker, host.peer_id))


async def test_a_peer_that_holds_a_part_is_asked_for_that_part(
    memory: World, make_library: Make, model_file: Path
) -> None:
    holder, part, store = make_library("a"), make_library("p").store, make_library("b").store
    root = holder.add(model_file).root
    layout = holder.store.require(root).layout()
    partial = part.prepare(layout)
    data = model_file.read_bytes()
    partial.paths[0].write_bytes(data[: 5 * MIB] + bytes(len(data) - 5 * MIB))
    partial.change_bits(add=0b1111)
    _, asker = await speaking(memory, store)
    partly, server = await speaking(memory, part, asker)
    wholly, _ = await speaking(memory, holder.store, asker)
    source = BitswapSource(asker, partly, partial=True)
    assert await source.have(layout) == 0b1111
    partial.change_bits(add=0b10000)
    assert await source.have(layout) == 0b11111, "it has more by now"
    assert server.sent_bytes == 0
    by_source = await fetched(root, store, source, BitswapSource(asker, wholly))
    assert sum(by_source.values()) == len(data)
    assert by_source[f"bitswap:{partly}"] <= 5 * MIB


async def test_many_leaves_are_asked_about_in_bounded_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that comes to hold more and more; known ones are not asked about again."""
    monkeypatch.setattr("octonode.models.sources.bitswap.PRESENCES_MAX", 10)
    asked: list[int] = []
    held: set[int] = set(range(0, 25, 2))

    @dataclasses.dataclass
    class Leaf:
        number: int

        @property
        def cid(self) -> int:
            return self.number

    class Exchange:
        async def have(self, peer_id: PeerId, cids: list[int]) -> frozenset[int]:
            asked.append(len(cids))
            return frozenset(cids) & held

    layout: Any = type("Layout", (), {"leaves": [Leaf(number) for number in range(25)]})
    source = BitswapSource(Exchange(), PeerId("p"), partial=True)  # type: ignore[arg-type]
    for _ in range(4):
        known = await source.have(layout)
    assert known is not None
    assert set(bitmap.members(known)) == held
    held |= set(range(25))
    for _ in range(3):
        known = await source.have(layout)
    assert known is None, "all of them"
    assert max(asked) == 10


async def test_a_private_model_is_not_given(memory: World, make_library: Make, model_file: Path) -> None:
    holder, store = make_library("a"), make_library("b").store
    entry = holder.add(model_file, public=False)
    _, asker = await speaking(memory, store)
    peer, server = await speaking(memory, holder.store, asker)
    for cid in (entry.root, *(leaf.cid for leaf in holder.store.require(entry.root).layout().leaves)):
        with pytest.raises(NotFound):
            await asker.block(peer, cid)
        assert await asker.have(peer, [cid]) == frozenset()
    assert server.sent_bytes == 0


async def test_a_peer_that_dies_during_a_fetch_leaves_what_came(
    memory: World, make_library: Make, model_file: Path
) -> None:
    holder, store = make_library("a"), make_library("b").store
    root = holder.add(model_file).root
    _, asker = await speaking(memory, store)
    peer, server = await speaking(memory, holder.store, asker)
    served = server._serving.on_sent

    def die_after_three(peer_id: PeerId, size_bytes: int) -> None:
        served(peer_id, size_bytes)
        if server.sent_bytes > 3 * MIB:
            memory.memory.kill(peer)

    server._serving.on_sent = die_after_three
    limits = dataclasses.replace(LIMITS, give_up_seconds=1.0)
    with trio.fail_after(60), pytest.raises(Unreachable):
        await fetch(root, store, sources=[BitswapSource(asker, peer)], limits=limits, rng=random.Random(1))
    model = store.require(root)
    held = sum(model.layout().leaves[number].size_bytes for number in bitmap.members(model.have_bits()))
    assert 0 < held < model_file.stat().st_size
    other, _ = await speaking(memory, holder.store, asker)
    by_source = await fetched(root, store, BitswapSource(asker, other))
    assert sum(by_source.values()) == model_file.stat().st_size - held
