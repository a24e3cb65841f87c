"""Files and nodes as mappings of blocks, made beside the importer where it would not make them, and walked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from octonode.ipfs.cid import Cid, dag_pb_cid
from octonode.ipfs.dagpb import (
    UNIXFS_FILE,
    UnixFs,
    encode_file,
    encode_node,
    encode_unixfs,
)
from octonode.ipfs.layout import DagWalk, Layout
from octonode.ipfs.unixfs import ImportResult, Profile, TreeBuilder


def wrapped_leaf(data: bytes, kind: int = UNIXFS_FILE) -> bytes:
    """As the encoder of nodes writes it, which knows nothing of `wrapping`."""
    return encode_node([], encode_unixfs(UnixFs(kind, data, len(data), has_size=True)))


def blocks_under(data: bytes, profile: Profile) -> tuple[ImportResult, dict[Cid, bytes]]:
    """The DAG of `data`, and all its blocks."""
    builder = TreeBuilder(profile)
    form, blocks = profile.leaf_form, {}
    for start in range(0, len(data), profile.leaf_bytes) or (0,):
        piece = data[start : start + profile.leaf_bytes]
        builder.add_bytes(piece)
        blocks[form.cid(form.digest(piece))] = form.block(piece)
    result = builder.finish()
    return result, blocks | dict(result.nodes)


def walked(root: Cid, blocks: Mapping[Cid, bytes], asked: list[Cid] | None = None) -> DagWalk:
    """Walked as far as the blocks reach; those that were wanted and there are added to `asked`."""
    walk = DagWalk(root)
    while known := [cid for cid in walk.wanted if cid in blocks]:
        for cid in known:
            walk.add(cid, blocks[cid])
            if asked is not None:
                asked.append(cid)
    return walk


def layout_of(root: Cid, blocks: Mapping[Cid, bytes], asked: list[Cid] | None = None) -> Layout:
    walk = walked(root, blocks, asked)
    assert not walk.wanted
    return walk.layout()


def read(layout: Layout, blocks: Mapping[Cid, bytes]) -> list[bytes]:
    """The files, out of the blocks of their leaves."""
    files = [b""] * len(layout.files)
    for leaf in layout.leaves:
        assert leaf.offset_bytes == len(files[leaf.file])
        assert len(blocks[leaf.cid]) == leaf.block_bytes
        files[leaf.file] += bytes(leaf.unwrap(blocks[leaf.cid]))
    return files


def nodes(*layers: Iterable[tuple[Cid, int]]) -> tuple[Cid, dict[Cid, bytes]]:
    """File nodes, the first over what it is given, each of the others over the one before and what it is given."""
    blocks: dict[Cid, bytes] = {}
    top: list[tuple[Cid, int]] = []
    for layer in layers:
        children = [*layer, *top]
        block = encode_file([(cid, size, size) for cid, size in children])
        top = [(dag_pb_cid(block), sum(size for _, size in children))]
        blocks[top[0][0]] = block
    return top[0][0], blocks


A, B = wrapped_leaf(b"aaaa"), wrapped_leaf(b"bb")
LEAVES = {dag_pb_cid(A): A, dag_pb_cid(B): B}
LEAF_A, LEAF_B = (dag_pb_cid(A), 4), (dag_pb_cid(B), 2)
