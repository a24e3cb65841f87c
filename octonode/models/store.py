"""The models of a node on disk: one directory a root under `OCTONODE_HOME/models/`, and blocks served out of them."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from octonode.errors import NotFound, OctonodeError, Refused
from octonode.ipfs.blocks import Body, FoundFile
from octonode.ipfs.cid import Cid, CidError
from octonode.ipfs.layout import Layout
from octonode.models import bitmap
from octonode.models.block_index import BlockIndex
from octonode.models.disk import DISK_CODES, disk_error
from octonode.models.held import DATA, INDEX, HeldModel
from octonode.models.leases import ModelLeases
from octonode.models.manifest import safe_path
from octonode.models.paths import find_file
from octonode.models.placing import Placement, check_free, fsync_directory, place, preallocate
from octonode.models.staging import Staging, guard, write_index

log = logging.getLogger(__name__)

MODELS_MAX: Final = 4096
OPEN_MAX: Final = 64
"""Models whose index has an open connection; the one unused for longest rests, and is opened again when needed."""
DEFAULT_FILE_NAME: Final = "model"
QUOTA_MISSING: Final = "quota_missing_bytes"
"""In the detail of DISK_FULL where the quota is full: how much must go. Up to whoever knows other holders."""
_SETTLED_NS: Final = 1_000_000_000


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class ModelStore:
    """Every method blocks on disk: call them in threads from trio. Safe from several threads and processes."""

    def __init__(self, home: Path, *, disk_bytes_max: int = 0, now_ms: Callable[[], int] = _now_ms) -> None:
        self.directory = home / "models"
        self.staging = Staging(self.directory)
        self.disk_bytes_max = disk_bytes_max
        self._now_ms = now_ms
        self._open: dict[Cid, tuple[int, HeldModel]] = {}
        self._recent: dict[Cid, None] = {}
        """Those whose index may be open, the latest last."""
        self._told: set[Cid] = set()
        self._lock = threading.RLock()
        self._blocks = BlockIndex(home / "blocks.sqlite")
        self._blocks_lock = threading.Lock()
        self._blocks_at: tuple[int, int, int] | None = None

    def close(self) -> None:
        with self._lock:
            for _, model in self._open.values():
                model.close()
            self._open.clear()
        self._blocks.close()

    # -- what is here -------------------------------------------------------------------------------------------

    def roots(self) -> tuple[Cid, ...]:
        """The roots that are here, wholly or in part."""
        found = []
        try:
            names = sorted(entry.name for entry in os.scandir(self.directory) if entry.is_dir())
        except FileNotFoundError:
            return ()
        for name in names:
            try:
                found.append(Cid.parse(name))
            except CidError:
                continue
        return tuple(found[:MODELS_MAX])

    def get(self, root: Cid) -> HeldModel | None:
        """The model of `root`, or None. Another process may have added or removed it a moment ago."""
        root = root.v1
        directory = self.directory / root.text
        with self._lock:
            try:
                inode = (directory / INDEX).stat().st_ino
            except OSError:
                inode = 0
            known = self._open.get(root)
            if known is not None and known[0] == inode:
                self._note_use(root)
                return known[1]
            self._open.pop(root, None)
            if inode == 0:  # threads may still read from it; its connection closes with the last of them
                return None
            model = HeldModel(directory)
            model.on_nodes = lambda digests: self._blocks.add(root, digests)
            self._open[root] = (inode, model)
            self._note_use(root)
            return model

    def _note_use(self, root: Cid) -> None:
        self._recent.pop(root, None)
        self._recent[root] = None
        if len(self._recent) > OPEN_MAX:
            longest = next(iter(self._recent))
            del self._recent[longest]
            if longest in self._open:
                self._open[longest][1].rest()

    def require(self, root: Cid) -> HeldModel:
        model = self.get(root)
        if model is None:
            raise NotFound(
                f"{root} is not in the store; fetch it: octonode models fetch cid:{root}", code="MODEL_NOT_FOUND"
            )
        return model

    def held(self) -> list[HeldModel]:
        """All models but the damaged ones, which are told of in the log."""
        return [model for root in self.roots() if (model := self._readable(root)) is not None]

    def _readable(self, root: Cid) -> HeldModel | None:
        try:
            return self.get(root)
        except OctonodeError as error:
            if root not in self._told:
                log.warning("%s: %s", root, error.message)
                self._told.add(root)
        except FileNotFoundError:
            pass
        return None

    @property
    def disk_bytes(self) -> int:
        """What the models take, the whole of those being fetched."""
        return sum(model.row.size_bytes for model in self.held())

    # -- blocks for the gateway ---------------------------------------------------------------------------------

    def having(self, cid: Cid, *, private: bool = False) -> list[HeldModel]:
        """The models that have this block or will when they are whole, the public ones alone unless `private`."""
        self.index_blocks()
        found = (self._readable(root) for root in self._blocks.find(cid))
        with contextlib.suppress(FileNotFoundError):  # removed between two looks
            return [model for model in found if model is not None and (private or model.row.public)]
        return []

    def sharing(self, layout: Layout) -> list[HeldModel]:
        """The other models that have a leaf of `layout` too."""
        self.index_blocks()
        roots = self._blocks.sharing(leaf.digest for leaf in layout.leaves) - {layout.root.v1}
        return [model for root in sorted(roots) if (model := self._readable(root)) is not None]

    def index_blocks(self) -> None:
        """Take note of models that came or went since the last look; one look at a directory when none did."""
        try:
            status = self.directory.stat()
        except OSError:
            return
        if (status.st_ino, status.st_mtime_ns, self._blocks.generation) == self._blocks_at:
            return
        with self._blocks_lock:
            here, known = set(self.roots()), self._blocks.roots()
            for root in here - known:
                model = self._readable(root)
                if model is not None:
                    self._blocks.add(root, model.digests())
            for root in known - here:
                self._blocks.remove(root)
            settled = time.time_ns() - status.st_mtime_ns > _SETTLED_NS  # another change may have the same time else
            stamp = (status.st_ino, status.st_mtime_ns, self._blocks.generation)
            self._blocks_at = stamp if settled else None

    def block(self, cid: Cid) -> Body | None:
        for model in self.having(cid):
            with contextlib.suppress(FileNotFoundError):
                body = model.block(cid)
                if body is not None:
                    return body
        return None

    def run(self, root: Cid, first_byte: int, last_byte: int | None, *, nodes: bool) -> Body | None:
        for model in self.having(root):
            file = model.file_of(root)
            if file is None:
                continue
            with contextlib.suppress(FileNotFoundError):
                body = model.run(file, first_byte, last_byte, nodes=nodes)
                if body is not None:
                    return body
        return None

    def file(self, root: Cid, path: tuple[str, ...]) -> FoundFile | None:
        return find_file(self.having(root), root, path)

    def have(self, root: Cid) -> bytes | None:
        model = self.get(root)
        with contextlib.suppress(FileNotFoundError):
            return model.offered() if model is not None and model.row.public else None
        return None

    def read_block(self, cid: Cid) -> bytes | None:
        """A block that we hold, hashed again; None when it is not here."""
        for model in self.having(cid, private=True):
            try:
                body = model.block(cid)
                data = body.read() if body is not None else b""
            except (OSError, EOFError):
                continue
            finally:
                if body is not None:
                    body.close()
            if body is not None and cid.matches(data):
                return data
        return None

    # -- taking models in ---------------------------------------------------------------------------------------

    def prepare(self, layout: Layout, *, file_name: str = DEFAULT_FILE_NAME, public: bool = True) -> HeldModel:
        """A place for `layout`, its disk taken, nothing held yet; the one that is there if there is one.

        Raises OctonodeError (DISK_FULL, READ_ONLY, DISK_FAILED) before anything is visible.
        """
        existing = self.get(layout.root)
        if existing is not None:
            return existing
        self.check_quota(layout.size_bytes)
        try:
            with self.staging.fresh(layout.root) as new:
                stored = [file.path or file_name for file in layout.files]
                assert all(safe_path(name) for name in stored)
                check_free(new, layout.size_bytes)
                for name, file in zip(stored, layout.files, strict=True):
                    path = new / DATA / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with open(path, "xb") as opened:
                        preallocate(opened.fileno(), file.size_bytes)
                write_index(new, layout, stored, have=0, public=public, now_ms=self._now_ms())
                return self._publish(new, layout.root)
        except OSError as error:
            raise disk_error(error, self.directory, layout.size_bytes) from error

    def adopt(
        self,
        layout: Layout,
        sources: Sequence[Path],
        *,
        placement: Placement = "auto",
        file_name: str = DEFAULT_FILE_NAME,
        public: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> HeldModel:
        """Take in files that were hashed just now as `layout`: linked, copied or referenced. Replaces a partial one.

        Raises OctonodeError (DISK_FULL, READ_ONLY, DISK_FAILED; IN_USE while that one is being fetched).
        """
        existing = self.get(layout.root)
        if existing is not None and existing.row.complete:
            return existing
        try:
            with self.staging.fresh(layout.root) as new:
                stored = []
                for file, source in zip(layout.files, sources, strict=True):
                    target = new / DATA / (file.path or file_name)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    placed = place(source, target, placement, progress)
                    stored.append(str(source.absolute()) if placed == "reference" else file.path or file_name)
                    if placed in ("reflink", "copy"):
                        target.chmod(0o444)
                have = bitmap.full(len(layout.leaves))
                guard(write_index(new, layout, stored, have=have, public=public, now_ms=self._now_ms()))
                return self._publish(new, layout.root)
        except OSError as error:
            raise disk_error(error, self.directory, layout.size_bytes) from error

    def check_quota(self, size_bytes: int) -> None:
        """Raises DISK_FULL, with QUOTA_MISSING in its detail, when `size_bytes` more do not fit."""
        missing_bytes = self.disk_bytes + size_bytes - self.disk_bytes_max if self.disk_bytes_max else 0
        if missing_bytes > 0:
            oldest = sorted((m for m in self.held() if not m.row.pinned), key=lambda m: m.row.last_used_ms)
            hint = f"; the longest unused is {oldest[0].root}" if oldest else ""
            raise OctonodeError(
                f"models.disk_bytes_max allows {self.disk_bytes_max} bytes, {self.disk_bytes} are taken and "
                f"{size_bytes} are needed: raise it, or remove a model with octonode models rm{hint}",
                code="DISK_FULL",
                detail={QUOTA_MISSING: missing_bytes},
            )

    def _publish(self, new: Path, root: Cid) -> HeldModel:
        """Make the finished directory visible in one step, in place of a partial one if need be."""
        target = self.directory / root.v1.text
        fsync_directory(new)
        with self._lock:
            if target.exists():
                old = self.staging.name(root, "old")
                with ModelLeases(target).removing(root.text, force=True):
                    target.rename(old)
                    new.rename(target)
                shutil.rmtree(old, ignore_errors=True)
            else:
                new.rename(target)
            fsync_directory(self.directory)
            model = self.get(root)
        assert model is not None
        self._blocks.add(root, model.digests())
        return model

    # -- keeping and letting go ---------------------------------------------------------------------------------

    def set_flags(self, root: Cid, *, pinned: bool | None = None, public: bool | None = None) -> None:
        """Raises NotFound, OctonodeError (READ_ONLY, DISK_FULL, DISK_FAILED)."""
        model = self.require(root)
        flags = {name: int(value) for name, value in (("pinned", pinned), ("public", public)) if value is not None}
        if flags:
            with model.lock:
                model.index.set_flags(**flags)

    def touch(self, root: Cid) -> None:
        """The model was used just now: what eviction goes by. On a disk that takes no writes nothing is noted."""
        model = self.get(root)
        if model is None:
            return
        try:
            with model.lock:
                model.index.set_flags(last_used_ms=self._now_ms())
        except OctonodeError as error:
            if error.code not in DISK_CODES:
                raise

    def remove(self, root: Cid, *, force: bool = False) -> int:
        """Remove a model; the bytes it took.

        Raises NotFound, Refused (FORBIDDEN when it is pinned and not `force`; IN_USE that says who has it open, peers
        that are handed blocks do not count with `force`), OctonodeError (READ_ONLY, DISK_FAILED).
        """
        root = root.v1
        directory = self.directory / root.text
        try:
            row = self.require(root).row
        except NotFound:
            raise
        except OctonodeError:  # damaged: removing it is what there is to do
            row = None
        if row is not None and row.pinned and not force:
            raise Refused(f"{root} is pinned; unpin it, or remove it with --force", code="FORBIDDEN")
        doomed = self.staging.name(root, "rm")
        try:
            with self._lock, ModelLeases(directory).removing(root.text, force=force):
                directory.rename(doomed)
                self._open.pop(root, None)
            fsync_directory(self.directory)
        except OSError as error:
            raise disk_error(error, directory) from error
        shutil.rmtree(doomed, ignore_errors=True)
        self._blocks.remove(root)
        return row.size_bytes if row is not None else 0
