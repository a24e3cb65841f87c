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
from octonode.ipfs.blocks import Body
from octonode.ipfs.cid import Cid, CidError
from octonode.ipfs.layout import Layout
from octonode.models import bitmap
from octonode.models.held import BITMAP, DATA, INDEX, HeldModel
from octonode.models.index import Index
from octonode.models.manifest import safe_path
from octonode.models.placing import Placement, check_free, disk_full, fsync_directory, place, preallocate

log = logging.getLogger(__name__)

MODELS_MAX: Final = 4096
DEFAULT_FILE_NAME: Final = "model"
QUOTA_MISSING: Final = "quota_missing_bytes"
"""In the detail of DISK_FULL where the quota is full: how much must go. Up to whoever knows other holders."""
_NEW: Final = ".new-"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class ModelStore:
    """Every method blocks on disk: call them in threads from trio. Safe from several threads and processes."""

    def __init__(self, home: Path, *, disk_bytes_max: int = 0, now_ms: Callable[[], int] = _now_ms) -> None:
        self.directory = home / "models"
        self._disk_bytes_max = disk_bytes_max
        self._now_ms = now_ms
        self._open: dict[Cid, tuple[int, HeldModel]] = {}
        self._told: set[Cid] = set()
        self._lock = threading.RLock()

    def close(self) -> None:
        with self._lock:
            for _, model in self._open.values():
                model.close()
            self._open.clear()

    # -- what is here -------------------------------------------------------------------------------------------

    def roots(self) -> tuple[Cid, ...]:
        """The roots that are here, wholly or in part."""
        found = []
        try:
            names = sorted(entry.name for entry in os.scandir(self.directory) if entry.is_dir())
        except FileNotFoundError:
            return ()
        for name in names[:MODELS_MAX]:
            try:
                found.append(Cid.parse(name))
            except CidError:
                continue
        return tuple(found)

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
                return known[1]
            if known is not None:
                self._open.pop(root)  # threads may still read from it; its connection closes with the last of them
            if inode == 0:
                return None
            model = HeldModel(directory)
            self._open[root] = (inode, model)
            return model

    def require(self, root: Cid) -> HeldModel:
        model = self.get(root)
        if model is None:
            raise NotFound(
                f"{root} is not in the store; fetch it: octonode models fetch cid:{root}", code="MODEL_NOT_FOUND"
            )
        return model

    def held(self) -> list[HeldModel]:
        """All models but the damaged ones, which are told of in the log."""
        found = []
        for root in self.roots():
            try:
                model = self.get(root)
            except OctonodeError as error:
                if root not in self._told:
                    log.warning("%s: %s", root, error.message)
                    self._told.add(root)
                continue
            if model is not None:
                found.append(model)
        return found

    @property
    def disk_bytes(self) -> int:
        """What the models take, the whole of those being fetched."""
        return sum(model.row.size_bytes for model in self.held())

    # -- blocks for the gateway ---------------------------------------------------------------------------------

    def _public(self) -> list[HeldModel]:
        return [model for model in self.held() if model.row.public]

    def block(self, cid: Cid) -> Body | None:
        for model in self._public():
            with contextlib.suppress(FileNotFoundError):  # removed between two looks
                body = model.block(cid)
                if body is not None:
                    return body
        return None

    def run(self, root: Cid, first_byte: int, last_byte: int | None, *, nodes: bool) -> Body | None:
        for model in self._public():
            file = model.file_of(root)
            if file is None:
                continue
            with contextlib.suppress(FileNotFoundError):
                body = model.run(file, first_byte, last_byte, nodes=nodes)
                if body is not None:
                    return body
        return None

    def have(self, root: Cid) -> bytes | None:
        model = self.get(root)
        with contextlib.suppress(FileNotFoundError):
            return model.have() if model is not None and model.row.public else None
        return None

    def read_block(self, cid: Cid) -> bytes | None:
        """A block that we hold, hashed again; None when it is not here."""
        for model in self.held():
            body = model.block(cid)
            if body is None:
                continue
            try:
                data = body.read()
            except (OSError, EOFError):
                continue
            finally:
                body.close()
            if cid.matches(data):
                return data
        return None

    # -- taking models in ---------------------------------------------------------------------------------------

    def prepare(self, layout: Layout, *, file_name: str = DEFAULT_FILE_NAME, public: bool = True) -> HeldModel:
        """A place for `layout`, its disk taken, nothing held yet; the one that is there if there is one.

        Raises OctonodeError (DISK_FULL) before anything is visible.
        """
        existing = self.get(layout.root)
        if existing is not None:
            return existing
        self._check_quota(layout.size_bytes)
        new = self._new_name(layout.root)
        try:
            self._sweep(new)
            stored = [file.path or file_name for file in layout.files]
            assert all(safe_path(name) for name in stored)
            check_free(new, layout.size_bytes)
            for name, file in zip(stored, layout.files, strict=True):
                path = new / DATA / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "xb") as opened:
                    preallocate(opened.fileno(), file.size_bytes)
            self._write_index(new, layout, stored, have=0, public=public)
            return self._publish(new, layout.root)
        except OSError as error:
            raise disk_full(error, self.directory, layout.size_bytes) from error
        finally:
            shutil.rmtree(new, ignore_errors=True)

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
        """Take in files that were hashed just now as `layout`: linked, copied or referenced. Replaces a partial one."""
        existing = self.get(layout.root)
        if existing is not None and existing.row.complete:
            return existing
        new = self._new_name(layout.root)
        try:
            self._sweep(new)
            stored = []
            for file, source in zip(layout.files, sources, strict=True):
                target = new / DATA / (file.path or file_name)
                target.parent.mkdir(parents=True, exist_ok=True)
                placed = place(source, target, placement, progress)
                stored.append(str(source.absolute()) if placed == "reference" else file.path or file_name)
                if placed in ("reflink", "copy"):
                    target.chmod(0o444)
            index = self._write_index(new, layout, stored, have=bitmap.full(len(layout.leaves)), public=public)
            self._guard(index)
            return self._publish(new, layout.root)
        except OSError as error:
            raise disk_full(error, self.directory, layout.size_bytes) from error
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _check_quota(self, size_bytes: int) -> None:
        missing_bytes = self.disk_bytes + size_bytes - self._disk_bytes_max
        if self._disk_bytes_max and missing_bytes > 0:
            oldest = sorted((m for m in self.held() if not m.row.pinned), key=lambda m: m.row.last_used_ms)
            hint = f"; the longest unused is {oldest[0].root}" if oldest else ""
            raise OctonodeError(
                f"models.disk_bytes_max allows {self._disk_bytes_max} bytes, {self.disk_bytes} are taken and "
                f"{size_bytes} are needed: raise it, or remove a model with octonode models rm{hint}",
                code="DISK_FULL",
                detail={QUOTA_MISSING: missing_bytes},
            )

    def _new_name(self, root: Cid) -> Path:
        return self.directory / f"{_NEW}{os.getpid()}-{threading.get_ident()}-{root.text}"

    def _sweep(self, new: Path) -> None:
        """Make the hidden directory `new`; those that dead processes left behind are removed first."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for entry in self.directory.glob(f"{_NEW}*"):
            pid = entry.name.removeprefix(_NEW).partition("-")[0]
            if not pid.isdigit() or not _alive(int(pid)):
                shutil.rmtree(entry, ignore_errors=True)
        shutil.rmtree(new, ignore_errors=True)
        (new / DATA).mkdir(parents=True)

    def _write_index(self, new: Path, layout: Layout, stored: Sequence[str], *, have: int, public: bool) -> Path:
        for leaf in layout.leaves:
            if leaf.size_bytes == 0:  # nothing to fetch
                have |= 1 << leaf.number
        index = Index.create(new / INDEX, layout, stored, public=public, now_ms=self._now_ms())
        index.close()
        with open(new / BITMAP, "xb") as file:
            file.write(bitmap.to_bytes(have, len(layout.leaves)))
            file.flush()
            os.fsync(file.fileno())
        return new

    def _guard(self, directory: Path) -> None:
        model = HeldModel(directory)
        for file in model.files:
            status = model.path_of(file).stat()
            model.index.set_guard(file.number, status.st_ino, status.st_mtime_ns)
        model.index.set_flags(complete=1)
        model.close()

    def _publish(self, new: Path, root: Cid) -> HeldModel:
        """Make the finished directory visible in one step, in place of a partial one if need be."""
        target = self.directory / root.v1.text
        fsync_directory(new)
        with self._lock:
            if target.exists():
                old = self.directory / f"{_NEW}{os.getpid()}-old-{root.text}"
                target.rename(old)
                new.rename(target)
                shutil.rmtree(old, ignore_errors=True)
            else:
                new.rename(target)
            fsync_directory(self.directory)
            model = self.get(root)
        assert model is not None
        return model

    # -- keeping and letting go ---------------------------------------------------------------------------------

    def set_flags(self, root: Cid, *, pinned: bool | None = None, public: bool | None = None) -> None:
        model = self.require(root)
        flags = {name: int(value) for name, value in (("pinned", pinned), ("public", public)) if value is not None}
        if flags:
            with model.lock:
                model.index.set_flags(**flags)

    def touch(self, root: Cid) -> None:
        """The model was used just now: what eviction goes by."""
        model = self.get(root)
        if model is not None:
            with model.lock:
                model.index.set_flags(last_used_ms=self._now_ms())

    def remove(self, root: Cid, *, force: bool = False) -> int:
        """Remove a model; the bytes it took. Raises NotFound, or Refused (FORBIDDEN) when it is pinned."""
        directory = self.directory / root.v1.text
        try:
            row = self.require(root).row
        except NotFound:
            raise
        except OctonodeError:  # damaged: removing it is what there is to do
            row = None
        if row is not None and row.pinned and not force:
            raise Refused(f"{root} is pinned; unpin it, or remove it with --force", code="FORBIDDEN")
        with self._lock:
            doomed = self.directory / f"{_NEW}{os.getpid()}-rm-{root.v1.text}"
            directory.rename(doomed)
            self._open.pop(root.v1, None)
        fsync_directory(self.directory)
        shutil.rmtree(doomed, ignore_errors=True)
        return row.size_bytes if row is not None else 0
