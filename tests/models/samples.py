"""Model files made by hand for the tests of formats: small, valid, and easy to break in one place."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from octonode.models.formats import FileBytes, FormatInfo, inspect_model


def files(contents: Mapping[str, bytes]) -> list[FileBytes]:
    """Files of a model in memory; nothing is copied when they are opened."""
    return [FileBytes(path, len(data), lambda data=data: io.BytesIO(data)) for path, data in contents.items()]  # type: ignore[misc]


def inspect(contents: Mapping[str, bytes], **options: Any) -> FormatInfo:
    return inspect_model(files(contents), **options)


# -- GGUF ---------------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key: str, value: object) -> bytes:
    """A key with a text, a bool, a whole number (u32), a float, or an array of them."""
    if isinstance(value, list):
        kind, items = _array(value)
        return text(key) + struct.pack("<IIQ", 9, kind, len(value)) + items
    kind, data = _scalar(value)
    return text(key) + struct.pack("<I", kind) + data


def _scalar(value: object) -> tuple[int, bytes]:
    if isinstance(value, str):
        return 8, text(value)
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    assert isinstance(value, int)
    return 4, struct.pack("<I", value)


def _array(values: Sequence[object]) -> tuple[int, bytes]:
    pieces = [_scalar(value) for value in values]
    return (pieces[0][0] if pieces else 4), b"".join(data for _, data in pieces)


def tensor(name: str, extents: Sequence[int], offset: int, kind: int = 0) -> bytes:
    head = text(name) + struct.pack("<I", len(extents)) + b"".join(struct.pack("<Q", extent) for extent in extents)
    return head + struct.pack("<IQ", kind, offset)


def gguf(
    keys: Mapping[str, object] | None = None, tensors: Sequence[bytes] = (), data_bytes: int = 0, alignment: int = 32
) -> bytes:
    """A GGUF v3 of these keys and tensors; the architecture is `llama` where the keys say none."""
    said: dict[str, object] = {"general.architecture": "llama", **(keys or {})}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(said))
    head += b"".join(pair(key, value) for key, value in said.items()) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + bytes(data_bytes)


def split_gguf(count: int, *, tensors_said: int | None = None) -> dict[str, bytes]:
    """A set of `count` files, one tensor of 128 bytes each."""
    found = {}
    for number in range(count):
        keys: dict[str, object] = {"split.no": number, "split.count": count}
        keys["split.tensors.count"] = count if tensors_said is None else tensors_said
        if number == 0:
            keys["llama.block_count"] = 2
        data = gguf(keys, [tensor(f"t{number}", [32], 0)], 128)
        if number:  # the others do not say their architecture
            head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys)) + b"".join(pair(k, v) for k, v in keys.items())
            head += tensor(f"t{number}", [32], 0)
            data = head + bytes(-len(head) % 32) + bytes(128)
        found[f"m-{number + 1:05}-of-{count:05}.gguf"] = data
    return found


# -- SafeTensors --------------------------------------------------------------------------------------------------


def safetensors(header: object, data: bytes = b"") -> bytes:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(body)) + body + data


def shard(*names: str) -> bytes:
    """A file with a BF16 tensor of 12 bytes for each name."""
    header = {
        name: {"dtype": "BF16", "shape": [2, 3], "data_offsets": [12 * i, 12 * i + 12]} for i, name in enumerate(names)
    }
    return safetensors(header, bytes(12 * len(names)))


def sharded(**index: object) -> dict[str, bytes]:
    """Two shards and their index, whose fields `index` replaces."""
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    said = {"metadata": {"total_size": 36}, "weight_map": {"a": first, "b": first, "c": second}, **index}
    return {
        first: shard("a", "b"),
        second: shard("c"),
        "model.safetensors.index.json": json.dumps(said).encode(),
        "config.json": json.dumps(LLAMA_CONFIG).encode(),
    }


LLAMA_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "intermediate_size": 14336,
}
"""Llama 3 8B."""


# -- ONNX ---------------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def chunk(field: int, data: bytes | str) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    return varint(field << 3 | 2) + varint(len(data)) + data


def onnx_node(operator: str = "Add", domain: str = "", more: bytes = b"") -> bytes:
    return chunk(1, "x") + chunk(2, "y") + chunk(4, operator) + more + (chunk(7, domain) if domain else b"")


def onnx_tensor(
    *extents: int, kind: int = 1, raw: bytes | None = None, external: Mapping[str, str] | None = None
) -> bytes:
    data = b"".join(number(1, extent) for extent in extents) + number(2, kind) + chunk(8, "w")
    if raw is not None:
        data += chunk(9, raw)
    for key, value in (external or {}).items():
        data += chunk(13, chunk(1, key) + chunk(2, value))
    return data + (number(14, 1) if external else b"")


def onnx(
    nodes: Sequence[bytes] = (onnx_node(),),
    tensors: Sequence[bytes] = (),
    *,
    functions: Sequence[bytes] = (),
    opsets: Mapping[str, int] = {"": 17},
) -> bytes:
    graph = b"".join(chunk(1, each) for each in nodes) + chunk(2, "g") + b"".join(chunk(5, each) for each in tensors)
    data = number(1, 9) + chunk(2, "pytorch") + chunk(7, graph)
    data += b"".join(chunk(8, chunk(1, domain) + number(2, version)) for domain, version in opsets.items())
    return data + b"".join(chunk(25, each) for each in functions)


# -- TensorRT -----------------------------------------------------------------------------------------------------


def tensorrt(ranks: int = 2, **config: object) -> dict[str, bytes]:
    pretrained = {
        "architecture": "LlamaForCausalLM",
        "dtype": "float16",
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_size": 4096,
        "vocab_size": 128256,
        "mapping": {"world_size": ranks, "tp_size": ranks},
        "quantization": {"quant_algo": "FP8"},
    }
    said = {"version": "0.20.0", "pretrained_config": pretrained, "build_config": {"max_seq_len": 4096}, **config}
    engines = {f"rank{rank}.engine": b"ftrt" + bytes(200) for rank in range(ranks)}
    return {"config.json": json.dumps(said).encode(), **engines}


# -- CTranslate2 --------------------------------------------------------------------------------------------------


def ct2_text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\x00"


def ct2_variable(name: str, extents: Sequence[int] = (2, 3), kind: int = 4, data: bytes = bytes(12)) -> bytes:
    """Of FP16 if nothing else is said."""
    shape = struct.pack(f"<B{len(extents)}I", len(extents), *extents)
    return ct2_text(name) + shape + struct.pack("<BI", kind, len(data)) + data


def ctranslate2(
    *variables: bytes, spec: str = "WhisperSpec", version: int = 6, aliases: Sequence[tuple[str, str]] = ()
) -> bytes:
    head = struct.pack("<I", version) + ct2_text(spec) + struct.pack("<II", 3, len(variables))
    tail = b"".join(ct2_text(name) + ct2_text(target) for name, target in aliases)
    return head + b"".join(variables) + struct.pack("<I", len(aliases)) + tail


def write(folder: Path, contents: Mapping[str, bytes]) -> Path:
    for path, data in contents.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return folder


def loads(data: bytes) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(data))
