"""CTranslate2 models: one `model.bin`, told from a pickle of the same name by its content. Pure.

Source: https://github.com/OpenNMT/CTranslate2, `python/ctranslate2/specs/model_spec.py` (`_serialize`): version, the
name of a spec, its revision, then variables as name, shape, dtype, length and bytes, then aliases of variables.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final

VERSION_MIN: Final = 4
VERSION_MAX: Final = 6
VARIABLES_MAX: Final = 65_536
"""And as many aliases."""
NAME_BYTES_MAX: Final = 512
DIMENSIONS_MAX: Final = 8
_SPEC_NAME = re.compile(rb"[A-Za-z][A-Za-z0-9]{0,62}Spec\x00")
_DTYPES: Final = (("F32", 4), ("I8", 1), ("I16", 2), ("I32", 4), ("F16", 2), ("BF16", 2))
"""By their number in the file: as the other formats call them, and their bytes."""
_CATEGORIES: Final = {
    "Whisper": "audio",
    "Wav2Vec2": "audio",
    "Wav2Vec2Bert": "audio",
    "TransformerDecoderModel": "llm",
    "TransformerEncoder": "embeddings",
}


class Ctranslate2Error(ValueError):
    """The file is malformed or passes a limit."""


@dataclass(frozen=True, slots=True)
class Ctranslate2Model:
    architecture: str
    """The name of its spec: `Whisper`, `Transformer`, ..."""
    made_with: str
    variables: int
    parameters: int
    weights_bytes: int
    dtype_bytes: Mapping[str, int]

    @property
    def dtype(self) -> str:
        """Of most bytes."""
        return max(self.dtype_bytes, key=lambda name: self.dtype_bytes[name], default="")

    @property
    def category(self) -> str:
        return _CATEGORIES.get(self.architecture, "other")


def looks_like_ctranslate2(head: bytes) -> bool:
    """By the version and the name of the spec; of versions too old or too new as well, so that the reader says so."""
    version = int.from_bytes(head[:4], "little")
    length = int.from_bytes(head[4:6], "little")
    return 2 <= version <= 255 and _SPEC_NAME.fullmatch(head[6 : 6 + length]) is not None


def read_ctranslate2(file: BinaryIO, size: int) -> Ctranslate2Model:
    """All but the weights, which are passed over; they must end where the file does. Raises Ctranslate2Error."""
    return _Reader(file, size).model()


class _Reader:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def model(self) -> Ctranslate2Model:
        version = self._number("<I")
        if not VERSION_MIN <= version <= VERSION_MAX:
            raise Ctranslate2Error(f"its version {version} is none of {VERSION_MIN} to {VERSION_MAX}")
        spec = self._name().removesuffix("Spec")
        revision, count = self._number("<I"), self._count("variables")
        names: set[str] = set()
        dtype_bytes: dict[str, int] = {}
        parameters = 0
        for _ in range(count):
            name, dtype, values, size_bytes = self._variable()
            if name in names:
                raise Ctranslate2Error("two variables of one name")
            names.add(name)
            dtype_bytes[dtype] = dtype_bytes.get(dtype, 0) + size_bytes
            parameters += values
        for _ in range(self._count("aliases")):
            _, target = self._name(), self._name()
            if target not in names:
                raise Ctranslate2Error("an alias of a variable that is not there")
        if self._left:
            raise Ctranslate2Error("bytes behind its end")
        made_with = f"CTranslate2 {version}, revision {revision}"
        return Ctranslate2Model(spec, made_with, count, parameters, sum(dtype_bytes.values()), dtype_bytes)

    def _variable(self) -> tuple[str, str, int, int]:
        """(name, dtype, values, bytes); the file stands behind it."""
        name = self._name()
        dimensions = self._number("<B")
        if dimensions > DIMENSIONS_MAX:
            raise Ctranslate2Error(f"a variable of {dimensions} dimensions")
        values = math.prod(self._number("<I") for _ in range(dimensions))
        number, size_bytes = self._number("<B"), self._number("<I")
        if number >= len(_DTYPES):
            raise Ctranslate2Error(f"a variable of the unknown type {number}")
        dtype, width = _DTYPES[number]
        if values * width != size_bytes:
            raise Ctranslate2Error("a variable whose shape and bytes do not fit")
        if size_bytes > self._left:
            raise Ctranslate2Error("it is cut short")
        self._left -= size_bytes
        self._file.seek(size_bytes, 1)
        return name, dtype, values, size_bytes

    def _count(self, what: str) -> int:
        count = self._number("<I")
        if count > VARIABLES_MAX:
            raise Ctranslate2Error(f"it has {count} {what}")
        return count

    def _name(self) -> str:
        length = self._number("<H")
        if not 2 <= length <= NAME_BYTES_MAX:
            raise Ctranslate2Error(f"a name of {length} bytes")
        data = self._take(length)
        if data[-1] or not data[:-1].isascii() or not data[:-1].decode().isprintable():
            raise Ctranslate2Error("a name that is none")
        return data[:-1].decode()

    def _number(self, form: str) -> int:
        (value,) = struct.unpack(form, self._take(struct.calcsize(form)))
        return int(value)

    def _take(self, count: int) -> bytes:
        if count > self._left:
            raise Ctranslate2Error("it is cut short")
        data = self._file.read(count)
        if len(data) != count:
            raise Ctranslate2Error("it is cut short")
        self._left -= count
        return data
