"""CIDs: the published vectors, one spelling for each, and nothing but sha2-256 in three codecs."""

from __future__ import annotations

import contextlib
import hashlib

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.ipfs.cid import DAG_CBOR, DAG_PB, RAW, Cid, CidError, dag_cbor_cid, dag_pb_cid, raw_cid

EMPTY_DIRECTORY = "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"
EMPTY_DIRECTORY_V0 = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"
HELLO = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"  # raw CID of b"hello world"


def test_known_texts() -> None:
    assert raw_cid(b"hello world").text == HELLO
    assert dag_pb_cid(bytes.fromhex("0a020801")).text == EMPTY_DIRECTORY


def test_version_0_names_the_same_block() -> None:
    old = Cid.parse(EMPTY_DIRECTORY_V0)
    assert (old.version, old.codec, old.text) == (0, DAG_PB, EMPTY_DIRECTORY_V0)
    assert old.v1 == Cid.parse(EMPTY_DIRECTORY)
    assert old != old.v1
    assert Cid.from_bytes(old.raw) == old


@given(st.binary(max_size=64), st.sampled_from([raw_cid, dag_pb_cid, dag_cbor_cid]))
def test_text_and_bytes_round_trip(data: bytes, make: object) -> None:
    cid = make(data)  # type: ignore[operator]
    assert Cid.parse(cid.text) == cid == Cid.from_bytes(cid.raw)
    assert cid.matches(data)
    assert not cid.matches(data + b"x")


@given(st.text(max_size=80) | st.text("bafykreiQm234567", max_size=66))
def test_any_text_parses_to_itself_or_is_a_cid_error(text: str) -> None:
    with contextlib.suppress(CidError):
        assert Cid.parse(text).text == text


@given(st.binary(max_size=48))
def test_any_bytes_parse_to_themselves_or_are_a_cid_error(data: bytes) -> None:
    with contextlib.suppress(CidError):
        assert Cid.from_bytes(data).raw == data


@pytest.mark.parametrize(
    "raw",
    [
        b"\x01\x55\x12\x14" + bytes(20),  # a truncated hash
        b"\x01\x55\x00\x05hello",  # identity
        b"\x01\x55\x1e\x20" + bytes(32),  # blake3
        b"\x01\x72\x12\x20" + bytes(32),  # libp2p-key
        b"\x02\x55\x12\x20" + bytes(32),
        b"\x01\x55\x12\x20" + bytes(33),
        b"\x81\x00\x55\x12\x20" + bytes(31),
        b"",
    ],
)
def test_other_hashes_codecs_and_lengths_are_refused(raw: bytes) -> None:
    with pytest.raises(CidError):
        Cid.from_bytes(raw)


def test_second_spellings_are_refused() -> None:
    swapped = HELLO[:-1] + chr(ord(HELLO[-1]) + 1)  # sets spare bits of the last character
    for text in (
        HELLO.upper(),
        "B" + HELLO[1:],
        HELLO + "=",
        "z" + base58.b58encode(Cid.parse(HELLO).raw).decode(),
        swapped,
    ):
        with pytest.raises(CidError):
            Cid.parse(text)


def test_codecs() -> None:
    digest = hashlib.sha256(b"x").digest()
    assert [Cid(codec, digest).text[:7] for codec in (RAW, DAG_PB, DAG_CBOR)] == ["bafkrei", "bafybei", "bafyrei"]
