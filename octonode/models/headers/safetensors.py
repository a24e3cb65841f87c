"""SafeTensors files and sets of them. Source: https://github.com/huggingface/safetensors#format.

A set is `NAME.safetensors.index.json` with its shards: `weight_map` says which tensor lies in which file beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from octonode.models.headers.strict_json import JsonRefused, read_object

HEADER_BYTES_MAX: Final = 32 * 1024 * 1024
TENSORS_MAX: Final = 65_536
"""In one file."""
INDEX_BYTES_MAX: Final = 32 * 1024 * 1024
INDEX_TENSORS_MAX: Final = 400_000
INDEX_SUFFIX: Final = ".safetensors.index.json"
DIMENSIONS_MAX: Final = 32
_DTYPES_BY_BITS: Final = {
    4: ("F4",),
    6: ("F6_E2M3", "F6_E3M2"),
    8: ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"),
    16: ("I16", "U16", "F16", "BF16"),
    32: ("I32", "U32", "F32"),
    64: ("C64", "F64", "I64", "U64"),
}
_DTYPE_BITS: Final = {name: bits for bits, names in _DTYPES_BY_BITS.items() for name in names}
_NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors\Z")


class SafetensorsError(ValueError):
    """The header is malformed or passes a limit."""


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    tensors: frozenset[str]
    weights_bytes: int
    parameters: int
    dtype_bytes: Mapping[str, int]
    architecture: str

    @property
    def dtype(self) -> str:
        """Of most bytes."""
        return max(self.dtype_bytes, key=lambda name: self.dtype_bytes[name], default="")


def could_be_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= min(HEADER_BYTES_MAX, size - 8)


def read_safetensors(file: BinaryIO, size: int) -> SafetensorsHeader:
    """The header of the file that starts where `file` stands. Offsets must cover the rest exactly. Raises
    SafetensorsError."""
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(HEADER_BYTES_MAX, size - 8):
        raise SafetensorsError(f"its header of {length} bytes is longer than the file or than {HEADER_BYTES_MAX}")
    try:
        header = read_object(file.read(length), HEADER_BYTES_MAX)
    except JsonRefused as error:
        raise SafetensorsError(f"its header: {error}") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise SafetensorsError("its metadata is not a map")
    if len(header) > TENSORS_MAX:
        raise SafetensorsError(f"it has {len(header)} tensors")
    dtype_bytes: dict[str, int] = {}
    ranges = []
    parameters = 0
    for tensor in header.values():
        dtype, begin, end, values = _tensor(tensor)
        dtype_bytes[dtype] = dtype_bytes.get(dtype, 0) + end - begin
        parameters += values
        ranges.append((begin, end))
    position = 0
    for begin, end in sorted(ranges):
        if begin != position:
            raise SafetensorsError("tensors that overlap or leave holes")
        position = end
    if position != size - 8 - length:
        raise SafetensorsError("it is cut short or has bytes behind its end")
    architecture = metadata.get("architecture", "")
    return SafetensorsHeader(
        frozenset(header), position, parameters, dtype_bytes, architecture if isinstance(architecture, str) else ""
    )


def _tensor(tensor: object) -> tuple[str, int, int, int]:
    """(dtype, begin, end, values) of one tensor. Raises SafetensorsError."""
    if isinstance(tensor, dict):
        dtype, shape, offsets = tensor.get("dtype"), tensor.get("shape"), tensor.get("data_offsets")
        if isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2:
            numbers = [*shape, *offsets]
            whole = all(type(n) is int and 0 <= n < 2**62 for n in numbers)
            if whole and len(shape) <= DIMENSIONS_MAX and offsets[0] <= offsets[1]:
                values = 1
                for dimension in shape:
                    values = min(values * dimension, 2**62)
                bits = _DTYPE_BITS.get(dtype)
                if bits is None or (values * bits + 7) // 8 == offsets[1] - offsets[0]:
                    return dtype[:16], offsets[0], offsets[1], values
    raise SafetensorsError("a tensor of its header is malformed")


def is_index(path: str) -> bool:
    return path.endswith(INDEX_SUFFIX)


def shards_of(data: bytes, index_path: str) -> tuple[dict[str, str], int]:
    """(tensor -> path of its shard in the model, total_size or 0) of the index in `data`. Raises SafetensorsError."""
    try:
        value = read_object(data, INDEX_BYTES_MAX)
    except JsonRefused as error:
        raise SafetensorsError(str(error)) from None
    weight_map, metadata = value.get("weight_map"), value.get("metadata", {})
    if not isinstance(weight_map, dict) or not 0 < len(weight_map) <= INDEX_TENSORS_MAX:
        raise SafetensorsError(f"it has no weight_map of 1 to {INDEX_TENSORS_MAX} tensors")
    folder = index_path.rpartition("/")[0]
    shards = {name: _beside(folder, name) for name in dict.fromkeys(map(_name, weight_map.values()))}
    return {tensor: shards[shard] for tensor, shard in weight_map.items()}, _total(metadata)


def _name(shard: Any) -> str:
    if not isinstance(shard, str) or not shard:
        raise SafetensorsError("its weight_map names a shard that is no text")
    return shard


def _beside(folder: str, name: str) -> str:
    """A shard lies where its index lies, nowhere else."""
    if "/" in name or "\\" in name or name in (".", "..") or not name.isprintable() or len(name) > 256:
        raise SafetensorsError(f"its weight_map points outside of its directory: {name[:64]!r}")
    return f"{folder}/{name}" if folder else name


def _total(metadata: Any) -> int:
    total = metadata.get("total_size", 0) if isinstance(metadata, dict) else 0
    if isinstance(total, float) and total.is_integer():
        total = int(total)
    if type(total) is not int or not 0 <= total < 2**62:
        raise SafetensorsError("its total_size is not a size")
    return total


def check_set(weight_map: Mapping[str, str], total_size: int, shards: Mapping[str, SafetensorsHeader]) -> int:
    """How many tensors of the shards the index does not name. Raises SafetensorsError where index and shards differ.

    `shards` holds what is in the model, by path. `total_size` of hubs is often a little off (tied weights, padding), so
    it is refused only beyond a factor of two.
    """
    named: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        named.setdefault(shard, set()).add(tensor)
    for shard, tensors in named.items():
        if shard not in shards:
            raise SafetensorsError(f"it names {shard}, which is not in the model")
        missing = tensors - shards[shard].tensors
        if missing:
            raise SafetensorsError(f"{shard} does not have the tensor {min(missing)[:64]!r} ({len(missing)} missing)")
    found: set[str] = set()
    for shard in named:
        twice = found & shards[shard].tensors
        if twice:
            raise SafetensorsError(f"the tensor {min(twice)[:64]!r} is in two shards")
        found |= shards[shard].tensors
    weights_bytes = sum(shards[shard].weights_bytes for shard in named)
    if total_size and not weights_bytes / 2 <= total_size <= weights_bytes * 2:
        raise SafetensorsError(f"its total_size of {total_size} bytes is far from the {weights_bytes} bytes there are")
    return len(found) - len(weight_map)


def missing_numbers(paths: Iterable[str]) -> str:
    """The first file that a numbered set (`NAME-00001-of-00003.safetensors`) lacks; empty when all are there."""
    sets: dict[tuple[str, int], set[int]] = {}
    for path in paths:
        match = _NUMBERED.match(path)
        if match:
            sets.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (name, total), there in sorted(sets.items()):
        for number in range(1, min(total, len(there) + 1) + 1):
            if number not in there:
                return f"{name}-{number:05}-of-{total:05}.safetensors"
    return ""
