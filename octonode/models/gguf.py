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


_BLOCKS: Final = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 36),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
}
"""Type of a tensor -> (values in a block, bytes of a block), as ggml.c has them; of others the start is checked."""
ALIGNMENT_DEFAULT: Final = 32


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
        self._start = file.tell()

    @property
    def position(self) -> int:
        """Bytes from the start of the GGUF."""
        return self._file.tell() - self._start

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
    data_bytes = max((_read_tensor(cursor) for _ in range(tensors)), default=0)
    if not isinstance(values.get("general.architecture"), str):
        raise GgufError("it does not say its architecture")
    header = GgufHeader(version, tensors, values)
    alignment = header.number("general.alignment") or ALIGNMENT_DEFAULT
    whole = -(-cursor.position // alignment) * alignment + data_bytes
    if size < whole:
        raise GgufError(f"it is cut short: {size} bytes of {whole}")
    return header


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


def _read_tensor(cursor: _Cursor) -> int:
    """Where its data ends, in bytes from the first tensor's start."""
    cursor.text(KEY_BYTES_MAX)
    dimensions = cursor.scalar(4)
    if not 1 <= dimensions <= DIMENSIONS_MAX:
        raise GgufError(f"a tensor of {dimensions} dimensions")
    values = 1
    for _ in range(dimensions):
        values = min(values * cursor.scalar(10), 2**62)
    per_block, block_bytes = _BLOCKS.get(cursor.scalar(4), (1, 0))
    return int(cursor.scalar(10)) + values // per_block * block_bytes
