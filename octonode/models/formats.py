"""What a model file is, told by its content and never by its name. Sans-IO but for the binary file it is given.

Pickle runs code when it is loaded, so it is refused wherever it hides: bare, or in the zip of a PyTorch checkpoint.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from typing import BinaryIO, Final

from octonode.errors import OctonodeError
from octonode.models.gguf import GgufError, read_gguf
from octonode.models.onnx import looks_like_onnx

SAFETENSORS_HEADER_BYTES_MAX: Final = 32 * 1024 * 1024
SAFETENSORS_TENSORS_MAX: Final = 1_000_000
SCRIPTED_MAGIC: Final = b"octonode scripted model 1\n"
"""First line of a model of the scripted engine: for test networks, which need no weights. What follows is filler."""
ZIP_ENTRIES_MAX: Final = 100_000
_DTYPES_BY_BYTES: Final = {
    1: ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"),
    2: ("I16", "U16", "F16", "BF16"),
    4: ("I32", "U32", "F32"),
    8: ("C64", "F64", "I64", "U64"),
}
_DTYPE_BYTES: Final = {name: size for size, names in _DTYPES_BY_BYTES.items() for name in names}


class FormatRefused(OctonodeError):
    """The file is not a model that this program takes."""

    code = "FORMAT_REFUSED"


@dataclass(frozen=True, slots=True)
class FormatInfo:
    """What the header says. Texts are the file's own claims, cleaned and cut."""

    format: str
    """`gguf`, `safetensors`, `onnx` or `scripted`."""
    architecture: str = ""
    quantization: str = ""
    context_tokens: int = 0
    chat_template_sha256: bytes = b""
    name: str = ""
    licence: str = ""
    category: str = "llm"


def sniff(file: BinaryIO) -> FormatInfo:
    """What the file holds. Raises FormatRefused that says why and what to do."""
    file.seek(0, io.SEEK_END)
    size = file.tell()
    file.seek(0)
    head = file.read(64)
    if len(head) < 8:
        raise FormatRefused(f"a file of {size} bytes is not a model; GGUF, SafeTensors and ONNX are taken")
    if head.startswith(SCRIPTED_MAGIC):
        return FormatInfo("scripted", name="scripted")
    _refuse_pickle(file, head)
    file.seek(0)
    if head.startswith(b"GGUF"):
        return _gguf(file, size)
    if _could_be_safetensors(head, size):
        return _safetensors(file, size)
    if looks_like_onnx(file, size):
        return FormatInfo("onnx", category="other")
    raise FormatRefused("the content is not GGUF, SafeTensors or ONNX, whatever the file is called")


def _refuse_pickle(file: BinaryIO, head: bytes) -> None:
    what = "convert it to SafeTensors or GGUF; a pickle runs code when it is loaded, so it is never taken"
    if head[0] == 0x80 and head[1] <= 5 and not _could_be_safetensors(head, _size(file)):
        raise FormatRefused(f"the content is a Python pickle: {what}")
    if head[:2] == b"PK":
        file.seek(0)
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()[:ZIP_ENTRIES_MAX]
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, UnicodeDecodeError, EOFError):
            raise FormatRefused("the content is a damaged zip, not a model") from None
        if any(name.lower().endswith((".pkl", ".pickle")) for name in names):
            raise FormatRefused(f"the content is a PyTorch checkpoint with a pickle inside: {what}")
        raise FormatRefused("the content is a zip, not a model; unpack it and add the GGUF, SafeTensors or ONNX in it")
    if head[:2] in (b"(d", b"(l", b"c_", b"(c") or head.startswith((b"cposix", b"cos\n", b"c__builtin__")):
        raise FormatRefused(f"the content is a Python pickle of the oldest kind: {what}")
    if head.startswith(b"\x89HDF"):
        raise FormatRefused("the content is HDF5 (Keras), which is not taken; convert it to ONNX or SafeTensors")


def _size(file: BinaryIO) -> int:
    here = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(here)
    return size


def _gguf(file: BinaryIO, size: int) -> FormatInfo:
    try:
        header = read_gguf(file, size)
    except GgufError as error:
        raise FormatRefused(f"the GGUF is damaged: {error}; download or convert it again") from None
    template = header.text("tokenizer.chat_template")
    return FormatInfo(
        "gguf",
        architecture=_clean(header.architecture),
        quantization=header.quantization,
        context_tokens=header.number(f"{header.architecture}.context_length"),
        chat_template_sha256=hashlib.sha256(template.encode()).digest() if template else b"",
        name=_clean(header.text("general.name")),
        licence=_clean(header.text("general.license")),
        category="embeddings" if header.architecture in ("bert", "nomic-bert", "jina-bert-v2") else "llm",
    )


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:128]).strip()


def _could_be_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= min(SAFETENSORS_HEADER_BYTES_MAX, size - 8)


def _safetensors(file: BinaryIO, size: int) -> FormatInfo:
    """Source: https://github.com/huggingface/safetensors#format. Offsets must cover the rest of the file exactly."""
    length = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError):
        raise FormatRefused("the SafeTensors header is not JSON; download the file again") from None
    if not isinstance(header, dict) or len(header) > SAFETENSORS_TENSORS_MAX:
        raise FormatRefused("the SafeTensors header is not a map of tensors")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise FormatRefused("the SafeTensors metadata is not a map")
    kinds: dict[str, int] = {}
    ranges = []
    for tensor in header.values():
        dtype, begin, end = _tensor(tensor)
        kinds[dtype] = kinds.get(dtype, 0) + end - begin
        ranges.append((begin, end))
    position = 0
    for begin, end in sorted(ranges):
        if begin != position:
            raise FormatRefused("the SafeTensors tensors overlap or leave holes; download the file again")
        position = end
    if position != size - 8 - length:
        raise FormatRefused("the SafeTensors file is cut short or has bytes behind its end; download it again")
    largest = max(kinds, key=lambda kind: kinds[kind]) if kinds else ""
    architecture = metadata.get("architecture", "")
    return FormatInfo(
        "safetensors", architecture=_clean(architecture) if isinstance(architecture, str) else "", quantization=largest
    )


def _tensor(tensor: object) -> tuple[str, int, int]:
    """(dtype, begin, end) of one tensor of a SafeTensors header. Raises FormatRefused."""
    if isinstance(tensor, dict):
        dtype, shape, offsets = tensor.get("dtype"), tensor.get("shape"), tensor.get("data_offsets")
        if isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2:
            numbers = [*shape, *offsets]
            if all(type(n) is int and 0 <= n < 2**62 for n in numbers) and offsets[0] <= offsets[1]:
                count = 1
                for dimension in shape:
                    count = min(count * dimension, 2**62)
                if dtype not in _DTYPE_BYTES or count * _DTYPE_BYTES[dtype] == offsets[1] - offsets[0]:
                    return dtype[:16], offsets[0], offsets[1]
    raise FormatRefused("a tensor of the SafeTensors header is malformed")
