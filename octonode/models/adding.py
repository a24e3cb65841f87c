"""Turning files of the user into a layout and the fields of a manifest: sniff, hash, describe."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from octonode.errors import NotFound, OctonodeError
from octonode.ipfs.cid import Cid
from octonode.ipfs.layout import FileLayout, Layout, Leaf
from octonode.ipfs.unixfs import LEAF_BYTES, ImportResult, Progress, import_directory, import_file
from octonode.models.formats import FormatInfo, FormatRefused, sniff
from octonode.models.manifest import FILES_MAX, ModelFile, safe_path

_SIDE_FILE_BYTES_MAX: Final = 256 * 1024 * 1024
_SIDE_SUFFIXES: Final = (".json", ".txt", ".md", ".model", ".jinja", ".yaml", ".yml", ".tiktoken", ".proto")


@dataclass(frozen=True, slots=True)
class Described:
    """What was found on disk, hashed once for the DAG and once for the plain sha256."""

    layout: Layout
    sources: tuple[Path, ...]
    files: tuple[ModelFile, ...]
    info: FormatInfo


def collect(path: Path) -> list[tuple[str, Path]]:
    """(path in the model, path on disk), sorted by the former. Raises NotFound, FormatRefused."""
    if path.is_file():
        name = path.name if safe_path(path.name) else "model"
        return [(name, path)]
    if not path.is_dir():
        raise NotFound(f"{path} does not exist or is not a file")
    found = []
    for item in sorted(path.rglob("*")):
        relative = item.relative_to(path).as_posix()
        if any(part.startswith(".") for part in relative.split("/")) or not item.is_file():
            continue
        if not safe_path(relative):
            raise FormatRefused(f"{relative!r} cannot be a path in a model; rename it")
        found.append((relative, item))
    if not 0 < len(found) <= FILES_MAX:
        raise FormatRefused(f"{path} has {len(found)} files; a model has 1 to {FILES_MAX}")
    return sorted(found, key=lambda pair: pair[0].encode())


def describe(path: Path, progress: Progress | None = None) -> Described:
    """Sniff and hash the file or directory at `path`; nothing is stored. Raises NotFound, FormatRefused."""
    items = collect(path)
    infos = [_sniff(item, alone=len(items) == 1) for _, item in items]
    models = [info for info in infos if info is not None]
    if not models:
        raise FormatRefused(f"{path} has no GGUF, SafeTensors or ONNX file in it")
    total = sum(item.stat().st_size for _, item in items)
    imported: list[ImportResult] = []
    files: list[ModelFile] = []
    for (name, item), info in zip(items, infos, strict=True):
        before = sum(result.size_bytes for result in imported)
        result, digest = _hash(item, _shifted(progress, before, total))
        imported.append(result)
        files.append(ModelFile(name, result.size_bytes, result.root, digest, info.format if info else "other"))
    layout = _layout([name for name, _ in items], imported)
    return Described(layout, tuple(item for _, item in items), tuple(files), models[0])


def _sniff(path: Path, *, alone: bool) -> FormatInfo | None:
    """None for a file that stands beside the weights, such as a tokenizer."""
    with open(path, "rb") as file:
        try:
            return sniff(file)
        except FormatRefused as error:
            small = path.stat().st_size <= _SIDE_FILE_BYTES_MAX
            if not alone and small and path.suffix.lower() in _SIDE_SUFFIXES and "pickle" not in error.message:
                return None
            raise FormatRefused(f"{path}: {error.message}") from None


def _hash(path: Path, progress: Progress | None) -> tuple[ImportResult, bytes]:
    """The DAG, and the sha256 of the whole file beside it. Raises OctonodeError when the file changes meanwhile."""
    before = path.stat()
    with ThreadPoolExecutor(1) as pool, open(path, "rb") as file:
        whole = pool.submit(lambda: hashlib.file_digest(file, "sha256").digest())
        result = import_file(path, progress)
        digest = whole.result()
    after = path.stat()
    if _stamp(before) != _stamp(after) or result.size_bytes != after.st_size:
        raise OctonodeError(f"{path} changed while it was read; wait until nothing writes it, and add it again")
    return result, digest


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _shifted(progress: Progress | None, before: int, total: int) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, _: progress(before + done, total)


def _layout(names: list[str], imported: list[ImportResult]) -> Layout:
    nodes: dict[Cid, bytes] = {}
    leaves: list[Leaf] = []
    files: list[FileLayout] = []
    alone = len(names) == 1 and "/" not in names[0]
    for number, (name, result) in enumerate(zip(names, imported, strict=True)):
        nodes.update(result.nodes)
        first = len(leaves)
        for position, digest in enumerate(result.leaves):
            offset = position * LEAF_BYTES
            leaves.append(Leaf(first + position, number, offset, min(LEAF_BYTES, result.size_bytes - offset), digest))
        files.append(FileLayout("" if alone else name, result.root, result.size_bytes, first, len(result.leaves)))
    if alone:
        return Layout(imported[0].root, tuple(files), tuple(leaves), nodes)
    directory = import_directory({n: (r.root, r.total_size_bytes) for n, r in zip(names, imported, strict=True)})
    nodes.update(directory.nodes)
    return Layout(directory.root, tuple(files), tuple(leaves), nodes)


def default_name(path: Path) -> str:
    """A model name out of a file name: lower case, letters, digits, dots and dashes."""
    stem = path.stem if path.is_file() else path.name
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("._-")[:96].strip("._-") or "model"
