"""Hashing a held model again, leaf by leaf and file by file."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from octonode.errors import OctonodeError
from octonode.ipfs.cid import Cid
from octonode.ipfs.layout import Layout
from octonode.ipfs.unixfs import Progress
from octonode.models import bitmap
from octonode.models.disk import DISK_CODES
from octonode.models.held import HeldModel
from octonode.models.index import FileRow
from octonode.models.manifest import SignedManifest


@dataclass(frozen=True, slots=True)
class VerifyReport:
    root: Cid
    leaves: int
    bad_leaves: tuple[int, ...]
    """Leaves that were marked as held and are not what they should be."""
    bad_files: tuple[str, ...]
    """Paths whose bytes are not what the manifest says, or cannot be read."""
    missing_leaves: int
    """Leaves not held, the bad ones not counted."""

    @property
    def ok(self) -> bool:
        return not self.bad_leaves and not self.bad_files and not self.missing_leaves


def verify_model(model: HeldModel, manifest: SignedManifest | None, progress: Progress | None = None) -> VerifyReport:
    """Hash everything that is held. Wrong leaves are unmarked; right files that were touched get a new guard."""
    layout = model.layout()
    marked = model.have_bits()
    bad = right = 0
    bad_files: list[str] = []
    promised = {file.root.v1: file.sha256 for file in manifest.manifest.files} if manifest is not None else {}
    for file in model.files:
        good, whole = _check_file(model, file, layout, progress)
        wanted = bitmap.full(file.leaf_count) << file.first_leaf
        bad |= wanted & marked & ~good
        right |= good
        if good == wanted and promised.get(file.root.v1, whole) != whole:
            bad_files.append(file.path or file.stored)
        if good == wanted and file.inode:
            _renew_guard(model, file)
    if bad:
        model.unmark(bad)
        bad_files += [f.path or f.stored for f in model.files if bad >> f.first_leaf & bitmap.full(f.leaf_count)]
    model.refresh()
    missing = len(layout.leaves) - (marked & right).bit_count() - bad.bit_count()
    return VerifyReport(model.root, len(layout.leaves), tuple(bitmap.members(bad)), tuple(bad_files), missing)


def _renew_guard(model: HeldModel, file: FileRow) -> None:
    """So that a file that was touched and is right is served without hashing again."""
    status = model.path_of(file).stat()
    if (status.st_ino, status.st_mtime_ns) == (file.inode, file.mtime_ns):
        return
    try:
        with model.lock:
            model.index.set_guard(file.number, status.st_ino, status.st_mtime_ns)
    except OctonodeError as error:
        if error.code not in DISK_CODES:  # on a disk that is read-only it is hashed at each reading
            raise


def _check_file(model: HeldModel, file: FileRow, layout: Layout, progress: Progress | None) -> tuple[int, bytes]:
    """(the set of its leaves that are right, sha256 of the whole file)."""
    good, whole = 0, hashlib.sha256()
    done = sum(f.size_bytes for f in model.files[: file.number])
    try:
        fd = os.open(model.path_of(file), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0, b""
    try:
        for leaf in layout.leaves[file.first_leaf : file.first_leaf + file.leaf_count]:
            data = os.pread(fd, leaf.size_bytes, leaf.offset_bytes)
            whole.update(data)
            if leaf.holds(data):
                good |= 1 << leaf.number
            done += leaf.size_bytes
            if progress is not None:
                progress(done, layout.size_bytes)
    finally:
        os.close(fd)
    return good, whole.digest()
