"""The importer against the published vectors, from a file, a stream and a generator."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.errors import OctonodeError, RemoteProtocolError
from octonode.ipfs.cid import Cid, raw_cid
from octonode.ipfs.dagpb import DirectoryNode, FileNode, interpret
from octonode.ipfs.layout import DagWalk, Layout
from octonode.ipfs.unixfs import (
    EMPTY_LEAF,
    LEAF_BYTES,
    PROFILES,
    Profile,
    TreeBuilder,
    import_directory,
    import_file,
    import_stream,
    leaf_digests,
    profile_named,
)

VECTORS = json.loads((Path(__file__).parent / "cids.json").read_text())


@pytest.mark.parametrize(("size", "cid"), VECTORS["random"]["cids"].items())
def test_random_bytes_have_the_published_cids(size: str, cid: str, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(int(size))
    path = tmp_path / "file"
    path.write_bytes(data)
    seen: list[tuple[int, int]] = []
    result = import_file(path, lambda done, whole: seen.append((done, whole)))
    assert result.root.text == cid
    assert result.size_bytes == len(data)
    assert import_stream(io.BytesIO(data)).root.text == cid
    if data:
        assert seen[-1] == (len(data), len(data))


def _big(size: int) -> Iterator[bytes]:
    tail = random.Random(1).randbytes(LEAF_BYTES)[4:]
    for number in range(1025):
        if size <= 0:
            return
        yield (number.to_bytes(4, "little") + tail)[:size]
        size -= LEAF_BYTES


@pytest.mark.parametrize(("size", "cid"), VECTORS["big"]["cids"].items())
def test_a_gibibyte_and_one_byte_more(size: str, cid: str) -> None:
    result = leaf_digests(_big(int(size)))
    assert result.root.text == cid
    assert len(result.nodes) == (1 if int(size) == 1 << 30 else 3)


PROFILE_VECTORS = VECTORS["profiles"]["cids"]


def test_the_profiles_are_those_of_the_vectors() -> None:
    assert set(PROFILES) == set(PROFILE_VECTORS)
    for name, profile in PROFILES.items():
        row = PROFILE_VECTORS[name]
        assert (profile.leaf_bytes, profile.links_per_node) == (row["leaf_bytes"], row["links_per_node"])
        assert (profile.cid_version, profile.raw_leaves) == (row["cid_version"], row["raw_leaves"])
        assert profile_named(name) is profile
    assert profile_named("") is profile_named("unixfs-v1-2025")
    with pytest.raises(OctonodeError, match="unixfs-v0-2015"):
        profile_named("unixfs-v9")


@pytest.mark.parametrize(
    ("name", "size", "cid"),
    [(name, int(size), cid) for name, row in PROFILE_VECTORS.items() for size, cid in row["random"].items()],
)
def test_every_profile_gives_the_roots_of_other_importers(name: str, size: int, cid: str) -> None:
    data = random.Random(1).randbytes(size)
    result = import_stream(io.BytesIO(data), profile=PROFILES[name])
    assert result.root.text == cid
    assert result.profile.name == name
    assert result.size_bytes == size


@pytest.mark.parametrize(
    ("name", "size", "cid"),
    [(name, int(size), cid) for name, row in PROFILE_VECTORS.items() for size, cid in row["big"].items()],
)
def test_a_full_node_of_large_leaves_and_one_byte_more(name: str, size: int, cid: str) -> None:
    profile, whole = PROFILES[name], (piece for mebibyte in _big(size) for piece in _cut(mebibyte, name))
    assert leaf_digests(whole, profile).root.text == cid


def _cut(data: bytes, name: str) -> Iterator[bytes]:
    step = PROFILES[name].leaf_bytes
    return (data[start : start + step] for start in range(0, len(data), step))


class _Dribble:
    """Reads that come short, as from a pipe."""

    def __init__(self, data: bytes, sizes: random.Random) -> None:
        self._file, self._sizes = io.BytesIO(data), sizes

    def readinto(self, buffer: memoryview) -> int:
        return self._file.readinto(buffer[: self._sizes.randrange(1, 700_000)])


def test_short_reads_change_nothing() -> None:
    data = random.Random(1).randbytes(3145733)
    root = import_stream(_Dribble(data, random.Random(2))).root
    assert root.text == VECTORS["random"]["cids"]["3145733"]


def _walked(walk: DagWalk, blocks: dict[Cid, bytes]) -> Layout:
    while walk.wanted:
        for cid in walk.wanted:
            walk.add(cid, blocks[cid])
    return walk.layout()


@given(st.integers(1, 40), st.integers(2, 5))
def test_the_tree_walks_back_to_its_leaves(leaves: int, width: int) -> None:
    builder = TreeBuilder(Profile("test", 64, width, 1, raw_leaves=True))
    blocks = [bytes([number]) * (number + 1) for number in range(leaves)]
    for block in blocks:
        builder.add(raw_cid(block).digest, len(block))
    result = builder.finish()
    walk = DagWalk(result.root)
    nodes: dict[Cid, bytes] = {**dict(result.nodes), **{raw_cid(block): block for block in blocks}}
    if width**4 < leaves:
        with pytest.raises(RemoteProtocolError, match="deeper"):
            _walked(walk, nodes)
        return
    layout = _walked(walk, nodes)
    assert [leaf.digest for leaf in layout.leaves] == list(result.leaves)
    assert [leaf.offset_bytes for leaf in layout.leaves] == [sum(map(len, blocks[:n])) for n in range(leaves)]
    assert layout.size_bytes == result.size_bytes == sum(map(len, blocks))


def test_directories_are_sorted_and_nested() -> None:
    files = {
        "b.gguf": (EMPTY_LEAF, 0),
        "a/z.json": (raw_cid(b"z"), 1),
        "a/b/c.json": (raw_cid(b"c"), 1),
        "a.x": (raw_cid(b"x"), 1),
    }
    result = import_directory(files)
    nodes = {cid: interpret(block) for cid, block in result.nodes}
    root = nodes[result.root]
    assert isinstance(root, DirectoryNode)
    assert [entry.name for entry in root.entries] == ["a", "a.x", "b.gguf"]
    assert result.nodes[-1][0] == result.root
    assert import_directory(dict(reversed(files.items()))).root == result.root
    assert result.total_size_bytes == sum(len(block) for _, block in result.nodes) + 3


def test_file_nodes_say_their_sizes() -> None:
    result = leaf_digests([b"x" * LEAF_BYTES, b"y"])
    node = interpret(result.nodes[0][1])
    assert node == FileNode(LEAF_BYTES + 1, ((raw_cid(b"x" * LEAF_BYTES), LEAF_BYTES), (raw_cid(b"y"), 1)))
