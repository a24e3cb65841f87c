"""Hidden directories in which a model is made ready before anybody sees it, and what dead processes left of them."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from octonode.ipfs.cid import Cid
from octonode.ipfs.layout import Layout
from octonode.models import bitmap
from octonode.models.held import BITMAP, DATA, INDEX, HeldModel
from octonode.models.index import Index
from octonode.models.leases import LOCK, alive

_NEW: Final = ".new-"
_numbers = itertools.count(1)


class Staging:
    """Below the directory of the models, on the same file system: a rename makes the result visible."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def fresh(self, root: Cid) -> Iterator[Path]:
        """An empty directory with a `data/` in it; whatever is still there after the block is removed."""
        new = self.name(root)
        self._directory.mkdir(parents=True, exist_ok=True)
        self.sweep()
        try:
            (new / DATA).mkdir(parents=True)
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def name(self, root: Cid, why: str = "new") -> Path:
        """A hidden name that no other process and no other thread uses."""
        return self._directory / f"{_NEW}{os.getpid()}-{why}-{next(_numbers)}-{root.v1.text}"

    def orphans(self) -> list[tuple[Path, int]]:
        """(directory, its bytes on disk) of what processes that are gone left behind."""
        found = []
        for entry in self._directory.glob(f"{_NEW}*"):
            pid = entry.name.removeprefix(_NEW).partition("-")[0]
            if not pid.isdigit() or not alive(int(pid)):
                found.append((entry, disk_bytes(entry)))
        return found

    def sweep(self) -> int:
        """Remove them; the bytes freed."""
        freed = 0
        for entry, size_bytes in self.orphans():
            shutil.rmtree(entry, ignore_errors=True)
            freed += 0 if entry.exists() else size_bytes
        return freed


def disk_bytes(directory: Path) -> int:
    """What the files below take on disk; of files with other names elsewhere nothing, since removing frees nothing."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            total += status.st_blocks * 512 if status.st_nlink == 1 or path.is_dir() else 0
    return total


def write_index(new: Path, layout: Layout, stored: Sequence[str], *, have: int, public: bool, now_ms: int) -> Path:
    """The index, the bitmap and the lock file of a model that holds the leaves in `have`. Raises OSError."""
    for leaf in layout.leaves:
        if leaf.size_bytes == 0:  # nothing to fetch
            have |= 1 << leaf.number
    index = Index.create(new / INDEX, layout, stored, public=public, now_ms=now_ms)
    index.close()
    (new / LOCK).touch()
    with open(new / BITMAP, "xb") as file:
        file.write(bitmap.to_bytes(have, len(layout.leaves)))
        file.flush()
        os.fsync(file.fileno())
    return new


def guard(directory: Path) -> None:
    """Every leaf is there: take down inode and time of the files, and mark the model complete."""
    model = HeldModel(directory)
    try:
        for file in model.files:
            status = model.path_of(file).stat()
            model.index.set_guard(file.number, status.st_ino, status.st_mtime_ns)
        model.index.set_flags(complete=1)
    finally:
        model.close()
