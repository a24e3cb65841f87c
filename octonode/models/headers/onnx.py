"""An ONNX ModelProto, walked under limits without its library. Source: onnx.proto3 of https://github.com/onnx/onnx.

What counts for safety: weights in other files must lie in the model, and every node must be an operator that an engine
here knows by itself, so that no library has to be loaded for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from octonode.models.headers.protobuf import BYTES, VARINT, Field, ProtobufRefused, Walker

FIELDS_MAX: Final = 1_000_000
NODES_MAX: Final = 200_000
TENSORS_MAX: Final = 65_536
GRAPHS_DEEP_MAX: Final = 16
IMPORTS_MAX: Final = 64
FUNCTIONS_MAX: Final = 4096
DIMENSIONS_MAX: Final = 32
TEXT_BYTES_MAX: Final = 4096
STANDARD_DOMAINS: Final = frozenset(
    ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training")
)
ENGINE_DOMAINS: Final = frozenset(("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"))
"""Operators that ONNX Runtime brings itself. A domain that needs a library of its own is never put here."""
_IR_VERSION_MAX: Final = 64
# ModelProto: field number -> wire type
_MODEL: Final = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_IR_VERSION, _GRAPH, _OPSET, _TRAINING, _FUNCTIONS = 1, 7, 8, 20, 25
_BITS: Final = {
    kind: bits
    for bits, kinds in {
        4: (21, 22, 23),
        8: (2, 3, 9, 17, 18, 19, 20, 24),
        16: (4, 5, 10, 16),
        32: (1, 6, 12),
        64: (7, 11, 13, 14),
        128: (15,),
    }.items()
    for kind in kinds
}
"""TensorProto.DataType -> bits of one value; texts (8) have none."""
_QUANTIZATIONS: Final = {
    1: "F32",
    10: "F16",
    11: "F64",
    16: "BF16",
    2: "INT8",
    3: "INT8",
    21: "INT4",
    22: "INT4",
    23: "FP4",
    **dict.fromkeys((17, 18, 19, 20), "FP8"),
}
_PACKED: Final = "MatMulNBits"
"""Its weights are bytes with several values each; how many bits they have is an attribute of the node."""


class OnnxError(ValueError):
    """It is malformed, passes a limit, or needs what is not taken."""


@dataclass(frozen=True, slots=True)
class External:
    """Bytes of a tensor in another file, as the model claims."""

    location: str
    offset: int
    length: int
    """-1: not said."""


@dataclass(slots=True)
class OnnxModel:
    opsets: dict[str, int] = field(default_factory=dict)
    parameters: int = 0
    weights_bytes: int = 0
    type_bytes: dict[int, int] = field(default_factory=dict)
    """TensorProto.DataType -> bytes of weights of it."""
    packed_bits: dict[int, int] = field(default_factory=dict)
    """Bits of packed weights -> nodes that have them."""
    nodes: int = 0
    tensors: int = 0
    external: list[External] = field(default_factory=list)
    functions: set[tuple[str, str]] = field(default_factory=set)
    """(domain, name) of the functions that the model brings itself, made of other operators."""

    @property
    def quantization(self) -> str:
        """Of most of its weights: `F32`, `INT8`, `INT4`, ...; empty where nothing says it."""
        if self.packed_bits:
            return f"INT{max(self.packed_bits, key=self.packed_bits.__getitem__)}"
        most = max(self.type_bytes, key=self.type_bytes.__getitem__, default=0)
        return _QUANTIZATIONS.get(most, "")

    @property
    def versions(self) -> str:
        return ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(self.opsets.items()))


def looks_like_onnx(file: BinaryIO, size: int) -> bool:
    """True when the outer fields are a ModelProto's, end exactly at the end of the file, and include what one needs."""
    seen: set[int] = set()
    try:
        for each in Walker(file, size, FUNCTIONS_MAX + IMPORTS_MAX).fields(0, size):
            if _MODEL.get(each.number) != each.wire:
                return False
            if each.number == _IR_VERSION and not 1 <= each.value <= _IR_VERSION_MAX:
                return False
            seen.add(each.number)
    except ProtobufRefused:
        return False
    return {_GRAPH, _OPSET, _IR_VERSION} <= seen


def read_onnx(file: BinaryIO, size: int, domains: Set[str] = STANDARD_DOMAINS | ENGINE_DOMAINS) -> OnnxModel:
    """What the model has in it. Raises OnnxError, also for operators outside `domains` that it does not make itself."""
    walker = Walker(file, size, FIELDS_MAX)
    model = OnnxModel()
    reader = _Reader(walker, model, domains)
    try:
        outer = [each for each in walker.fields(0, size) if each.number in (_GRAPH, _OPSET, _TRAINING, _FUNCTIONS)]
        if len(outer) > FUNCTIONS_MAX + IMPORTS_MAX:
            raise OnnxError("too many functions and imports")
        for each in outer:
            if each.number == _OPSET:
                reader.opset(each)
            elif each.number == _FUNCTIONS:
                reader.name_function(each)
        for each in outer:
            if each.number == _GRAPH:
                reader.graph(each, 0)
            elif each.number == _FUNCTIONS:
                reader.function(each)
            elif each.number == _TRAINING:
                reader.training(each)
    except ProtobufRefused as error:
        raise OnnxError(str(error)) from None
    return model


def check_external(model: OnnxModel, folder: str, sizes: Mapping[str, int]) -> set[str]:
    """Paths in the model that hold weights of this one, which lies in `folder`. Raises OnnxError.

    A location is a plain path from the model's own directory downwards: anything else would let a model read any file
    of the machine, or (`*/_ORT_MEM_ADDR_/*` of ONNX Runtime) its memory.
    """
    found: set[str] = set()
    for each in model.external:
        parts = each.location.split("/")
        plain = each.location.isprintable() and "\\" not in each.location and ":" not in each.location
        if not plain or any(part in ("", ".", "..") for part in parts):
            raise OnnxError(f"weights outside of the model: {each.location[:64]!r}")
        path = f"{folder}/{each.location}" if folder else each.location
        if path not in sizes:
            raise OnnxError(f"weights in {each.location[:64]!r}, which is not in the model")
        if each.offset + max(each.length, 0) > sizes[path]:
            raise OnnxError(f"weights behind the end of {each.location[:64]!r}")
        found.add(path)
    return found


class _Reader:
    """Goes through graphs, functions and the tensors in them, and counts."""

    def __init__(self, walker: Walker, model: OnnxModel, domains: Set[str]) -> None:
        self._walker = walker
        self._model = model
        self._domains = domains

    def opset(self, message: Field) -> None:
        domain, version = "", 0
        for each in self._walker.fields(message.start, message.end):
            if each.number == 1:
                domain = self._walker.text_of(each, TEXT_BYTES_MAX)
            elif each.number == 2 and each.wire == VARINT:
                version = each.value
        if domain in self._model.opsets:
            raise OnnxError(f"the operator set {domain[:64]!r} is imported twice")
        if not 0 < version < 2**31 or len(self._model.opsets) >= IMPORTS_MAX:
            raise OnnxError(f"version {version} of the operator set {domain[:64]!r}, or too many of them")
        self._model.opsets[domain] = version

    def name_function(self, message: Field) -> None:
        name, domain = "", ""
        for each in self._walker.fields(message.start, message.end):
            if each.number == 1:
                name = self._walker.text_of(each, TEXT_BYTES_MAX)
            elif each.number == 10:
                domain = self._walker.text_of(each, TEXT_BYTES_MAX)
        if domain in STANDARD_DOMAINS:
            raise OnnxError(f"it brings a function of its own for the standard operator {name[:64]!r}")
        self._model.functions.add((domain, name))

    def function(self, message: Field) -> None:
        for each in self._walker.fields(message.start, message.end):
            if each.number == 7:
                self._node(each, 1)
            elif each.number == 11:
                self._attribute(each, 1)

    def training(self, message: Field) -> None:
        for each in self._walker.fields(message.start, message.end):
            if each.number in (1, 2):
                self.graph(each, 1)

    def graph(self, message: Field, deep: int) -> None:
        if message.wire != BYTES or deep > GRAPHS_DEEP_MAX:
            raise OnnxError(f"graphs nested deeper than {GRAPHS_DEEP_MAX}")
        for each in self._walker.fields(message.start, message.end):
            if each.number == 1:
                self._node(each, deep)
            elif each.number == 5:
                self._tensor(each)
            elif each.number == 15:
                for part in self._walker.fields(each.start, each.end):
                    if part.number in (1, 2):
                        self._tensor(part)

    def _node(self, message: Field, deep: int) -> None:
        self._model.nodes += 1
        if message.wire != BYTES or self._model.nodes > NODES_MAX:
            raise OnnxError(f"more than {NODES_MAX} nodes, or one that is none")
        operator, domain = "", ""
        for each in self._walker.fields(message.start, message.end):
            if each.number == 4:
                operator = self._walker.text_of(each, TEXT_BYTES_MAX)
            elif each.number == 7:
                domain = self._walker.text_of(each, TEXT_BYTES_MAX)
            elif each.number == 5:
                self._attribute(each, deep)
        if operator == _PACKED:
            self._note_bits(message)
        if domain not in self._domains and (domain, operator) not in self._model.functions:
            raise OnnxError(
                f"the operator {operator[:64]!r} of {domain[:64]!r}, which needs a library of its own; engines here "
                "load none"
            )

    def _note_bits(self, node: Field) -> None:
        for attribute in self._walker.fields(node.start, node.end):
            if attribute.number != 5 or attribute.wire != BYTES:
                continue
            name, value = "", 0
            for each in self._walker.fields(attribute.start, attribute.end):
                if each.number == 1:
                    name = self._walker.text_of(each, TEXT_BYTES_MAX)
                elif each.number == 3 and each.wire == VARINT:
                    value = each.value
            if name == "bits" and value in (2, 3, 4, 5, 6, 7, 8):
                self._model.packed_bits[value] = self._model.packed_bits.get(value, 0) + 1

    def _attribute(self, message: Field, deep: int) -> None:
        if message.wire != BYTES:
            raise OnnxError("an attribute that is none")
        for each in self._walker.fields(message.start, message.end):
            if each.number in (5, 10):  # t, tensors
                self._tensor(each)
            elif each.number in (6, 11):  # g, graphs
                self.graph(each, deep + 1)
            elif each.number in (22, 23):  # sparse_tensor(s)
                for part in self._walker.fields(each.start, each.end):
                    if part.number in (1, 2):
                        self._tensor(part)

    def _tensor(self, message: Field) -> None:
        self._model.tensors += 1
        if message.wire != BYTES or self._model.tensors > TENSORS_MAX:
            raise OnnxError(f"more than {TENSORS_MAX} tensors, or one that is none")
        values, dimensions, kind, raw, entries = 1, 0, 0, -1, []
        for each in self._walker.fields(message.start, message.end):
            if each.number == 1:
                for extent in self._walker.packed(each, DIMENSIONS_MAX):
                    values, dimensions = values * extent, dimensions + 1
                    if values >= 2**62 or dimensions > DIMENSIONS_MAX:
                        raise OnnxError("a tensor with an absurd number of values")
            elif each.number == 2 and each.wire == VARINT:
                kind = each.value
            elif each.number == 9 and each.wire == BYTES:
                raw = each.end - each.start
            elif each.number == 13:
                entries.append(each)
        size_bytes = (values * _BITS.get(kind, 0) + 7) // 8
        if raw >= 0 and not entries and kind in _BITS and raw != size_bytes:
            raise OnnxError(f"a tensor of {size_bytes} bytes with {raw} bytes of data")
        if entries:
            self._external(entries, size_bytes)
        self._model.parameters += values
        self._model.weights_bytes += size_bytes
        self._model.type_bytes[kind] = self._model.type_bytes.get(kind, 0) + size_bytes

    def _external(self, entries: list[Field], size_bytes: int) -> None:
        said: dict[str, str] = {}
        for entry in entries:
            key, value = "", ""
            for each in self._walker.fields(entry.start, entry.end):
                if each.number == 1:
                    key = self._walker.text_of(each, TEXT_BYTES_MAX)
                elif each.number == 2:
                    value = self._walker.text_of(each, TEXT_BYTES_MAX)
            if key in said:
                raise OnnxError(f"weights elsewhere with {key[:64]!r} twice")
            said[key] = value
        length = _number(said.get("length", "")) if said.get("length") else size_bytes
        self._model.external.append(External(said.get("location", ""), _number(said.get("offset") or "0"), length))


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise OnnxError(f"weights at {text[:32]!r}, which is no offset")
    return int(text)
