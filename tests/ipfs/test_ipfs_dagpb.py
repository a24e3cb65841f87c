"""Strangers' blocks: only typed errors, no growth without end, nothing told by looks."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.errors import OctonodeError, RemoteProtocolError, VerificationFailed
from octonode.ipfs import dagcbor
from octonode.ipfs.cid import Cid, dag_pb_cid, raw_cid
from octonode.ipfs.dagpb import (
    BLOCK_BYTES_MAX,
    LINKS_MAX,
    UNIXFS_FILE,
    DirectoryNode,
    Link,
    UnixFs,
    decode_node,
    decode_unixfs,
    encode_directory,
    encode_file,
    encode_node,
    encode_unixfs,
    interpret,
    read_varint,
    varint,
)
from octonode.ipfs.layout import DagWalk

LEAF = raw_cid(b"leaf")
GOOD = encode_file([(LEAF, 4, 4), (raw_cid(b"other"), 5, 5)])


@given(st.binary(max_size=300))
def test_any_bytes_are_a_node_or_a_remote_error(data: bytes) -> None:
    for read in (decode_node, decode_unixfs, interpret):
        with contextlib.suppress(RemoteProtocolError):
            read(data)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.integers(0, len(GOOD)))
def test_a_mangled_node_is_a_node_or_a_remote_error(at: int, byte: int, cut: int) -> None:
    for data in (GOOD[:at] + bytes([byte]) + GOOD[at + 1 :], GOOD[:cut], GOOD[:cut] + GOOD):
        with contextlib.suppress(RemoteProtocolError):
            interpret(data)


links = st.builds(
    lambda data, name, size: Link(raw_cid(data), name, size),
    st.binary(max_size=4),
    st.text(max_size=8),
    st.integers(0, 2**60),
)


@given(st.lists(links, max_size=8), st.binary(max_size=64))
def test_nodes_round_trip(entries: list[Link], data: bytes) -> None:
    node = decode_node(encode_node(entries, data))
    assert (list(node.links), node.data) == (entries, data)


@given(st.integers(0, 2**63 - 1))
def test_varints_round_trip_and_have_one_spelling(value: int) -> None:
    data = varint(value)
    assert read_varint(data, 0) == (value, len(data))
    with pytest.raises(RemoteProtocolError):
        read_varint(data[:-1] + bytes([data[-1] | 0x80, 0]), 0)


def test_limits() -> None:
    with pytest.raises(RemoteProtocolError, match="at most"):
        decode_node(bytes(BLOCK_BYTES_MAX + 1))
    many = encode_node([Link(LEAF)] * LINKS_MAX, b"")
    assert len(decode_node(many).links) == LINKS_MAX
    one = encode_node([Link(LEAF)], b"")[: -len(b"\x0a\x00")]
    with pytest.raises(RemoteProtocolError, match="more than 8192 links"):
        decode_node(one + many)
    sizes = UnixFs(UNIXFS_FILE, b"", LINKS_MAX + 1, (1,) * (LINKS_MAX + 1), has_size=True)
    with pytest.raises(RemoteProtocolError, match="block sizes"):
        decode_unixfs(encode_unixfs(sizes))


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a\\b", "a\0b", "a\nb"])
def test_names_that_leave_their_directory_are_refused(name: str) -> None:
    with pytest.raises(RemoteProtocolError):
        interpret(encode_directory([Link(LEAF, name, 4)]))


def test_shapes_that_models_do_not_have() -> None:
    with pytest.raises(RemoteProtocolError, match="symbolic"):
        interpret(encode_node([], encode_unixfs(UnixFs(4, b"/etc/passwd"))))
    with pytest.raises(RemoteProtocolError, match="add up"):
        interpret(encode_node([Link(LEAF)], encode_unixfs(UnixFs(UNIXFS_FILE, b"", 5, (4,), has_size=True))))
    with pytest.raises(RemoteProtocolError, match="twice"):
        interpret(encode_directory([Link(LEAF, "a", 4), Link(raw_cid(b"b"), "a", 1)]))
    assert interpret(encode_directory([Link(LEAF, "a", 4)])) == DirectoryNode((Link(LEAF, "a", 4),))


def _layout_of(root: Cid, blocks: list[bytes]) -> object:
    by_cid = {dag_pb_cid(block): block for block in blocks}
    walk = DagWalk(root)
    while walk.wanted:
        for cid in walk.wanted:
            walk.add(cid, by_cid[cid])
    return walk.layout()


def test_a_dag_that_repeats_itself_does_not_grow_without_end() -> None:
    """Four small blocks that would unfold to 8192 ** 3 leaves."""
    size, cid, blocks = 1, raw_cid(b"x"), []
    for _ in range(3):
        block = encode_node(
            [Link(cid)] * 8000, encode_unixfs(UnixFs(UNIXFS_FILE, b"", size * 8000, (size,) * 8000, has_size=True))
        )
        size, cid = size * 8000, dag_pb_cid(block)
        blocks.append(block)
    with pytest.raises(RemoteProtocolError, match="leaves"):
        _layout_of(cid, blocks)


def test_directories_that_hold_nothing_do_not_unfold_without_end() -> None:
    """Five small blocks that would be walked through 1000 ** 4 times without a single file to count."""
    blocks = [encode_directory([])]
    for _ in range(4):
        below = dag_pb_cid(blocks[-1])
        blocks.append(encode_directory([Link(below, f"{number}", 1) for number in range(1000)]))
    with pytest.raises(RemoteProtocolError, match="directories"):
        _layout_of(dag_pb_cid(blocks[-1]), blocks)


def test_what_is_wanted_is_bounded() -> None:
    """Directories that name more blocks than any model has are refused while they are read."""
    blocks = [
        encode_directory([Link(raw_cid(b"%d %d" % (number, each)), f"{each}", 1) for each in range(4000)])
        for number in range(8)
    ]
    top = encode_directory([Link(dag_pb_cid(block), f"{number}", 1) for number, block in enumerate(blocks)])
    with pytest.raises(RemoteProtocolError, match="blocks") as caught:
        _layout_of(dag_pb_cid(top), [top, *blocks])
    assert caught.value.code == "TOO_LARGE"


def test_depth_and_disagreeing_sizes() -> None:
    block = encode_file([(LEAF, 4, 4), (raw_cid(b"b"), 1, 1)])
    blocks = [block]
    for _ in range(4):
        block = encode_file([(dag_pb_cid(block), 5, 5)])
        blocks.append(block)
    with pytest.raises(RemoteProtocolError, match="deeper"):
        _layout_of(dag_pb_cid(block), blocks)
    lying = encode_file([(dag_pb_cid(blocks[0]), 6, 6)])
    with pytest.raises(RemoteProtocolError, match="disagree"):
        _layout_of(dag_pb_cid(lying), [lying, blocks[0]])
    huge = encode_file([(LEAF, BLOCK_BYTES_MAX + 1, 1)])
    with pytest.raises(RemoteProtocolError, match="cannot have"):
        _layout_of(dag_pb_cid(huge), [huge])


def test_the_codec_decides_and_not_the_looks() -> None:
    """A raw leaf that looks like a UnixFS node is its own bytes."""
    walk = DagWalk(raw_cid(GOOD))
    walk.add(raw_cid(GOOD), GOOD)
    layout = walk.layout()
    assert layout.size_bytes == len(GOOD)
    assert not layout.nodes


def test_wrong_bytes_are_the_senders_fault() -> None:
    walk = DagWalk(dag_pb_cid(GOOD))
    with pytest.raises(VerificationFailed):
        walk.add(dag_pb_cid(GOOD), GOOD + b"\0")
    walk.add(LEAF, b"not wanted")
    assert walk.wanted == (dag_pb_cid(GOOD),)


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.just(LEAF),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(json_like)
def test_dag_cbor_round_trips(value: object) -> None:
    assert dagcbor.decode(dagcbor.encode(value), bytes_max=10_000) == value


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_canonical_dag_cbor_or_a_typed_error(data: bytes) -> None:
    with contextlib.suppress(OctonodeError):
        assert dagcbor.encode(dagcbor.decode(data, bytes_max=1000)) == data


def test_dag_cbor_limits() -> None:
    with pytest.raises(RemoteProtocolError, match="deeper"):
        dagcbor.decode(b"\x81" * 100_000 + b"\x00", bytes_max=1 << 20)
    with pytest.raises(RemoteProtocolError, match="at most"):
        dagcbor.decode(bytes(11), bytes_max=10)
