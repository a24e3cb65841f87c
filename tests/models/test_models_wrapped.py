"""Models under other profiles than ours, wrapped leaves above all: added, fetched, kept, verified and handed on."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from octonode.errors import NotFound, OctonodeError, RemoteProtocolError, VerificationFailed
from octonode.ids import PeerId
from octonode.ipfs import car
from octonode.ipfs.cid import DAG_PB, RAW, Cid, dag_pb_cid, raw_cid
from octonode.ipfs.dagpb import UNIXFS_FILE, UNIXFS_RAW, UnixFs, encode_file, encode_node, encode_unixfs
from octonode.ipfs.gateway import GatewayLimits
from octonode.ipfs.layout import Layout, Leaf
from octonode.ipfs.leaves import RAW_LEAVES
from octonode.ipfs.unixfs import PROFILES, Profile
from octonode.models.fetch import FetchLimits, FetchProgress, GatewayAddress, fetch
from octonode.models.library import Library
from octonode.models.sources.file import FileSource
from octonode.models.sources.gateway import GatewaySource
from octonode.models.sources.https import HttpsSource
from octonode.models.sources.source import Arrived, Lane
from octonode.models.store import ModelStore
from tests.models.kept import blocks_of

MIB, KIB = 1024 * 1024, 1024
CIDV0 = PROFILES["unixfs-v0-2015"]
LIMITS = FetchLimits(
    window_bytes_start=MIB, window_bytes_max=2 * MIB, retry_seconds=0.05, give_up_seconds=30.0, nobody_seconds=1.0
)
Make = Callable[..., Library]


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
async def test_from_one_store_to_the_next_and_on_to_a_third(
    make_library: Make, tmp_path: Path, gguf: Callable[..., bytes], serve_store: Any, profile: Profile
) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf(3 * MIB + 333))
    first, second, third = make_library("a"), make_library("b", trust_all=True), make_library("c", trust_all=True)
    entry = first.add(path, profile=profile)
    assert entry.manifest is not None
    assert entry.manifest.manifest.profile == profile.name
    assert entry.root == Library.cid(path, profile=profile).v1
    with trio.fail_after(60):
        for giver, taker in ((first, second), (second, third)):
            async with serve_store(giver.store) as address:
                signed = taker.accept(entry.manifest.encode())
                await fetch(
                    entry.root,
                    taker.store,
                    sources=[GatewaySource(address)],
                    manifest=signed.manifest,
                    limits=LIMITS,
                )
    models = [library.store.require(entry.root) for library in (first, second, third)]
    for model in models:
        assert model.paths[0].read_bytes() == path.read_bytes()
        assert blocks_of(model) == blocks_of(models[0])
        assert all(cid.matches(block) for cid, block in blocks_of(model).items())
        assert [leaf.cid for leaf in model.layout().leaves] == [leaf.cid for leaf in models[0].layout().leaves]
        assert {leaf.cid.version for leaf in model.layout().leaves} == {1 if profile.raw_leaves else 0}
    assert third.verify(str(entry.root)).ok


async def test_three_levels_of_a_cidv0_model_by_every_kind_of_source(
    make_library: Make, tmp_path: Path, gguf: Callable[..., bytes], serve_store: Any
) -> None:
    """184 leaves: two nodes and a root over them."""
    path = tmp_path / "large.gguf"
    path.write_bytes(gguf(46 * MIB))
    library = make_library("a")
    root = library.add(path, profile=CIDV0).root
    layout = library.store.require(root).layout()
    assert (len(layout.leaves), len(layout.nodes)) == (184, 4)  # the manifest is kept as a block too
    with trio.fail_after(60):
        async with serve_store(library.store) as address:
            sources = {
                "gateway": [GatewaySource(address)],
                "https": [HttpsSource(f"http://{address}")],
                "file": [FileSource(path, root), GatewaySource(address)],
            }
            for name, given in sources.items():
                store = ModelStore(tmp_path / name)
                await fetch(root, store, sources=given, limits=LIMITS)
                assert store.require(root).row.complete, name
                assert store.require(root).paths[0].read_bytes() == path.read_bytes(), name


def test_a_run_is_a_car_of_the_blocks_with_the_nodes_before_it(
    make_library: Make, tmp_path: Path, gguf: Callable[..., bytes]
) -> None:
    path = tmp_path / "large.gguf"
    path.write_bytes(gguf(46 * MIB))
    library = make_library("a")
    model = library.store.require(library.add(path, profile=CIDV0).root)
    leaves = model.layout().leaves
    body = model.run(model.files[0], 174 * 256 * KIB - 1, 174 * 256 * KIB, nodes=True)
    assert body is not None
    archive = body.read()
    assert len(archive) == body.size_bytes
    body.close()
    sections = list(car.read(io.BytesIO(archive)))
    assert all(cid.matches(block) for cid, block in sections)
    nodes = [(cid, block) for cid, block in sections if cid not in {leaf.cid for leaf in leaves}]
    assert len(nodes) == 3
    assert nodes[0][0].v1 == model.root
    assert [cid for cid, _ in sections[3:]] == [leaves[173].cid, leaves[174].cid]


async def test_a_directory_under_cidv0(
    make_library: Make, tmp_path: Path, gguf: Callable[..., bytes], serve_store: Any
) -> None:
    """Weights, a file of one wrapped leaf, an empty one, and the same one twice."""
    folder = tmp_path / "many"
    (folder / "sub").mkdir(parents=True)
    (folder / "w.gguf").write_bytes(gguf(MIB))
    for name in ("config.json", "sub/config.json"):
        (folder / name).write_text("{}")
    (folder / "empty.txt").write_bytes(b"")
    library, other = make_library("a"), make_library("b")
    entry = library.add(folder, profile=CIDV0)
    assert entry.root == Library.cid(folder, profile=CIDV0).v1
    with trio.fail_after(60):
        async with serve_store(library.store) as address:
            await fetch(entry.root, other.store, sources=[GatewaySource(address)], limits=LIMITS)
    assert other.verify(str(entry.root)).ok
    model = other.store.require(entry.root)
    assert blocks_of(model) == blocks_of(library.store.require(entry.root))
    assert {file.path: path.read_bytes() for file, path in zip(model.files, model.paths, strict=True)} == {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


async def test_a_model_that_is_one_wrapped_leaf(
    make_library: Make, tmp_path: Path, gguf: Callable[..., bytes], serve_store: Any
) -> None:
    (tmp_path / "t.gguf").write_bytes(gguf(1000))
    library, other = make_library("a"), make_library("b")
    entry = library.add(tmp_path / "t.gguf", profile=CIDV0)
    as_people_type_it = Cid(entry.root.codec, entry.root.digest, 0)
    with trio.fail_after(60):
        async with serve_store(library.store) as address:
            await fetch(as_people_type_it, other.store, sources=[GatewaySource(address)], limits=LIMITS)
    model = other.store.require(entry.root)
    assert model.paths[0].read_bytes() == (tmp_path / "t.gguf").read_bytes()
    assert blocks_of(model) == blocks_of(library.store.require(entry.root))


def test_blocks_are_found_by_both_versions_of_their_cid_and_by_no_other_codec(
    make_library: Make, tmp_path: Path, gguf: Callable[..., bytes]
) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf(MIB))
    library = make_library("a")
    wrapped = library.store.require(library.add(path, profile=CIDV0).root).layout().leaves[1].cid
    raw = library.store.require(library.add(path, profile=PROFILES["kubo-cid-v1"], name="raw").root).layout().leaves[1]
    for cid in (wrapped, wrapped.v1, raw.cid):
        body = library.store.block(cid)
        assert body is not None
        assert cid.matches(body.read())
        body.close()
        assert library.store.read_block(cid) is not None
    assert library.store.block(Cid(RAW, wrapped.digest)) is None
    assert library.store.block(Cid(DAG_PB, raw.digest)) is None


# -- DAGs that others made -----------------------------------------------------------------------------------


class _Blocks:
    """A source of single blocks out of a mapping, as bitswap is."""

    name = label = "blocks"
    rank, lanes, verifies = 1, 2, False
    peer_id: PeerId | None = None

    def __init__(self, blocks: dict[Cid, bytes]) -> None:
        self._blocks = {cid.v1: block for cid, block in blocks.items()}

    def open(self) -> Lane:
        return self

    def close(self) -> None:
        """Nothing is held."""

    async def have(self, layout: Layout) -> int | None:
        return None

    async def block(self, cid: Cid) -> bytes:
        await trio.lowlevel.checkpoint()
        if cid.v1 not in self._blocks:
            raise NotFound(f"no {cid}")
        return self._blocks[cid.v1]

    async def leaves(self, file_root: Cid, leaves: Sequence[Leaf], arrived: Arrived) -> None:
        for leaf in leaves:
            arrived([(leaf, memoryview(await self.block(leaf.cid)))])


def _leaf(data: bytes, kind: int = UNIXFS_FILE) -> bytes:
    return encode_node([], encode_unixfs(UnixFs(kind, data, len(data), has_size=True)))


def _file(leaves: list[tuple[bytes, int]], version: int = 1) -> tuple[Cid, dict[Cid, bytes]]:
    """A node over leaf blocks, each with the bytes that its parent says it has."""
    children = [(Cid(DAG_PB, dag_pb_cid(block).digest, version), size, len(block)) for block, size in leaves]
    root = encode_file(children)
    blocks = {cid: block for (cid, _, _), (block, _) in zip(children, leaves, strict=True)}
    return dag_pb_cid(root), {**blocks, dag_pb_cid(root): root}


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("kind", [UNIXFS_FILE, UNIXFS_RAW])
async def test_leaves_of_any_size_and_of_both_types(home: Path, kind: int, version: int) -> None:
    pieces = [b"one", b"two two", b"t", b"four" * 1000]
    root, blocks = _file([(_leaf(piece, kind), len(piece)) for piece in pieces], version)
    store = ModelStore(home)
    with trio.fail_after(60):
        await fetch(root, store, sources=[_Blocks(blocks)], limits=LIMITS)
    model = store.require(root)
    assert model.paths[0].read_bytes() == b"".join(pieces)
    assert blocks_of(model) == {cid.v1 if cid == root else cid: block for cid, block in blocks.items()}
    again = ModelStore(home).require(root)  # from disk
    assert [leaf.cid.version for leaf in again.layout().leaves] == [version] * 4
    assert blocks_of(again) == blocks_of(model)


BAD_LEAVES = {
    "a node": (encode_file([(raw_cid(b"five!"), 5, 5)]), RemoteProtocolError, "not balanced"),
    "another type": (_leaf(b"five!", UNIXFS_RAW), RemoteProtocolError, "another kind"),
    "another size": (_leaf(b"six by"), RemoteProtocolError, "malformed"),
    "a mode in it": (
        encode_node([], encode_unixfs(UnixFs(UNIXFS_FILE, b"five!", 5, has_size=True)) + b"\x38\xa4\x03"),
        RemoteProtocolError,
        "Kubo and Helia",
    ),
    "no dag-pb": (b"five!", RemoteProtocolError, "dag-pb node"),
}


@pytest.mark.parametrize(("block", "kind", "words"), BAD_LEAVES.values(), ids=BAD_LEAVES)
async def test_a_leaf_that_is_none_ends_the_fetch_and_is_not_written(
    home: Path, block: bytes, kind: type[OctonodeError], words: str
) -> None:
    """Its hash is right, so the source is not to blame: the DAG is."""
    root, blocks = _file([(_leaf(b"good!"), 5), (block, 5), (_leaf(b"last!"), 5)])
    store = ModelStore(home)
    with trio.fail_after(60):
        with pytest.raises(kind, match=words):
            await fetch(root, store, sources=[_Blocks(blocks)], limits=LIMITS)
    assert store.roots() == (), "a root that never becomes a model takes no disk"


async def test_a_trickle_tree_is_refused_before_disk_is_taken(home: Path) -> None:
    low, blocks = _file([(_leaf(b"low"), 3)])
    first = _leaf(b"first")
    root = encode_file([(dag_pb_cid(first), 5, len(first)), (low, 3, 3)])
    blocks |= {dag_pb_cid(first): first, dag_pb_cid(root): root}
    with trio.fail_after(60):
        with pytest.raises(VerificationFailed, match="not balanced"):
            await fetch(dag_pb_cid(root), ModelStore(home), sources=[_Blocks(blocks)], limits=LIMITS)
    assert ModelStore(home).roots() == ()


async def test_a_raw_block_that_looks_like_a_leaf_is_its_bytes(home: Path) -> None:
    look = _leaf(b"x")
    with trio.fail_after(60):
        await fetch(raw_cid(look), ModelStore(home), sources=[_Blocks({raw_cid(look): look})], limits=LIMITS)
    model = ModelStore(home).require(raw_cid(look))
    assert model.paths[0].read_bytes() == look
    assert model.files[0].leaf_form == RAW_LEAVES


async def test_who_sends_wrong_bytes_is_banned_and_the_rest_give_it(
    make_library: Make, tmp_path: Path, gguf: Callable[..., bytes], serve_store: Any
) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf(2 * MIB))
    library, store = make_library("a"), ModelStore(tmp_path / "b")
    model = library.store.require(library.add(path, profile=CIDV0).root)
    blocks = blocks_of(model)
    ends = {blocks[model.layout().leaves[number].cid] for number in (0, -1)}
    nodes = set(model.layout().nodes.values())
    liar = _Blocks({
        cid: block if block in nodes | ends else block[:9] + bytes([block[9] ^ 1]) + block[10:]
        for cid, block in blocks.items()
    })  # fmt: skip
    with trio.fail_after(60):
        async with serve_store(library.store) as address:
            report = await fetch(model.root, store, sources=[liar, GatewaySource(address)], limits=LIMITS)
    assert set(report.banned) == {"blocks"}
    assert store.require(model.root).paths[0].read_bytes() == path.read_bytes()


# -- keeping it ----------------------------------------------------------------------------------------------


@pytest.fixture
async def cidv0_gateway(
    make_library: Make, tmp_path: Path, gguf: Callable[..., bytes], serve_store: Any
) -> AsyncIterator[tuple[Library, Cid, GatewayAddress]]:
    path = tmp_path / "kept.gguf"
    path.write_bytes(gguf(4 * MIB + 5))
    library = make_library("a")
    root = library.add(path, profile=CIDV0, placement="copy").root
    with trio.fail_after(60):
        async with serve_store(library.store) as address:
            yield library, root, address


async def test_a_fetch_that_is_cut_short_goes_on(
    cidv0_gateway: tuple[Library, Cid, GatewayAddress], serve_store: Any, home: Path
) -> None:
    library, root, address = cidv0_gateway
    store = ModelStore(home)
    with trio.CancelScope() as scope:

        def seen(progress: FetchProgress) -> None:
            if progress.done_bytes:
                scope.cancel()

        async with serve_store(library.store, GatewayLimits(upload_bytes_per_second_max=2 * MIB)) as slow:
            await fetch(root, store, sources=[GatewaySource(slow)], progress=seen, limits=LIMITS)
    store.close()
    store = ModelStore(home)  # as after a restart
    model = store.require(root)
    held = [leaf.size_bytes for leaf in model.layout().leaves if model.have_bits() >> leaf.number & 1]
    assert 0 < len(held) < 17
    report = await fetch(root, store, sources=[GatewaySource(address)], limits=LIMITS)
    assert sum(report.bytes_by_source.values()) == model.row.size_bytes - sum(held)
    assert model.paths[0].read_bytes() == library.store.require(root).paths[0].read_bytes()
    assert blocks_of(model) == blocks_of(library.store.require(root))


async def test_damage_is_found_not_served_and_repaired(
    cidv0_gateway: tuple[Library, Cid, GatewayAddress], make_library: Make
) -> None:
    library, root, address = cidv0_gateway
    other = make_library("b")
    await fetch(root, other.store, sources=[GatewaySource(address)], limits=LIMITS)
    model = other.store.require(root)
    path, leaf = model.paths[0], model.layout().leaves[3]
    path.chmod(0o644)
    data = path.read_bytes()
    path.write_bytes(data[: leaf.offset_bytes] + b"\xff\x00\xff" + data[leaf.offset_bytes + 3 :])
    assert model.block(leaf.cid) is None  # the guard: hashed again before it is given
    assert model.block(model.layout().leaves[4].cid) is not None
    report = other.verify(str(root))
    assert not report.ok
    assert report.missing_leaves + len(report.bad_leaves) == 1
    fetched = await fetch(root, other.store, sources=[GatewaySource(address)], limits=LIMITS)
    assert sum(fetched.bytes_by_source.values()) == leaf.size_bytes
    assert other.verify(str(root)).ok
    assert blocks_of(other.store.require(root)) == blocks_of(library.store.require(root))
