"""What a model is, told by the content of its files and never by their names, before an engine sees a byte. Sans-IO but
for the files it is given. Page: protocols/manifest.md, section Formats.

One entry, `inspect_model`, for one file and for a directory: used by `models add`, by imports, and before every load.
"""

from __future__ import annotations

import io
from collections.abc import Sequence, Set
from typing import BinaryIO, Final, cast

from octonode.models.headers import ctranslate2, families, onnx, pickles, safetensors, sides, tensorrt
from octonode.models.headers.description import CacheGroup, FileBytes, FormatInfo, FormatRefused, Shape

__all__ = [
    "SCRIPTED_MAGIC",
    "CacheGroup",
    "FileBytes",
    "FormatInfo",
    "FormatRefused",
    "Shape",
    "inspect_model",
    "sniff",
]

SCRIPTED_MAGIC: Final = b"octonode scripted model 1\n"
"""First line of a model of the scripted engine: for test networks, which need no weights. What follows is filler."""
FILES_MAX: Final = 1024
_BYTES_MIN: Final = 8


def sniff(file: BinaryIO) -> FormatInfo:
    """What one file holds, alone and without a name. Raises FormatRefused that says why and what to do."""
    size = file.seek(0, io.SEEK_END)
    return inspect_model([FileBytes("model", size, lambda: cast(BinaryIO, _Borrowed(file)))])


def inspect_model(
    files: Sequence[FileBytes],
    *,
    signed: bool = False,
    domains: Set[str] = onnx.STANDARD_DOMAINS | onnx.ENGINE_DOMAINS,
) -> FormatInfo:
    """What the files of one model are together. Raises FormatRefused that names the file, the reason, and what to do.

    `signed`: the files come under a signed manifest of a publisher who is trusted, which TensorRT engines need.
    `domains`: ONNX operators that the engines here know by themselves. One file is open at a time; work and memory are
    bounded whatever the bytes are. OSError of a file goes through.
    """
    if not 0 < len(files) <= FILES_MAX or len({each.path for each in files}) != len(files):
        raise FormatRefused(f"a model has 1 to {FILES_MAX} files, each path once; here are {len(files)}")
    kinds = {each.path: _kind(each) for each in files}
    by_kind = {kind: [each for each in files if kinds[each.path] == kind] for kind in set(kinds.values())}
    external: set[str] = set()
    found: list[FormatInfo] = []
    sizes = {each.path: each.size_bytes for each in files}
    if "scripted" in by_kind:
        found.append(FormatInfo("scripted", name="scripted", opens=by_kind["scripted"][0].path))
    if "gguf" in by_kind:
        found.append(families.gguf(by_kind["gguf"]))
    if "onnx" in by_kind:
        info, external = families.onnx(by_kind["onnx"], sizes, domains)
        found.append(info)
    rest = [each for each in by_kind.get("other", ()) if each.path not in external]
    if "safetensors" in by_kind:
        weights = [each for each in by_kind["safetensors"] if each.path not in external]
        found += [families.safetensors(weights, rest)] if weights else []
    if "ctranslate2" in by_kind:
        found.append(families.ctranslate2(by_kind["ctranslate2"]))
    if "tensorrt" in by_kind:
        found.append(families.tensorrt(by_kind["tensorrt"], rest, signed=signed))
    for each in files:
        if each.path in external and kinds[each.path] != "onnx":
            sides.check_weights(each)
            kinds[each.path] = "onnx"
    if not found:
        _refuse_nothing(rest)
    side = sides.check(rest, alone=len(files) == 1)
    return sides.joined(found, side, kinds, alone=len(files) == 1)


def _kind(file: FileBytes) -> str:
    """`gguf`, `safetensors`, `onnx`, `tensorrt`, `ctranslate2`, `scripted`, or `other` for what is none of them."""
    sides.check_name(file.path)
    with file.open() as opened:
        head = opened.read(4096)
        if head.startswith(SCRIPTED_MAGIC):
            return "scripted"
        if head.startswith(b"GGUF"):
            return "gguf"
        if tensorrt.looks_like_engine(head):
            return "tensorrt"
        if ctranslate2.looks_like_ctranslate2(head):
            return "ctranslate2"
        if safetensors.could_be_safetensors(head, file.size_bytes):
            return "safetensors"
        return "onnx" if onnx.looks_like_onnx(opened, file.size_bytes) else "other"


def _refuse_nothing(rest: Sequence[FileBytes]) -> None:
    """There is no model in the files: say of the largest what it is."""
    largest = max(rest, key=lambda each: each.size_bytes)
    where = {"file": largest.path}
    if largest.size_bytes < _BYTES_MIN:
        text = f"a file of {largest.size_bytes} bytes is not a model; GGUF, SafeTensors and ONNX are taken"
        raise FormatRefused(text, detail=where)
    for each in sorted(rest, key=lambda each: each.path != largest.path):
        with each.open() as opened:
            reason = pickles.refusal(opened.read(pickles.HEAD_BYTES), each.size_bytes)
        if reason:
            raise FormatRefused(sides.named(each.path, reason), detail={"file": each.path})
    text = "the content is not GGUF, SafeTensors or ONNX, whatever the file is called"
    raise FormatRefused(sides.named(largest.path, text), detail=where)


class _Borrowed(io.RawIOBase):
    """A file of the caller's, from its start; closing it leaves the caller's open."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        file.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
