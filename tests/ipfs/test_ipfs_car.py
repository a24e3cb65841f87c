"""CARv1: written and read back whole, in pieces, and cut."""

from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.errors import RemoteProtocolError
from octonode.ipfs import car
from octonode.ipfs.cid import Cid, raw_cid

BLOCKS = [b"", b"one", b"x" * 300, b"y" * 20_000]
ARCHIVE = b"".join(car.encode([raw_cid(BLOCKS[1])], [(raw_cid(b), b) for b in BLOCKS]))


def test_the_header_is_the_published_one() -> None:
    """From the fixture carv1-basic of the specification: the form of a header with one root."""
    root = raw_cid(b"one")
    assert car.header([root]) == b"\x3a\xa2eroots\x81\xd8\x2aX\x25\x00" + root.raw + b"gversion\x01"


def test_reads_what_it_writes() -> None:
    assert list(car.read(io.BytesIO(ARCHIVE))) == [(raw_cid(block), block) for block in BLOCKS]


@given(st.lists(st.integers(1, 9000), max_size=20))
def test_any_split_finds_the_same_sections(cuts: list[int]) -> None:
    buffer = bytearray(len(ARCHIVE))
    cursor, filled = car.CarCursor(buffer), 0
    found: list[tuple[Cid, bytes]] = []
    for size in [*cuts, len(ARCHIVE)]:
        piece = ARCHIVE[filled : filled + size]
        buffer[filled : filled + len(piece)] = piece
        filled += len(piece)
        found += [(s.cid, bytes(buffer[s.start : s.end])) for s in cursor.advance(filled)]
    cursor.finish(filled)
    assert found == [(raw_cid(block), block) for block in BLOCKS]
    assert cursor.roots == (raw_cid(BLOCKS[1]),)


@given(st.integers(0, len(ARCHIVE) - 1))
def test_a_cut_archive_is_an_error_unless_cut_between_sections(size: int) -> None:
    ends = {len(b"".join(car.encode([raw_cid(BLOCKS[1])], [(raw_cid(b), b) for b in BLOCKS[:n]]))) for n in range(5)}
    cursor = car.CarCursor(bytearray(ARCHIVE[:size]))
    cursor.advance(size)
    if size in ends:
        cursor.finish(size)
        assert list(car.read(io.BytesIO(ARCHIVE[:size]))) is not None
        return
    with pytest.raises(RemoteProtocolError):
        cursor.finish(size)
    with pytest.raises(RemoteProtocolError):
        list(car.read(io.BytesIO(ARCHIVE[:size])))


@given(st.binary(max_size=200))
def test_any_bytes_raise_only_remote_errors(data: bytes) -> None:
    for behind in (data, car.header([raw_cid(b"")]) + data):
        with contextlib.suppress(RemoteProtocolError):
            list(car.read(io.BytesIO(behind)))
        try:
            cursor = car.CarCursor(bytearray(behind))
            cursor.advance(len(behind))
            cursor.finish(len(behind))
        except RemoteProtocolError:
            pass


def test_a_section_over_the_limit_is_refused_before_it_is_read() -> None:
    data = car.header([raw_cid(b"")]) + b"\xff\xff\xff\x7f"
    with pytest.raises(RemoteProtocolError) as caught:
        list(car.read(io.BytesIO(data)))
    assert caught.value.code == "TOO_LARGE"
