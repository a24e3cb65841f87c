"""Wrapped leaves: one spelling, made again from the file's bytes; and files of them under any profile."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.errors import OctonodeError, RemoteProtocolError, VerificationFailed
from octonode.ipfs.cid import Cid, dag_pb_cid, raw_cid
from octonode.ipfs.dagpb import (
    UNIXFS_FILE,
    UNIXFS_RAW,
    LeafNode,
    UnixFs,
    encode_file,
    encode_node,
    encode_unixfs,
    interpret,
)
from octonode.ipfs.layout import Leaf
from octonode.ipfs.leaves import RAW_LEAVES, LeafForm, form_of, wrapping
from octonode.ipfs.unixfs import PROFILES, Profile, import_directory
from tests.ipfs.dags import blocks_under, layout_of, read, wrapped_leaf

FILE_LEAVES = LeafForm("unixfs-file", 0)
forms = st.sampled_from([RAW_LEAVES, *(LeafForm(kind, v) for kind in ("unixfs-file", "unixfs-raw") for v in (0, 1))])


# -- one leaf --------------------------------------------------------------------------------------------


@given(st.binary(max_size=300), forms)
def test_a_leaf_is_made_again_to_the_byte(data: bytes, form: LeafForm) -> None:
    block = form.block(data)
    assert (len(block), hashlib.sha256(block).digest()) == (form.block_bytes(len(data)), form.digest(data))
    assert form.unwrap(memoryview(block), len(data)) == data
    assert form.cid(form.digest(data)).matches(block)
    if form.wrapped:
        kind = UNIXFS_FILE if form.kind == "unixfs-file" else UNIXFS_RAW
        assert block == wrapped_leaf(data, kind)
        assert interpret(block) == LeafNode(kind, len(data))
        assert form_of(form.cid(form.digest(data)), LeafNode(kind, len(data))) == form


def test_the_empty_file_of_every_ipfs_node() -> None:
    assert FILE_LEAVES.block(b"").hex() == "0a0408021800"
    assert FILE_LEAVES.cid(FILE_LEAVES.digest(b"")).text == "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH"
    assert FILE_LEAVES.cid(FILE_LEAVES.digest(b"hello world\n")).text == (
        "QmT78zSuBmuS4z925WZfrqQ1qHaJ56DQaTfyMUF7F8ff5o"
    )


def test_what_stands_around_a_leaf_is_kept_for_few_lengths() -> None:
    assert wrapping.cache_info().maxsize is not None
    assert wrapping.cache_info().maxsize <= 1024


@given(st.binary(min_size=1, max_size=60), forms, st.integers(0, 400), st.integers(1, 255))
def test_a_leaf_in_another_spelling_is_never_taken(data: bytes, form: LeafForm, at: int, change: int) -> None:
    """Whatever byte of the wrapping differs, nothing comes out of it; a byte of the file is the file's own affair."""
    block = bytearray(form.block(data))
    at %= len(block)
    block[at] ^= change
    front = len(form.around(len(data))[0])
    if front <= at < front + len(data):
        assert form.unwrap(block, len(data)) != data
    else:
        with pytest.raises(OctonodeError):
            form.unwrap(block, len(data))


@given(st.binary(max_size=200), st.integers(0, 200), forms)
def test_any_bytes_are_a_leaf_or_a_typed_error(block: bytes, size: int, form: LeafForm) -> None:
    try:
        data = form.unwrap(block, size)
    except (RemoteProtocolError, VerificationFailed):
        return
    assert form.block(data) == block


SPELLINGS = {
    "a mode": encode_node([], encode_unixfs(UnixFs(UNIXFS_FILE, b"data", 4, (), has_size=True)) + b"\x38\xa4\x03"),
    "no size": encode_node([], encode_unixfs(UnixFs(UNIXFS_FILE, b"data"))),
    "another size": encode_node([], encode_unixfs(UnixFs(UNIXFS_FILE, b"data", 5, (), has_size=True))),
    "block sizes": encode_node([], encode_unixfs(UnixFs(UNIXFS_FILE, b"data", 4, (4,), has_size=True))),
    "size first": encode_node([], b"\x08\x02\x18\x04\x12\x04data"),
    "data said to be empty": encode_node([], b"\x08\x02\x12\x00\x18\x00"),
    "data twice": encode_node([], b"\x08\x02\x12\x01x\x12\x04data\x18\x04"),
}


@pytest.mark.parametrize("block", SPELLINGS.values(), ids=SPELLINGS)
def test_leaves_that_could_not_be_made_again_are_refused(block: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="Kubo and Helia") as caught:
        interpret(block)
    assert caught.value.code == "UNSUPPORTED"
    with pytest.raises(RemoteProtocolError):
        layout_of(dag_pb_cid(block), {dag_pb_cid(block): block})


def test_a_leaf_says_what_is_wrong_with_it() -> None:
    leaf = Leaf(0, 0, 0, 4, FILE_LEAVES.digest(b"data"), FILE_LEAVES)
    with pytest.raises(VerificationFailed, match=f"{leaf.cid} has 3 bytes where its root says 4"):
        leaf.unwrap(wrapped_leaf(b"dat"))
    with pytest.raises(RemoteProtocolError, match="another kind"):
        leaf.unwrap(wrapped_leaf(b"data", UNIXFS_RAW))
    with pytest.raises(RemoteProtocolError, match="not balanced"):
        leaf.unwrap(encode_file([(leaf.cid, 4, 12)]))
    assert leaf.holds(b"data")
    assert not leaf.holds(b"date")
    assert not leaf.holds(b"dat")


# -- trees of them --------------------------------------------------------------------------------------------

widths = st.builds(
    lambda leaf_bytes, width, shape: Profile("test", leaf_bytes, width, *shape),
    st.integers(1, 9),
    st.integers(2, 5),
    st.sampled_from([(0, False), (1, False), (1, True), (0, True)]),
)


@settings(max_examples=200)
@given(st.binary(max_size=250), widths)
def test_a_file_comes_out_of_its_blocks_under_any_profile(data: bytes, profile: Profile) -> None:
    result, blocks = blocks_under(data, profile)
    assert result.total_size_bytes == sum(len(blocks[profile.leaf_form.cid(digest)]) for digest in result.leaves) + sum(
        len(block) for _, block in result.nodes
    )
    if len(result.leaves) > profile.links_per_node**4:
        with pytest.raises(RemoteProtocolError, match="deeper"):
            layout_of(result.root, blocks)
        return
    asked: list[Cid] = []
    layout = layout_of(result.root, blocks, asked)
    assert (layout.files[0].form, layout.size_bytes) == (profile.leaf_form, len(data))
    assert [leaf.digest for leaf in layout.leaves] == list(result.leaves)
    assert set(layout.nodes.items()) == set(result.nodes)
    assert read(layout, blocks) == [data]
    assert len(set(asked) - set(layout.nodes)) <= 2  # of the leaves, the first and the last at most
    assert len(asked) == len(set(asked))


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6), widths, st.randoms(use_true_random=False))
def test_a_directory_of_files_whose_blocks_play_several_parts(
    contents: list[bytes], profile: Profile, rng: random.Random
) -> None:
    """Every piece of the first file is a file of its own too, so leaves of one are roots of others."""
    pieces = [contents[0][n : n + profile.leaf_bytes] for n in range(0, len(contents[0]), profile.leaf_bytes)]
    blocks: dict[Cid, bytes] = {}
    entries, wanted = {}, {}
    for number, data in enumerate(contents + pieces):
        result, more = blocks_under(data, profile)
        if len(result.leaves) > profile.links_per_node**4:
            return
        blocks |= more
        path = f"d{rng.randrange(3)}/{number}"
        entries[path], wanted[path] = (result.root, result.total_size_bytes), data
    directory = import_directory(entries, profile)
    blocks |= dict(directory.nodes)
    layout = layout_of(directory.root, blocks)
    assert dict(zip([file.path for file in layout.files], read(layout, blocks), strict=True)) == wanted


def test_profiles_may_be_mixed_in_a_directory_but_not_in_a_file() -> None:
    blocks: dict[Cid, bytes] = {}
    entries = {}
    for name, profile in PROFILES.items():
        result, more = blocks_under(bytes(600_000), profile)
        blocks |= more
        entries[name] = (result.root, result.total_size_bytes)
    directory = import_directory(entries)
    layout = layout_of(directory.root, blocks | dict(directory.nodes))
    assert {file.form.kind for file in layout.files} == {"raw", "unixfs-file"}
    raw, wrapped = raw_cid(b"raw"), dag_pb_cid(wrapped_leaf(b"wrapped"))
    for order in ((raw, wrapped), (wrapped, raw), (wrapped, raw, wrapped)):
        sizes = {raw: (3, 3), wrapped: (7, 15)}
        block = encode_file([(cid, *sizes[cid]) for cid in order])
        with pytest.raises(RemoteProtocolError) as caught:
            layout_of(dag_pb_cid(block), {dag_pb_cid(block): block, wrapped: wrapped_leaf(b"wrapped")})
        assert caught.value.code == "UNSUPPORTED"
