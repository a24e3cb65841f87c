"""Turning files of the user into a layout and the fields of a manifest: inspect, hash, describe."""

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
from octonode.ipfs.unixfs import UNIXFS_V1_2025, ImportResult, Profile, Progress, import_directory, import_file
from octonode.models.formats import FormatInfo, FormatRefused
from octonode.models.headers import sides
from octonode.models.inspecting import inspect_paths
from octonode.models.manifest import FILES_MAX, ModelFile, safe_path

SIDE_SUFFIXES: Final = sides.SUFFIXES
"""Of files that may stand beside the weights."""


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


def describe(
    path: Path, progress: Progress | None = None, profile: Profile = UNIXFS_V1_2025, *, vouched: bool = False
) -> Described:
    """Inspect and hash the file or directory at `path`; nothing is stored. Raises NotFound, FormatRefused.

    `vouched`: the user says that it is theirs, which TensorRT engines need.
    """
    items = collect(path)
    try:
        info = inspect_paths(items, signed=vouched)
    except FormatRefused as refused:
        reason = refused.message.removeprefix(f"{items[0][0]}: ") if len(items) == 1 else refused.message
        raise FormatRefused(f"{path}: {reason}", detail=refused.detail) from None
    total = sum(item.stat().st_size for _, item in items)
    imported: list[ImportResult] = []
    files: list[ModelFile] = []
    for name, item in items:
        before = sum(result.size_bytes for result in imported)
        result, digest = _hash(item, _shifted(progress, before, total), profile)
        imported.append(result)
        files.append(ModelFile(name, result.size_bytes, result.root.v1, digest, info.files[name]))
    layout = _layout([name for name, _ in items], imported)
    return Described(layout, tuple(item for _, item in items), tuple(files), info)


def _hash(path: Path, progress: Progress | None, profile: Profile) -> tuple[ImportResult, bytes]:
    """The DAG, and the sha256 of the whole file beside it. Raises OctonodeError when the file changes meanwhile."""
    before = path.stat()
    with ThreadPoolExecutor(1) as pool, open(path, "rb") as file:
        whole = pool.submit(lambda: hashlib.file_digest(file, "sha256").digest())
        result = import_file(path, progress, profile)
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
    """Roots are named in version 1, as manifests and the store name them; blocks and their links stay as they are."""
    nodes: dict[Cid, bytes] = {}
    leaves: list[Leaf] = []
    files: list[FileLayout] = []
    alone = len(names) == 1 and "/" not in names[0]
    for number, (name, result) in enumerate(zip(names, imported, strict=True)):
        nodes.update(result.nodes)
        first, profile, form = len(leaves), result.profile, result.profile.leaf_form
        for position, digest in enumerate(result.leaves):
            offset, size = position * profile.leaf_bytes, profile.leaf_size(position, result.size_bytes)
            leaves.append(Leaf(first + position, number, offset, size, digest, form))
        path = "" if alone else name
        files.append(FileLayout(path, result.root.v1, result.size_bytes, first, len(result.leaves), form))
    if alone:
        return Layout(imported[0].root.v1, tuple(files), tuple(leaves), nodes)
    entries = {n: (r.root, r.total_size_bytes) for n, r in zip(names, imported, strict=True)}
    directory = import_directory(entries, imported[0].profile)
    nodes.update(directory.nodes)
    return Layout(directory.root.v1, tuple(files), tuple(leaves), nodes)


def default_name(path: Path) -> str:
    """A model name out of a file name: lower case, letters, digits, dots and dashes."""
    stem = path.stem if path.is_file() else path.name
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("._-")[:96].strip("._-") or "model"
