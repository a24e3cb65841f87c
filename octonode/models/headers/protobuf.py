"""Walking protobuf in a file under limits, without a schema compiler. Source: https://protobuf.dev/programming-guides/encoding/.

Nothing is read that nobody asks for: a field of bytes is its range in the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
WINDOW_BYTES: Final = 64 * 1024
_VARINT_BYTES_MAX: Final = 10


class ProtobufRefused(ValueError):
    """The text says why."""


@dataclass(frozen=True, slots=True)
class Field:
    number: int
    wire: int
    value: int
    """Of a varint; 0 else."""
    start: int
    """Where its bytes begin in the file (BYTES, FIXED)."""
    end: int


class Walker:
    """Fields of messages in one file. `fields_max` bounds the whole walk, however often it is asked to go down."""

    def __init__(self, file: BinaryIO, size: int, fields_max: int) -> None:
        self.size = size
        self._file = file
        self._left = fields_max
        self._window = b""
        self._window_start = 0

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """Each field of the message from `start` to `end`, which must end there. Raises ProtobufRefused."""
        position = start
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise ProtobufRefused("it has too many fields")
            key, position = self._varint(position, end)
            number, wire = key >> 3, key & 7
            if not number:
                raise ProtobufRefused("it has a field of number 0")
            value, first = 0, position
            if wire == VARINT:
                value, position = self._varint(position, end)
            elif wire == BYTES:
                length, first = self._varint(position, end)
                position = first + length
            elif wire in (FIXED64, FIXED32):
                position += 8 if wire == FIXED64 else 4
            else:
                raise ProtobufRefused(f"it has a field of wire type {wire}")
            if position > end:
                raise ProtobufRefused("a field is longer than its message")
            yield Field(number, wire, value, first, position)

    def bytes_of(self, field: Field, bytes_max: int) -> bytes:
        if field.wire != BYTES or field.end - field.start > bytes_max:
            raise ProtobufRefused(f"a text has more than {bytes_max} bytes")
        return self._at(field.start, field.end - field.start)

    def text_of(self, field: Field, bytes_max: int = 4096) -> str:
        return self.bytes_of(field, bytes_max).decode("utf-8", errors="replace")

    def packed(self, field: Field, items_max: int) -> list[int]:
        """A repeated varint, packed or single."""
        if field.wire == VARINT:
            return [field.value]
        found: list[int] = []
        position = field.start
        while position < field.end and field.wire == BYTES:
            if len(found) >= items_max:
                raise ProtobufRefused(f"a list has more than {items_max} items")
            value, position = self._varint(position, field.end)
            found.append(value)
        return found

    def _at(self, position: int, length: int) -> bytes:
        offset = position - self._window_start
        if offset < 0 or offset + length > len(self._window):
            self._file.seek(position)
            self._window = self._file.read(max(WINDOW_BYTES, length))
            self._window_start, offset = position, 0
        data = self._window[offset : offset + length]
        if len(data) != length:
            raise ProtobufRefused("it ends early")
        return data

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        """(value, position behind it)."""
        data = self._at(position, min(_VARINT_BYTES_MAX, end - position, self.size - position))
        value = 0
        for index, byte in enumerate(data):
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value & (2**64 - 1), position + index + 1
        raise ProtobufRefused("a number does not end")
