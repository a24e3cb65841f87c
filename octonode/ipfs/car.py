"""CARv1 archives: a header that names roots, then sections of one block each.

Source: https://ipld.io/specs/transport/car/carv1/. Blocks are not hashed here: who asked knows which it wants.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

from octonode.errors import RemoteProtocolError
from octonode.ipfs import dagcbor
from octonode.ipfs.cid import CIDV0_BYTES, CIDV1_BYTES, Cid, CidError
from octonode.ipfs.dagpb import BLOCK_BYTES_MAX, read_varint, varint

HEADER_BYTES_MAX: Final = 4096
SECTION_BYTES_MAX: Final = BLOCK_BYTES_MAX + CIDV1_BYTES
_VARINT_BYTES_MAX: Final = 9


def header(roots: Sequence[Cid]) -> bytes:
    body = dagcbor.encode({"roots": list(roots), "version": 1})
    return varint(len(body)) + body


def section_prefix(cid: Cid, size_bytes: int) -> bytes:
    """What stands before the bytes of a block: the length of the section and the CID."""
    raw = cid.raw
    return varint(len(raw) + size_bytes) + raw


def encode(roots: Sequence[Cid], blocks: Iterable[tuple[Cid, bytes]]) -> Iterator[bytes]:
    """A whole archive, piece by piece."""
    yield header(roots)
    for cid, block in blocks:
        yield section_prefix(cid, len(block))
        yield block


def decode_header(body: bytes) -> tuple[Cid, ...]:
    """The roots. Raises RemoteProtocolError."""
    value = dagcbor.decode(body, bytes_max=HEADER_BYTES_MAX, depth_max=4)
    if not isinstance(value, dict) or value.get("version") != 1:
        raise RemoteProtocolError("not a CAR of version 1")
    roots = value.get("roots")
    if not isinstance(roots, list) or not all(isinstance(root, Cid) for root in roots):
        raise RemoteProtocolError("a CAR header without roots")
    return tuple(roots)


def _cid_of_section(body: bytes | bytearray | memoryview) -> tuple[Cid, int]:
    """(cid, its length) at the front of a section. Raises RemoteProtocolError."""
    length = CIDV0_BYTES if bytes(body[:2]) == b"\x12\x20" else CIDV1_BYTES
    try:
        return Cid.from_bytes(bytes(body[:length])), length
    except CidError as error:
        raise RemoteProtocolError(f"a CAR section: {error.message}") from None


@dataclass(frozen=True, slots=True)
class Section:
    """Where a block lies in the buffer: `buffer[start:end]`."""

    cid: Cid
    start: int
    end: int


class CarCursor:
    """Finds the sections of an archive in a buffer that is being filled from the front, each as soon as it is whole."""

    def __init__(self, buffer: bytearray | memoryview) -> None:
        self._buffer = memoryview(buffer)
        self._offset = 0
        self._in_header = True
        self.roots: tuple[Cid, ...] = ()

    def advance(self, filled: int) -> list[Section]:
        """The sections that became whole now that `filled` bytes stand in the buffer. Raises RemoteProtocolError."""
        found: list[Section] = []
        while (bounds := self._next_bounds(filled)) is not None:
            start, end = bounds
            if end > filled:
                break
            if self._in_header:
                self.roots = decode_header(bytes(self._buffer[start:end]))
                self._in_header = False
            else:
                cid, length = _cid_of_section(self._buffer[start : min(start + CIDV1_BYTES, end)])
                found.append(Section(cid, start + length, end))
            self._offset = end
        return found

    def _next_bounds(self, filled: int) -> tuple[int, int] | None:
        window = self._buffer[self._offset : min(filled, self._offset + _VARINT_BYTES_MAX)]
        if len(window) < _VARINT_BYTES_MAX and not any(byte < 0x80 for byte in window):
            return None
        length, used = read_varint(window, 0)
        if length == 0 or length > (HEADER_BYTES_MAX if self._in_header else SECTION_BYTES_MAX):
            raise RemoteProtocolError(f"a CAR section of {length} bytes", code="TOO_LARGE")
        return self._offset + used, self._offset + used + length

    def finish(self, filled: int) -> None:
        """Raises RemoteProtocolError unless the archive ends exactly at `filled`."""
        if self._in_header or self._offset != filled:
            raise RemoteProtocolError("the CAR ends in the middle of a section")


def read(source: BinaryIO) -> Iterator[tuple[Cid, bytes]]:
    """The blocks of an archive, one in memory at a time, unverified. Raises RemoteProtocolError."""
    body = _read_section(source, HEADER_BYTES_MAX)
    if body is None:
        raise RemoteProtocolError("an empty file is not a CAR")
    decode_header(body)
    while (body := _read_section(source, SECTION_BYTES_MAX)) is not None:
        cid, length = _cid_of_section(body)
        yield cid, body[length:]


def _read_section(source: BinaryIO, bytes_max: int) -> bytes | None:
    prefix = bytearray()
    while not prefix or prefix[-1] & 0x80:
        byte = source.read(1)
        if not byte and not prefix:
            return None
        prefix += byte
        if not byte or len(prefix) > _VARINT_BYTES_MAX:
            raise RemoteProtocolError("the CAR ends in the middle of a section, or is none")
    length, _ = read_varint(prefix, 0)
    if length == 0 or length > bytes_max:
        raise RemoteProtocolError(f"a CAR section of {length} bytes", code="TOO_LARGE")
    body = source.read(length)
    if len(body) != length:
        raise RemoteProtocolError("the CAR ends in the middle of a section")
    return body
