"""The header of a GGUF file, read under limits. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

HEADER_BYTES_MAX: Final = 64 * 1024 * 1024
KEYS_MAX: Final = 4096
KEY_BYTES_MAX: Final = 4096
TENSORS_MAX: Final = 65_536
TENSOR_NAME_BYTES_MAX: Final = 256
TEXT_BYTES_MAX: Final = 1024 * 1024
TEXTS_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of all keys and texts that are kept together."""
ARRAY_ITEMS_MAX: Final = 4_000_000
ARRAY_TEXTS_MAX: Final = 2_000_000
"""Texts in all arrays together: vocabularies and merges, which are passed over one by one."""
KEPT_ITEMS_MAX: Final = 4096
"""Longer arrays of numbers are passed over: what is by layer is shorter."""
DIMENSIONS_MAX: Final = 4
ALIGNMENT_DEFAULT: Final = 32
ALIGNMENT_MAX: Final = 65_536
SPLIT_FILES_MAX: Final = 1000

_SCALARS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_FILE_TYPES: Final = (
    *("F32", "F16", "Q4_0", "Q4_1", "Q4_1_SOME_F16", "Q4_2", "Q4_3", "Q8_0", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S"),
    *("Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ2_XXS", "IQ2_XS", "Q2_K_S", "IQ3_XS"),
    *("IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ3_M", "IQ2_S", "IQ2_M", "IQ4_XS", "IQ1_M", "BF16", "", "", ""),
    *("TQ1_0", "TQ2_0", "MXFP4_MOE"),
)
"""`general.file_type`, as llama.cpp numbers it."""
_BLOCKS: Final = {
    number: (name, per_block, block_bytes)
    for number, name, per_block, block_bytes in (
        *((0, "F32", 1, 4), (1, "F16", 1, 2), (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20), (6, "Q5_0", 32, 22)),
        *((7, "Q5_1", 32, 24), (8, "Q8_0", 32, 34), (9, "Q8_1", 32, 36), (10, "Q2_K", 256, 84)),
        *((11, "Q3_K", 256, 110), (12, "Q4_K", 256, 144), (13, "Q5_K", 256, 176), (14, "Q6_K", 256, 210)),
        *((15, "Q8_K", 256, 292), (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74), (18, "IQ3_XXS", 256, 98)),
        *((19, "IQ1_S", 256, 50), (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110), (22, "IQ2_S", 256, 82)),
        *((23, "IQ4_XS", 256, 136), (24, "I8", 1, 1), (25, "I16", 1, 2), (26, "I32", 1, 4), (27, "I64", 1, 8)),
        *((28, "F64", 1, 8), (29, "IQ1_M", 256, 56), (30, "BF16", 1, 2), (34, "TQ1_0", 256, 54)),
        *((35, "TQ2_0", 256, 66), (39, "MXFP4", 32, 17), (40, "NVFP4", 64, 36)),
    )
}
"""Type of a tensor -> (name, values in a block, bytes of a block), as ggml.c has them. Of others only the start is
checked."""


class GgufError(ValueError):
    """The header is malformed or passes a limit."""


@dataclass(frozen=True, slots=True)
class Items:
    """An array of the header: how many, and the numbers themselves where they are few."""

    count: int
    numbers: tuple[int | float, ...] = ()


@dataclass(frozen=True, slots=True)
class GgufHeader:
    version: int
    tensor_count: int
    values: dict[str, Any]
    """By key: scalars, texts, and `Items` for arrays."""
    parameters: int
    """Numbers in all tensors of this file."""
    weights_bytes: int
    type_bytes: dict[str, int]
    """Bytes of tensors by the name of their type."""

    def text(self, key: str) -> str:
        value = self.values.get(key, "")
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int:
        value = self.values.get(key, 0)
        return value if type(value) is int and 0 <= value < 2**40 else 0

    def count(self, key: str) -> int:
        """Items of an array; 0 where there is none."""
        value = self.values.get(key)
        return value.count if isinstance(value, Items) else 0

    def by_layer(self, key: str, layers: int) -> list[int]:
        """A number for each layer: of an array by layer, or the one number for all."""
        value = self.values.get(key)
        if isinstance(value, Items):
            numbers = [int(n) if abs(n) < 2**31 else 0 for n in value.numbers[:layers]]
            return numbers + [0] * (layers - len(numbers))
        return [self.number(key)] * layers

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    @property
    def quantization(self) -> str:
        """As the file says, else the type of most of its bytes."""
        kind = self.values.get("general.file_type")
        said = _FILE_TYPES[kind] if type(kind) is int and 0 <= kind < len(_FILE_TYPES) else ""
        return said or max(self.type_bytes, key=lambda name: self.type_bytes[name], default="")

    @property
    def split(self) -> tuple[int, int]:
        """(number of this file from 0, files in all) of a model in several files; (0, 1) else."""
        files = self.number("split.count")
        return (self.number("split.no"), files) if files > 1 else (0, 1)


class _Cursor:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = min(size, HEADER_BYTES_MAX)
        self._start = file.tell()
        self.texts_left = ARRAY_TEXTS_MAX
        self._kept_left = TEXTS_BYTES_MAX

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

    def length(self, bytes_max: int) -> int:
        length: int = self.scalar(10)
        if length > bytes_max:
            raise GgufError(f"a text of {length} bytes")
        return length

    def text(self, bytes_max: int) -> str:
        """A text that is kept."""
        length = self.length(bytes_max)
        self._kept_left -= length
        if self._kept_left < 0:
            raise GgufError(f"more than {TEXTS_BYTES_MAX} bytes of texts")
        return self.take(length).decode("utf-8", errors="replace")


def read_gguf(file: BinaryIO, size: int) -> GgufHeader:
    """The header of the GGUF that starts where `file` stands and has `size` bytes. Raises GgufError."""
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
    alignment = _alignment(values)
    table = _Tensors(alignment)
    for _ in range(tensors):
        table.take(cursor)
    data_start = -(-cursor.position // alignment) * alignment
    header = GgufHeader(version, tensors, values, table.parameters, table.check(data_start, size), table.type_bytes)
    number, files = header.split
    if not 0 <= number < files <= SPLIT_FILES_MAX:
        raise GgufError(f"it says it is file {number} of {files}")
    if not isinstance(values.get("general.architecture"), str) and not number:
        raise GgufError("it does not say its architecture")
    return header


def _alignment(values: dict[str, Any]) -> int:
    alignment = values.get("general.alignment", ALIGNMENT_DEFAULT)
    if type(alignment) is not int or not 8 <= alignment <= ALIGNMENT_MAX or alignment & (alignment - 1):
        raise GgufError(f"an alignment of {str(alignment)[:32]}; a power of two from 8 to {ALIGNMENT_MAX} is one")
    return alignment


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
    if item in _SCALARS and count <= KEPT_ITEMS_MAX:
        layout = f"<{count}{_SCALARS[item][1]}"
        return Items(count, struct.unpack(layout, cursor.take(struct.calcsize(layout))))
    if item in _SCALARS:
        cursor.skip(count * struct.calcsize(_SCALARS[item]))
    elif item == _STRING:
        cursor.texts_left -= count
        if cursor.texts_left < 0:
            raise GgufError(f"more than {ARRAY_TEXTS_MAX} texts in arrays")
        for _ in range(count):
            cursor.skip(cursor.length(TEXT_BYTES_MAX))
    else:
        raise GgufError(f"an array of type {item}")  # arrays of arrays are allowed by the page and used by nobody
    return Items(count)


class _Tensors:
    """The table of tensors: sizes, and whether their data lies side by side inside the file."""

    def __init__(self, alignment: int) -> None:
        self._alignment = alignment
        self._names: set[str] = set()
        self._ranges: list[tuple[int, int]] = []
        self.parameters = 0
        self.type_bytes: dict[str, int] = {}

    def take(self, cursor: _Cursor) -> None:
        name = cursor.take(cursor.length(TENSOR_NAME_BYTES_MAX)).decode("utf-8", errors="replace")
        if name in self._names:
            raise GgufError(f"the tensor {name[:64]!r} twice")
        self._names.add(name)
        dimensions = cursor.scalar(4)
        if not 1 <= dimensions <= DIMENSIONS_MAX:
            raise GgufError(f"a tensor of {dimensions} dimensions")
        extents = [cursor.scalar(10) for _ in range(dimensions)]
        values = 1
        for extent in extents:
            values *= extent
            if not 0 < values < 2**62:
                raise GgufError(f"the tensor {name[:64]!r} with an absurd number of values")
        kind = cursor.scalar(4)
        type_name, per_block, block_bytes = _BLOCKS.get(kind, (f"type {kind}", 1, 0))
        if extents[0] % per_block:
            raise GgufError(f"rows of {extents[0]} values in the tensor {name[:64]!r}, whose blocks have {per_block}")
        offset = cursor.scalar(10)
        if offset % self._alignment:
            raise GgufError(f"the tensor {name[:64]!r} at an offset that is not aligned")
        size_bytes = values // per_block * block_bytes
        self._ranges.append((offset, offset + size_bytes))
        self.parameters += values
        self.type_bytes[type_name] = self.type_bytes.get(type_name, 0) + size_bytes

    def check(self, data_start: int, size: int) -> int:
        """Bytes of all tensors. Raises GgufError where they overlap or pass the end of the file."""
        before = 0
        for start, end in sorted(self._ranges):
            if start < before:
                raise GgufError("tensors that overlap")
            before = end
        if self._ranges and size < data_start + before:
            raise GgufError(f"it is cut short: {size} bytes of {data_start + before}")
        return sum(self.type_bytes.values())
