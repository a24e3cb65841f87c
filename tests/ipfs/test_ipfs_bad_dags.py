"""DAGs that were made to mislead: each is a typed error, in bounded time and memory."""

from __future__ import annotations

import contextlib
import hashlib
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.errors import RemoteProtocolError, VerificationFailed
from octonode.ipfs.cid import DAG_PB, Cid, dag_cbor_cid, dag_pb_cid, raw_cid
from octonode.ipfs.dagpb import (
    BLOCK_BYTES_MAX,
    UNIXFS_FILE,
    UNIXFS_RAW,
    Link,
    UnixFs,
    encode_directory,
    encode_file,
    encode_node,
    encode_unixfs,
    interpret,
)
from octonode.ipfs.layout import DagWalk
from octonode.ipfs.leaves import RAW_LEAVES
from octonode.ipfs.unixfs import PROFILES, Profile, TreeBuilder
from tests.ipfs.dags import LEAF_A, LEAF_B, LEAVES, A, B, blocks_under, layout_of, nodes, read, walked, wrapped_leaf


@pytest.mark.parametrize(
    "layers",
    [([LEAF_A], [LEAF_A]), ([LEAF_A], [LEAF_A, LEAF_B]), ([LEAF_B], [LEAF_A], [LEAF_A])],
    ids=["one below", "two below", "deep"],
)
def test_trickle_trees_are_refused_before_their_leaves_are_asked_for(
    layers: tuple[list[tuple[Cid, int]], ...],
) -> None:
    root, blocks = nodes(*layers)
    with pytest.raises(RemoteProtocolError, match="not balanced") as caught:
        layout_of(root, blocks | LEAVES)
    assert caught.value.code == "UNSUPPORTED"


def test_a_leaf_above_the_others_is_refused() -> None:
    low, blocks = nodes([LEAF_A, LEAF_A])
    block = encode_file([(low, 8, 8), (*LEAF_B, 2), (low, 8, 8)])
    with pytest.raises(RemoteProtocolError, match="not balanced"):
        layout_of(dag_pb_cid(block), {**blocks, **LEAVES, dag_pb_cid(block): block})


def test_a_node_among_the_leaves_is_found_when_it_arrives() -> None:
    """Between the first and the last nothing is fetched, so a node there looks like a leaf until its block is here."""
    inner, blocks = nodes([LEAF_B])
    root = encode_file([(*LEAF_A, 4), (inner, 2, 2), (*LEAF_A, 4)])
    layout = layout_of(dag_pb_cid(root), {**LEAVES, dag_pb_cid(root): root})
    with pytest.raises(RemoteProtocolError, match="not balanced"):
        layout.leaves[1].unwrap(blocks[inner])


def test_links_and_data_in_one_node_are_refused() -> None:
    both = encode_node([Link(LEAF_A[0], "", 4)], encode_unixfs(UnixFs(UNIXFS_FILE, b"x", 5, (4,), has_size=True)))
    with pytest.raises(RemoteProtocolError, match="children and bytes") as caught:
        interpret(both)
    assert caught.value.code == "UNSUPPORTED"
    raw = encode_node([Link(LEAF_A[0], "", 4)], encode_unixfs(UnixFs(UNIXFS_RAW, b"", 4, (4,), has_size=True)))
    with pytest.raises(RemoteProtocolError):
        interpret(raw)


def test_sizes_that_lie() -> None:
    """About a leaf that is fetched on the way down: before disk is taken. About another: when it arrives."""
    for children in ([(LEAF_A[0], 5)], [LEAF_A, (LEAF_B[0], 3)]):
        root, blocks = nodes(children)
        with pytest.raises(RemoteProtocolError, match="cannot have"):
            layout_of(root, blocks | LEAVES)
    root, blocks = nodes([LEAF_A, (LEAF_B[0], 3), LEAF_A])
    with pytest.raises(VerificationFailed, match="malformed"):
        layout_of(root, blocks | LEAVES).leaves[1].unwrap(B)
    root, blocks = nodes([LEAF_A, (dag_pb_cid(b"far"), BLOCK_BYTES_MAX), LEAF_A])
    with pytest.raises(RemoteProtocolError, match="cannot have"):
        layout_of(root, blocks | LEAVES)


def test_the_codec_of_a_cid_decides() -> None:
    """Raw bytes that look like a wrapped leaf are themselves; a dag-pb CID of what is no dag-pb is an error."""
    layout = layout_of(raw_cid(A), {raw_cid(A): A})
    assert (layout.size_bytes, layout.files[0].form) == (len(A), RAW_LEAVES)
    root, blocks = nodes([(raw_cid(A), len(A)), (raw_cid(B), len(B))])
    layout = layout_of(root, blocks)
    assert read(layout, {raw_cid(A): A, raw_cid(B): B}) == [A + B]
    for junk in (b"", b"not dag-pb at all", b"\x0a\xff", b"\x12\x00"):
        with pytest.raises(RemoteProtocolError):
            layout_of(dag_pb_cid(junk), {dag_pb_cid(junk): junk})
    root, blocks = nodes([(dag_cbor_cid(b"\xa0"), 1)])
    with pytest.raises(RemoteProtocolError, match="neither raw nor dag-pb"):
        layout_of(root, blocks)


def test_an_oversize_leaf_is_refused() -> None:
    block = wrapped_leaf(bytes(BLOCK_BYTES_MAX))
    with pytest.raises(VerificationFailed):
        DagWalk(dag_pb_cid(block)).add(dag_pb_cid(block), block)
    block = wrapped_leaf(bytes(BLOCK_BYTES_MAX - 18))
    assert len(block) <= BLOCK_BYTES_MAX
    assert layout_of(dag_pb_cid(block), {dag_pb_cid(block): block}).size_bytes == BLOCK_BYTES_MAX - 18


def test_a_file_inside_of_which_is_a_directory() -> None:
    directory = encode_directory([Link(LEAF_A[0], "a", 4)])
    for children in ([(dag_pb_cid(directory), 4)], [LEAF_A, (dag_pb_cid(directory), 4)]):
        root, blocks = nodes(children)
        with pytest.raises(RemoteProtocolError):
            layout_of(root, {**blocks, **LEAVES, dag_pb_cid(directory): directory})


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    """A walk of a hostile DAG takes no more than a large honest one."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 128 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "raw"])
def test_a_node_repeated_at_a_million_places(wrapped: bool) -> None:
    """Three blocks that unfold to 8000 ** 3 leaves: refused at the bound, with each block looked at a few times."""
    cid, size = LEAF_A if wrapped else (raw_cid(b"aaaa"), 4)
    blocks = dict(LEAVES)
    for _ in range(3):
        sizes = (size,) * 8000
        block = encode_node([Link(cid)] * 8000, encode_unixfs(UnixFs(UNIXFS_FILE, b"", sum(sizes), sizes, True)))
        cid, size = dag_pb_cid(block), sum(sizes)
        blocks[cid] = block
    asked: list[Cid] = []
    with pytest.raises(RemoteProtocolError, match="leaves") as caught:
        layout_of(cid, blocks, asked)
    assert caught.value.code == "TOO_LARGE"
    assert len(asked) == 3 + wrapped


def test_a_million_links_to_nodes_are_refused() -> None:
    """128 nodes with 8191 children each, all of them different: too many to fetch, which the third node shows."""
    low, blocks = nodes([LEAF_A, LEAF_A])
    blocks |= LEAVES
    wide: list[tuple[Cid, int]] = []
    for number in range(128):
        children = [(low, 8), *((Cid(DAG_PB, number.to_bytes(4) + each.to_bytes(28)), 8) for each in range(8190))]
        cid, more = nodes(children) if number < 4 else (children[1][0], {})
        blocks |= more
        wide.append((cid, 8 * 8191))
    root, more = nodes(wide)
    blocks |= more
    asked: list[Cid] = []
    with _bounded_memory(), pytest.raises(RemoteProtocolError, match="more blocks") as caught:
        walked(root, blocks, asked)
    assert caught.value.code == "TOO_LARGE"
    assert len(asked) < 10


def test_a_chain_as_deep_as_it_is_long() -> None:
    """Known from a directory before it is met as a chain: neither the stack nor time runs out."""
    blocks = dict(LEAVES)
    chain = [LEAF_A]
    for _ in range(3000):
        root, more = nodes([(raw_cid(b"aaaa"), 4), chain[-1]])
        blocks |= more
        chain.append((root, 4 + chain[-1][1]))
    entries = [Link(cid, f"{number}", 1) for number, (cid, _) in enumerate(chain)]
    directory = encode_directory(entries)
    with _bounded_memory(), pytest.raises(RemoteProtocolError):
        layout_of(dag_pb_cid(directory), {**blocks, dag_pb_cid(directory): directory})
    with pytest.raises(RemoteProtocolError):
        layout_of(chain[-1][0], blocks)


def test_a_left_side_without_end() -> None:
    blocks = dict(LEAVES)
    root, size = LEAF_A
    for _ in range(6):
        root, more = nodes([(root, size)])
        blocks |= more
    asked: list[Cid] = []
    with pytest.raises(RemoteProtocolError, match="deeper") as caught:
        layout_of(root, blocks, asked)
    assert caught.value.code == "TOO_LARGE"
    assert len(asked) <= 5


@settings(max_examples=200)
@given(st.data())
def test_a_dag_with_one_mangled_node_is_a_layout_or_a_typed_error(data: st.DataObject) -> None:
    profile = Profile("test", 3, 3, 0, raw_leaves=data.draw(st.booleans()))
    result, blocks = blocks_under(bytes(range(40)), profile)
    old, block = data.draw(st.sampled_from(sorted(blocks.items())))
    at = data.draw(st.integers(0, len(block) - 1))
    mangled = block[:at] + bytes([block[at] ^ data.draw(st.integers(1, 255))]) + block[at + 1 :]

    def renamed(cid: Cid) -> Cid:
        return Cid(cid.codec, hashlib.sha256(mangled).digest(), cid.version) if cid == old else cid

    walk = DagWalk(renamed(result.root))
    with contextlib.suppress(RemoteProtocolError, VerificationFailed, KeyError):
        while walk.wanted:
            for cid in walk.wanted:
                walk.add(cid, mangled if cid == renamed(old) else blocks[cid])
        layout = walk.layout()
        assert sum(leaf.size_bytes for leaf in layout.leaves) == layout.size_bytes


def test_forty_gibibytes_of_wrapped_leaves_are_within_the_bounds() -> None:
    """163,840 leaves and 948 nodes; the figures in seconds are shown, not asserted."""
    profile = PROFILES["unixfs-v0-2015"]
    leaves = 40 * 2**30 // profile.leaf_bytes
    builder = TreeBuilder(profile)
    first, last = (profile.leaf_form.block(bytes([n]) * profile.leaf_bytes) for n in (1, 2))
    blocks = {}
    for number in range(leaves):
        digest = number.to_bytes(32)
        if number in (0, leaves - 1):
            block = first if number == 0 else last
            digest = hashlib.sha256(block).digest()
            blocks[profile.leaf_form.cid(digest)] = block
        builder.add(digest, profile.leaf_bytes)
    result = builder.finish()
    blocks |= dict(result.nodes)
    began = time.perf_counter()
    layout = layout_of(result.root, blocks)
    print(f"walked {len(layout.nodes)} nodes and {len(layout.leaves)} leaves in {time.perf_counter() - began:.2f} s")
    assert (len(layout.leaves), layout.size_bytes) == (leaves, 40 * 2**30)
    assert len(layout.nodes) == 942 + 6 + 1
