"""The header of a GGUF file, read under limits. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

KEYS_MAX: Final = 4096
KEY_BYTES_MAX: Final = 65535
TENSORS_MAX: Final = 65536
TEXT_BYTES_MAX: Final = 1024 * 1024
ARRAY_ITEMS_MAX: Final = 4_000_000
HEADER_BYTES_MAX: Final = 256 * 1024 * 1024
DIMENSIONS_MAX: Final = 4

_SCALARS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_FILE_TYPES: Final = (
    *("F32", "F16", "Q4_0", "Q4_1", "Q4_1_SOME_F16", "Q4_2", "Q4_3", "Q8_0", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S"),
    *("Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ2_XXS", "IQ2_XS", "Q2_K_S", "IQ3_XS"),
    *("IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ3_M", "IQ2_S", "IQ2_M", "IQ4_XS", "IQ1_M", "BF16"),
)


class GgufError(ValueError):
    """The header is malformed or passes a limit."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    version: int
    tensor_count: int
    values: dict[str, Any]
    """Scalars and texts by key; arrays are read past."""

    def text(self, key: str) -> str:
        value = self.values.get(key, "")
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int:
        value = self.values.get(key, 0)
        return value if type(value) is int and 0 <= value < 2**40 else 0

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    @property
    def quantization(self) -> str:
        """By `general.file_type`, as llama.cpp numbers it; empty when it is not said."""
        kind = self.values.get("general.file_type")
        return _FILE_TYPES[kind] if type(kind) is int and 0 <= kind < len(_FILE_TYPES) else ""


class _Cursor:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = min(size, HEADER_BYTES_MAX)

    def take(self, count: int) -> bytes:
        if count > self._left:
            raise GgufError("its header ends early or is too large")
        self._left -= count
        data = self._file.read(count)
        if len(data) != count:
            raise GgufError("its header ends early")
        return data

    def skip(self, count: int) -> None:
        if count > self._left:
            raise GgufError("its header ends early or is too large")
        self._left -= count
        self._file.seek(count, 1)

    def scalar(self, kind: int) -> Any:
        layout = _SCALARS[kind]
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, bytes_max: int) -> str:
        length = self.scalar(10)
        if length > bytes_max:
            raise GgufError(f"a text of {length} bytes")
        return self.take(length).decode("utf-8", errors="replace")


def read_gguf(file: BinaryIO, size: int) -> GgufHeader:
    """The header of the GGUF that starts where `file` stands. Raises GgufError."""
    cursor = _Cursor(file, size)
    if cursor.take(4) != b"GGUF":
        raise GgufError("no magic")
    version = cursor.scalar(4)
    if version not in (2, 3):
        raise GgufError(f"version {version}; 2 and 3 are read (big-endian files are not)")
    tensors, keys = cursor.scalar(10), cursor.scalar(10)
    if tensors > TENSORS_MAX or keys > KEYS_MAX:
        raise GgufError(f"{tensors} tensors and {keys} keys")
    values: dict[str, Any] = {}
    for _ in range(keys):
        key = cursor.text(KEY_BYTES_MAX)
        if key in values:
            raise GgufError(f"the key {key[:64]!r} twice")
        values[key] = _value(cursor, cursor.scalar(4))
    for _ in range(tensors):
        _read_tensor(cursor)
    if not isinstance(values.get("general.architecture"), str):
        raise GgufError("it does not say its architecture")
    return GgufHeader(version, tensors, values)


def _value(cursor: _Cursor, kind: int) -> Any:
    if kind in _SCALARS:
        return cursor.scalar(kind)
    if kind == _STRING:
        return cursor.text(TEXT_BYTES_MAX)
    if kind != _ARRAY:
        raise GgufError(f"a value of type {kind}")
    item, count = cursor.scalar(4), cursor.scalar(10)
    if count > ARRAY_ITEMS_MAX:
        raise GgufError(f"an array of {count}")
    if item in _SCALARS:
        cursor.skip(count * struct.calcsize(_SCALARS[item]))
    elif item == _STRING:
        for _ in range(count):
            length = cursor.scalar(10)
            if length > TEXT_BYTES_MAX:
                raise GgufError(f"a text of {length} bytes")
            cursor.skip(length)
    else:
        raise GgufError(f"an array of type {item}")  # arrays of arrays are allowed by the page and used by nobody
    return None


def _read_tensor(cursor: _Cursor) -> None:
    cursor.text(KEY_BYTES_MAX)
    dimensions = cursor.scalar(4)
    if not 1 <= dimensions <= DIMENSIONS_MAX:
        raise GgufError(f"a tensor of {dimensions} dimensions")
    cursor.skip(8 * dimensions + 4 + 8)
