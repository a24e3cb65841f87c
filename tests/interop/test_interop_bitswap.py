"""Files over bitswap between us and real Helia and Kubo nodes, both ways: small and wide, leaves of either kind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from octonode.errors import NotFound
from octonode.ids import PeerId
from octonode.ipfs.cid import RAW, Cid
from octonode.ipfs.unixfs import PROFILES, UNIXFS_V1_2025, Profile
from octonode.models.fetching import FetchProgress
from octonode.models.sources.source import Source
from tests.interop.hosts import PRODUCTS
from tests.interop.ipfs_peers import HeliaPeer, IpfsPeer, KuboPeer, Shape
from tests.interop.ipfs_side import OurNode, sha256_of, write_model
from tests.interop.talking import GENEROUS_SECONDS

MIB = 1024 * 1024
KUBO_DEFAULT = PROFILES["unixfs-v0-2015"]
QUARTER_MIB_RAW = PROFILES["kubo-cid-v1"]
FEW_BYTES = 5 * MIB + 1
WIDE_BYTES = 176 * MIB // 4 + 1
LONG_BYTES = 192 * MIB
"""On its way when its progress is told for the first time, a quarter of a second after the start."""
"""176 leaves of 256 KiB and one of a byte: more than 174, two levels where a node has that many links."""
FILES = [
    (UNIXFS_V1_2025, FEW_BYTES),
    (KUBO_DEFAULT, FEW_BYTES),
    (QUARTER_MIB_RAW, WIDE_BYTES),
    (KUBO_DEFAULT, WIDE_BYTES),
]
FORGOTTEN_SECONDS = 12.0
"""Helia resets a stream to it on which nothing came for ten."""
NOBODYS = Cid(RAW, bytes(32))

each_muxer = pytest.mark.parametrize("side", PRODUCTS, ids=str)
own = pytest.mark.parametrize("side", [side for side in PRODUCTS if side.muxer == "own"], ids=str)
each_file = pytest.mark.parametrize(
    ("profile", "size_bytes"), FILES, ids=lambda each: each.name if isinstance(each, Profile) else str(each)
)
MakeModel = Callable[[int], Path]


@pytest.fixture
async def ours(host: Any, nursery: trio.Nursery, tmp_path: Path) -> OurNode:
    node = OurNode(host, tmp_path / "ours")
    await nursery.start(node.run)
    return node


@pytest.fixture
def model(request: pytest.FixtureRequest, tmp_path: Path) -> MakeModel:
    """Files of any size that no other test has: a peer that serves many tests must not have the blocks already."""

    def make(size_bytes: int) -> Path:
        return write_model(tmp_path / f"{size_bytes}.model", size_bytes, f"{request.node.name} {size_bytes}")

    return make


def shape_of(profile: Profile) -> Shape:
    return Shape(profile.leaf_bytes, profile.links_per_node, profile.raw_leaves, profile.cid_version)


async def take(ours: OurNode, peer: IpfsPeer, root: str, file: Path) -> None:
    """Fetch `root` from `peer` into our store: the bytes of `file`, all of them from that peer."""
    report = await ours.fetch(root, [PeerId(peer.peer_id)])
    assert report.bytes_by_source == {f"bitswap:{peer.peer_id}": file.stat().st_size}
    assert report.banned == {}
    assert sha256_of(ours.held(root)) == sha256_of(file)


# What they take of us.


@each_muxer
@each_file
async def test_helia_takes(
    helia: HeliaPeer, ours: OurNode, link: Any, model: MakeModel, tmp_path: Path, profile: Profile, size_bytes: int
) -> None:
    file = model(size_bytes)
    root = ours.add(file, profile)
    with trio.fail_after(GENEROUS_SECONDS):
        await link(helia)
        got = await helia.fetch(str(root), tmp_path / "got", seconds=GENEROUS_SECONDS)
    assert (got.bytes, got.sha256) == (size_bytes, sha256_of(file))
    assert ours.bitswap.counts == {}


@each_muxer
@each_file
async def test_kubo_takes(
    kubo: KuboPeer, ours: OurNode, link: Any, model: MakeModel, tmp_path: Path, profile: Profile, size_bytes: int
) -> None:
    file = model(size_bytes)
    root = ours.add(file, profile)
    with trio.fail_after(GENEROUS_SECONDS):
        await link(kubo)
        got = await kubo.fetch(str(root), tmp_path / "got")
    assert (got.bytes, got.sha256) == (size_bytes, sha256_of(file))
    assert ours.bitswap.counts == {}


@own
async def test_helia_is_told_what_we_have_and_gets_no_block_with_it(
    helia: HeliaPeer, ours: OurNode, link: Any, model: MakeModel
) -> None:
    ours.add(model(FEW_BYTES), UNIXFS_V1_2025)
    (held,) = ours.store.held()
    root, leaf = held.row.root, held.layout().leaves[1].cid
    with trio.fail_after(GENEROUS_SECONDS):
        await link(helia)
        told = [await helia.ask(str(cid), ours.host.peer_id, seconds=GENEROUS_SECONDS) for cid in (leaf, root, NOBODYS)]
    small = len(held.layout().nodes[root])
    assert small < 1024
    assert told == [
        {"has": True, "block_bytes": None},
        {"has": True, "block_bytes": small},
        {"has": False, "block_bytes": None},
    ]


# What we take of them.


@each_muxer
@pytest.mark.parametrize("size_bytes", [FEW_BYTES, WIDE_BYTES])
@pytest.mark.parametrize("raw_leaves", [True, False], ids=["raw", "wrapped"])
@pytest.mark.parametrize("leaf_bytes", [MIB // 4, MIB])
async def test_helia_gives(
    helia: HeliaPeer, ours: OurNode, link: Any, model: MakeModel, size_bytes: int, leaf_bytes: int, raw_leaves: bool
) -> None:
    file = model(size_bytes)
    with trio.fail_after(GENEROUS_SECONDS):
        root = await helia.add(file, Shape(leaf_bytes, 174, raw_leaves, version=1))
        await link(helia)
        await take(ours, helia, root, file)


@each_muxer
@pytest.mark.parametrize("size_bytes", [FEW_BYTES, WIDE_BYTES])
async def test_kubo_gives(kubo: KuboPeer, ours: OurNode, link: Any, model: MakeModel, size_bytes: int) -> None:
    file = model(size_bytes)
    with trio.fail_after(GENEROUS_SECONDS):
        root = await kubo.add(file)
        assert root.startswith("Qm")
        await link(kubo)
        await take(ours, kubo, root, file)


@own
async def test_we_are_told_what_they_have(
    helia: HeliaPeer, kubo: KuboPeer, ours: OurNode, link: Any, model: MakeModel
) -> None:
    file = model(FEW_BYTES)
    with trio.fail_after(GENEROUS_SECONDS):
        for peer, root in ((helia, await helia.add(file, shape_of(KUBO_DEFAULT))), (kubo, await kubo.add(file))):
            peer_id = PeerId(await link(peer))
            cids = [Cid.parse(root), NOBODYS]
            assert await ours.bitswap.have(peer_id, cids) == {cids[0]}
            with pytest.raises(NotFound):
                await ours.bitswap.block(peer_id, NOBODYS)


@own
async def test_what_was_given_a_moment_ago_is_given_again(
    helia: HeliaPeer, kubo: KuboPeer, ours: OurNode, link: Any, model: MakeModel
) -> None:
    """Helia passes over a want for what it sent within the last five seconds."""
    file = model(FEW_BYTES)
    with trio.fail_after(GENEROUS_SECONDS):
        for peer, root in ((helia, await helia.add(file, shape_of(UNIXFS_V1_2025))), (kubo, await kubo.add(file))):
            peer_id, cid = PeerId(await link(peer)), Cid.parse(root)
            assert await ours.bitswap.block(peer_id, cid) == await ours.bitswap.block(peer_id, cid)


@own
async def test_after_a_while_of_silence(
    helia: HeliaPeer, kubo: KuboPeer, ours: OurNode, link: Any, model: MakeModel, tmp_path: Path
) -> None:
    """Streams that ended meanwhile are opened anew, and both sides go on."""
    root = str(ours.add(model(FEW_BYTES), KUBO_DEFAULT))
    sent = {"before": model(FEW_BYTES + 1), "after": model(FEW_BYTES + 2)}
    peers: Sequence[IpfsPeer] = (helia, kubo)
    with trio.fail_after(GENEROUS_SECONDS):
        for peer in peers:
            await link(peer)
        for when, file in sent.items():
            theirs = str(await kubo.add(file))
            assert theirs == await helia.add(file, shape_of(KUBO_DEFAULT))
            for peer in peers:
                await ours.bitswap.block(PeerId(peer.peer_id), Cid.parse(theirs))
            if when == "before":
                await trio.sleep(FORGOTTEN_SECONDS)
        assert (await helia.fetch(root, tmp_path / "helia", seconds=GENEROUS_SECONDS)).bytes == FEW_BYTES
        assert (await kubo.fetch(root, tmp_path / "kubo")).bytes == FEW_BYTES


# Several at once, and one that dies.


@own
async def test_all_give_and_take_at_once(
    helia: HeliaPeer, kubo: KuboPeer, ours: OurNode, link: Any, model: MakeModel, tmp_path: Path
) -> None:
    mine, theirs = model(WIDE_BYTES), model(WIDE_BYTES + 1)
    root = str(ours.add(mine, KUBO_DEFAULT))
    got: dict[str, str] = {}

    async def give(peer: IpfsPeer, fetch: Any) -> None:
        got[peer.process.name] = (await fetch).sha256

    with trio.fail_after(GENEROUS_SECONDS):
        wanted = await kubo.add(theirs)
        assert wanted == await helia.add(theirs, shape_of(KUBO_DEFAULT))
        await link(helia)
        await link(kubo)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(give, helia, helia.fetch(root, tmp_path / "helia", seconds=GENEROUS_SECONDS))
            nursery.start_soon(give, kubo, kubo.fetch(root, tmp_path / "kubo"))
            report = await ours.fetch(wanted, [PeerId(helia.peer_id), PeerId(kubo.peer_id)])
    assert set(got.values()) == {sha256_of(mine)}
    assert sha256_of(ours.held(wanted)) == sha256_of(theirs)
    assert sum(report.bytes_by_source.values()) == WIDE_BYTES + 1
    assert len(report.bytes_by_source) == 2


@own
async def test_a_peer_that_is_killed_while_it_gives_and_another_one_that_goes_on(
    mortal_ipfs: IpfsPeer, kubo: KuboPeer, ours: OurNode, link: Any, model: MakeModel
) -> None:
    file = model(LONG_BYTES)
    victim = f"bitswap:{mortal_ipfs.peer_id}"
    killed = trio.Event()

    def watch(progress: FetchProgress) -> None:
        if progress.by_source.get(victim, 0) and not killed.is_set():
            mortal_ipfs.process.signal(signal.SIGKILL)
            killed.set()

    class Others:
        """Nobody else is known until then."""

        async def sources(self, root: Cid) -> Sequence[Source]:
            return [ours.source(PeerId(kubo.peer_id))] if killed.is_set() else []

    with trio.fail_after(GENEROUS_SECONDS):
        root = await kubo.add(file)
        async with mortal_ipfs.attached():
            assert root == await add(mortal_ipfs, file)
            await link(mortal_ipfs)
            await link(kubo)
            report = await ours.fetch(root, [PeerId(mortal_ipfs.peer_id)], peers=Others(), progress=watch)
    assert sha256_of(ours.held(root)) == sha256_of(file)
    assert sum(report.bytes_by_source.values()) == LONG_BYTES
    assert 0 < report.bytes_by_source[victim] < LONG_BYTES
    assert report.banned == {}


@own
async def test_a_peer_that_is_killed_while_it_takes(
    mortal_ipfs: IpfsPeer, kubo: KuboPeer, ours: OurNode, link: Any, model: MakeModel, tmp_path: Path
) -> None:
    """We have nothing left for it, and others are served."""
    file = model(WIDE_BYTES)
    root = str(ours.add(file, KUBO_DEFAULT))
    with trio.fail_after(GENEROUS_SECONDS):
        await link(kubo)
        async with mortal_ipfs.attached(), trio.open_nursery() as nursery:
            await link(mortal_ipfs)
            details = {"seconds": GENEROUS_SECONDS} if isinstance(mortal_ipfs, HeliaPeer) else {}
            nursery.start_soon(lambda: mortal_ipfs.tell("fetch", cid=root, path=os.devnull, **details))
            while not ours.bitswap.sent_bytes > MIB:
                await trio.lowlevel.checkpoint()
            mortal_ipfs.process.signal(signal.SIGKILL)
            assert ours.bitswap.sent_bytes < WIDE_BYTES
            nursery.cancel_scope.cancel()
        while ours.bitswap.wants_waiting:
            await trio.sleep(0.02)
        assert (await kubo.fetch(root, tmp_path / "got")).sha256 == sha256_of(file)


async def add(peer: IpfsPeer, file: Path) -> str:
    if isinstance(peer, HeliaPeer):
        return await peer.add(file, shape_of(KUBO_DEFAULT))
    assert isinstance(peer, KuboPeer)
    return await peer.add(file)
