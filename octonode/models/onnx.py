"""Whether a file is an ONNX ModelProto, by walking its outer fields. Source: onnx.proto3 of https://onnx.ai."""

from __future__ import annotations

from typing import BinaryIO, Final

FIELDS_MAX: Final = 4096
_IR_VERSION_MAX: Final = 64
# ModelProto: field number -> wire type
_FIELDS: Final = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_GRAPH, _OPSET, _IR_VERSION = 7, 8, 1


def looks_like_onnx(file: BinaryIO, size: int) -> bool:
    """True when the outer fields are a ModelProto's, end exactly at the end of the file, and include what one needs."""
    file.seek(0)
    position = 0
    seen: set[int] = set()
    for _ in range(FIELDS_MAX):
        if position == size:
            return {_GRAPH, _OPSET, _IR_VERSION} <= seen
        key, position = _varint(file, position)
        number, wire = key >> 3, key & 7
        if _FIELDS.get(number) != wire:
            return False
        value, position = _varint(file, position)
        if value < 0 or (number == _IR_VERSION and not 1 <= value <= _IR_VERSION_MAX):
            return False
        if wire == 2:
            if value > size - position:
                return False
            position += value
            file.seek(position)
        seen.add(number)
    return False


def _varint(file: BinaryIO, position: int) -> tuple[int, int]:
    """(value, position behind it); (-1, position) when it is malformed."""
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        position += 1
        if not byte:
            return -1, position
        value |= (byte[0] & 0x7F) << shift
        if not byte[0] & 0x80:
            return value, position
    return -1, position
