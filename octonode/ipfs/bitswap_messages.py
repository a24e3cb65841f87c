"""Bitswap 1.2 messages: protobuf by hand, length framing, and an incremental reader. Sans-IO.

    reader = MessageReader()
    for body in reader.feed(data):      # whole messages; raises RemoteProtocolError
        message = decode(body)          # the same
    for piece in frame(message): ...    # what goes on the wire, the bytes of blocks uncopied

Source: https://specs.ipfs.tech/bitswap-protocol/; page protocols/bitswap.md. CIDs stay bytes here: a stranger's list
may name hashes that this program does not read, and the rest of its message holds all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from octonode.errors import RemoteProtocolError
from octonode.ipfs.cid import Cid, CidError
from octonode.ipfs.dagpb import BLOCK_BYTES_MAX, read_varint, varint

MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Received; the bound of Kubo and Helia too."""
ENTRIES_MAX: Final = 8192
"""Of a message's wantlist that are read; those behind them are passed over, as if they had not been sent."""
PARTS_MAX: Final = 8192
"""Fields of a message at its top: blocks, presences, unknown ones. More is an error."""
PART_FIELDS_MAX: Final = 16
"""Fields of one entry, block or presence; there are five at most."""
CID_BYTES_MAX: Final = 256
"""A longer one is passed over."""

_LENGTH_BYTES_MAX: Final = 4
"""Of the length before a message: 28 bits, more than any message that is read."""
_WIRE_VARINT, _WIRE_64, _WIRE_BYTES, _WIRE_32 = 0, 1, 2, 5


class WantEntry(NamedTuple):
    """One line of a wantlist."""

    cid: bytes
    priority: int = 1
    cancel: bool = False
    wants_have: bool = False
    """Asks whether the block is there, not for the block."""
    send_dont_have: bool = False


class Block(NamedTuple):
    """`prefix` is the CID without its digest: version, codec, hash function, digest length."""

    prefix: bytes
    data: bytes | memoryview


class Presence(NamedTuple):
    cid: bytes
    have: bool


@dataclass(frozen=True, slots=True)
class Message:
    entries: tuple[WantEntry, ...] = ()
    full: bool = False
    """The entries are all that is wanted: they replace what was said before."""
    blocks: tuple[Block, ...] = ()
    presences: tuple[Presence, ...] = ()
    pending_bytes: int = 0
    passed_over: int = 0
    """Parts that were not read: behind ENTRIES_MAX it counts once, else entries, blocks and presences out of bounds."""


def read_cid(raw: bytes) -> Cid | None:
    """The CID, or None for one that is not read here (an identity CID, another hash, another codec)."""
    try:
        return Cid.from_bytes(raw)
    except CidError:
        return None


def prefix_of(cid: Cid) -> bytes:
    return bytes((cid.version, cid.codec, 0x12, 0x20))


# Reading.


def _varint(data: bytes | memoryview, offset: int) -> tuple[int, int]:
    """(value of 64 bits, offset behind it). As protobuf reads it: longer than need be is fine, up to ten bytes."""
    byte = data[offset]
    if byte < 0x80:
        return byte, offset + 1
    value, shift = byte & 0x7F, 7
    while True:
        offset += 1
        byte = data[offset]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, offset + 1
        shift += 7
        if shift > 63:
            raise RemoteProtocolError("a varint has more than ten bytes")


def _fields(data: bytes | memoryview, fields_max: int) -> Iterator[tuple[int, int | bytes | memoryview]]:
    """(field number, a number or the bytes) for wire types 0 and 2; fields of fixed length are passed over.

    Raises RemoteProtocolError, TOO_LARGE behind `fields_max`.
    """
    offset, end, count = 0, len(data), 0
    try:
        while offset < end:
            count += 1
            if count > fields_max:
                raise RemoteProtocolError(f"a bitswap message has more than {fields_max} parts", code="TOO_LARGE")
            key, offset = _varint(data, offset)
            if not 8 <= key <= 0xFFFFFFFF:
                raise RemoteProtocolError("a bitswap message has a field of a number that there is not")
            wire = key & 7
            if wire == _WIRE_VARINT:
                value, offset = _varint(data, offset)
                yield key >> 3, value
            elif wire == _WIRE_BYTES:
                size, offset = _varint(data, offset)
                if size > end - offset:
                    raise RemoteProtocolError("a bitswap message is cut short")
                yield key >> 3, data[offset : offset + size]
                offset += size
            elif wire in (_WIRE_64, _WIRE_32):
                offset += 8 if wire == _WIRE_64 else 4
            else:
                raise RemoteProtocolError(f"a bitswap message has wire type {wire}")
    except IndexError:
        raise RemoteProtocolError("a bitswap message is cut short") from None
    if offset != end:
        raise RemoteProtocolError("a bitswap message is cut short")


def decode(body: bytes | memoryview) -> Message:
    """What one message says. Blocks are views into `body`. Raises RemoteProtocolError."""
    if len(body) > MESSAGE_BYTES_MAX:
        raise RemoteProtocolError(f"a bitswap message of {len(body)} bytes", code="TOO_LARGE")
    view = memoryview(body)
    entries: list[WantEntry] = []
    blocks: list[Block] = []
    presences: list[Presence] = []
    full, pending, passed_over = False, 0, 0
    for number, value in _fields(view, PARTS_MAX):
        if isinstance(value, int):
            pending = _int32(value) if number == 5 else pending
        elif number == 1:
            replaces, more = _wantlist(bytes(value), entries)
            full, passed_over = full or replaces, passed_over + more
        elif number == 3:
            block = _block(value)
            if len(block.data) > BLOCK_BYTES_MAX or len(block.prefix) > CID_BYTES_MAX:
                passed_over += 1
            else:
                blocks.append(block)
        elif number == 4:
            presence = _presence(bytes(value)) if len(value) <= 2 * CID_BYTES_MAX else None
            if presence is None:
                passed_over += 1
            else:
                presences.append(presence)
    return Message(tuple(entries), full, tuple(blocks), tuple(presences), pending, passed_over)


def _wantlist(data: bytes, entries: list[WantEntry]) -> tuple[bool, int]:
    """Appends to `entries`; (full, how many were passed over)."""
    full, passed_over = False, 0
    for number, value in _fields(data, ENTRIES_MAX + PART_FIELDS_MAX):
        if number == 2 and isinstance(value, int):
            full = bool(value)
        elif number == 1 and isinstance(value, bytes):
            if len(entries) >= ENTRIES_MAX:
                return full, passed_over + 1
            entry = _entry(value) if len(value) <= 2 * CID_BYTES_MAX else None
            if entry is None:
                passed_over += 1
            else:
                entries.append(entry)
    return full, passed_over


def _entry(data: bytes) -> WantEntry | None:
    """None for a CID that cannot be one."""
    cid, priority, cancel, kind, dont_have = b"", 1, 0, 0, 0
    for number, value in _fields(data, PART_FIELDS_MAX):
        if isinstance(value, int):
            if number == 2:
                priority = _int32(value)
            elif number == 3:
                cancel = value
            elif number == 4:
                kind = value
            elif number == 5:
                dont_have = value
        elif number == 1:
            cid = bytes(value)
    if not 0 < len(cid) <= CID_BYTES_MAX:
        return None
    return WantEntry(cid, priority, bool(cancel), kind == 1, bool(dont_have))


def _block(data: bytes | memoryview) -> Block:
    prefix, content = b"", memoryview(b"")
    for number, value in _fields(data, PART_FIELDS_MAX):
        if not isinstance(value, int):
            if number == 1:
                prefix = bytes(value[: CID_BYTES_MAX + 1])
            elif number == 2:
                content = memoryview(value)
    return Block(prefix, content)


def _presence(data: bytes) -> Presence | None:
    cid, kind = b"", 0
    for number, value in _fields(data, PART_FIELDS_MAX):
        if number == 1 and isinstance(value, bytes):
            cid = value
        elif number == 2 and isinstance(value, int):
            kind = value
    return Presence(cid, kind == 0) if 0 < len(cid) <= CID_BYTES_MAX else None


def _int32(value: int) -> int:
    low = value & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low


class MessageReader:
    """Takes bytes as they come and gives the bodies of whole messages. A body is copied at most once."""

    def __init__(self, keep_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self.keep_bytes_max = keep_bytes_max
        """Longer messages are read past, without being kept; looked at where a message begins."""
        self.read_past = 0
        """How many were."""
        self.pending_bytes = 0
        """How long the message is that has begun; 0 between messages."""
        self._filled = 0
        self._length = b""
        self._keeps = True
        self._body: bytearray | None = None

    @property
    def left_bytes(self) -> int:
        """What is missing of the message that has begun; 0 between messages."""
        return self.pending_bytes - self._filled

    @property
    def in_message(self) -> bool:
        """A stream that ends here was cut."""
        return bool(self.pending_bytes or self._length)

    def feed(self, data: bytes) -> list[memoryview]:
        """The messages that became whole. Raises RemoteProtocolError, after which the reader is of no more use."""
        found: list[memoryview] = []
        view, at, end = memoryview(data), 0, len(data)
        while at < end:
            if not self.pending_bytes:
                at = self._read_length(data, at)
                continue
            size = min(self.left_bytes, end - at)
            if self._keeps and size == self.pending_bytes:
                found.append(view[at : at + size])  # whole within what came
            elif self._keeps:
                if self._body is None:
                    self._body = bytearray(self.pending_bytes)
                self._body[self._filled : self._filled + size] = view[at : at + size]
            self._filled += size
            at += size
            if not self.left_bytes:
                if self._body is not None:
                    found.append(memoryview(self._body))
                self.pending_bytes = self._filled = 0
                self._body = None
        return found

    def _read_length(self, data: bytes, at: int) -> int:
        """Takes what there is of the length; the offset behind it."""
        while at < len(data):
            byte = data[at]
            at += 1
            self._length += bytes((byte,))
            if byte < 0x80:
                length, _ = read_varint(self._length, 0)
                self._length = b""
                if length > MESSAGE_BYTES_MAX:
                    raise RemoteProtocolError(f"a bitswap message of {length} bytes", code="TOO_LARGE")
                self.pending_bytes = length
                self._keeps = length <= self.keep_bytes_max
                self.read_past += not self._keeps
                return at
            if len(self._length) >= _LENGTH_BYTES_MAX:
                raise RemoteProtocolError("a bitswap message that is longer than any may be", code="TOO_LARGE")
        return at


# Writing.


def _number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return varint(field << 3 | _WIRE_BYTES) + varint(len(value)) + value


def _encode_entry(entry: WantEntry) -> bytes:
    body = _bytes(1, entry.cid) + _number(2, entry.priority)
    if entry.cancel:
        body += _number(3, 1)
    if entry.wants_have:
        body += _number(4, 1)
    if entry.send_dont_have:
        body += _number(5, 1)
    return _bytes(1, body)


def frame(message: Message) -> list[bytes | memoryview]:
    """A message with its length before it, in pieces; the blocks are pieces of their own, as they were given.

    Joined, it is what protobuf's own encoder makes: fields in order, none that has its default value
    (but for an empty block).
    """
    pieces: list[bytes | memoryview] = [_encode_wantlist(message)]
    for block in message.blocks:
        inner = _bytes(1, block.prefix) + varint(2 << 3 | _WIRE_BYTES) + varint(len(block.data))
        pieces[-1] = bytes(pieces[-1]) + varint(3 << 3 | _WIRE_BYTES) + varint(len(inner) + len(block.data)) + inner
        pieces += (block.data, b"")
    tail = b"".join(_encode_presence(presence) for presence in message.presences)
    pieces[-1] = bytes(pieces[-1]) + tail + (_number(5, message.pending_bytes) if message.pending_bytes else b"")
    size = sum(map(len, pieces))
    assert size <= MESSAGE_BYTES_MAX
    pieces[0] = varint(size) + bytes(pieces[0])
    return pieces if pieces[-1] else pieces[:-1]


def _encode_wantlist(message: Message) -> bytes:
    if not message.entries and not message.full:
        return b""
    return _bytes(1, b"".join(map(_encode_entry, message.entries)) + (_number(2, 1) if message.full else b""))


def _encode_presence(presence: Presence) -> bytes:
    return _bytes(4, _bytes(1, presence.cid) + (b"" if presence.have else _number(2, 1)))
