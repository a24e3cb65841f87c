"""Writing verified leaves into a model: pwrite, sync in groups, then mark. One writer a model, in all processes."""

from __future__ import annotations

import fcntl
import os
import threading
from typing import Final

from octonode.errors import OctonodeError
from octonode.ipfs.layout import Leaf
from octonode.models import bitmap
from octonode.models.disk import disk_error
from octonode.models.held import DATA, HeldModel
from octonode.models.index import FileRow
from octonode.models.placing import copy, fsync_directory, preallocate

SYNC_BYTES: Final = 64 * 1024 * 1024
"""Bytes written before they are synced and marked: what a crash costs at most, beside what is in flight."""
WRITE_BYTES: Final = 256 * 1024
"""In one go. For a write of 1 MiB Linux looks for as much memory in one piece, which took ten times as long as the
write itself where memory was in fragments (6.18, ext4)."""
WRITE_LOCK: Final = "write.lock"


class LeafWriter:
    """Raises OctonodeError (ALREADY_RUNNING) when somebody else writes this model. `close` in the end."""

    def __init__(self, model: HeldModel) -> None:
        self.model = model
        try:
            self._lock_fd = os.open(model.directory / WRITE_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise disk_error(error, model.directory, model.row.size_bytes) from error
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock_fd)
            raise OctonodeError(
                f"{model.root} is already being written by another octonode process; wait for it or stop it",
                code="ALREADY_RUNNING",
            ) from None
        try:
            self._lease = model.leases.take("fetch", "a fetch")
        except OctonodeError:
            os.close(self._lock_fd)
            raise
        self._fds: dict[int, int] = {}
        self._pending_bytes = 0
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()

    @property
    def pending_bytes(self) -> int:
        """Bytes written and not yet synced."""
        return self._pending_bytes

    def write(self, leaf: Leaf, data: memoryview | bytes) -> None:
        """Write one verified leaf. Raises OctonodeError (DISK_FULL); nothing is marked before `sync`."""
        assert len(data) == leaf.size_bytes
        file = self.model.files[leaf.file]
        try:
            fd = self._fd(file)
            view, offset = memoryview(data), leaf.offset_bytes
            while view:
                written = os.pwrite(fd, view[:WRITE_BYTES], offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise disk_error(error, self.model.path_of(file), self.model.row.size_bytes) from error
        with self._lock:
            self.model.unsynced |= 1 << leaf.number
            self._pending_bytes += leaf.size_bytes

    def sync(self) -> None:
        """Make what was written durable, then mark it as held."""
        with self._sync_lock:
            with self._lock:
                done, self._pending_bytes = self.model.unsynced, 0
                fds = list(self._fds.values())
            if not done:
                return
            try:
                for fd in fds:
                    os.fdatasync(fd)
                self.model.change_bits(add=done)
            except OSError as error:
                raise disk_error(error, self.model.directory) from error
            finally:
                with self._lock:
                    self.model.unsynced &= ~done

    def finish(self) -> None:
        """Sync; when every leaf is held, make the files read-only and the model complete."""
        self.sync()
        try:
            self._complete()
        except OSError as error:
            raise disk_error(error, self.model.directory) from error

    def _complete(self) -> None:
        model = self.model
        if model.have_bits() != bitmap.full(model.row.leaf_count):
            return
        for file in model.files:
            path = model.path_of(file)
            if not os.path.isabs(file.stored) and path.stat().st_nlink == 1:
                path.chmod(0o444)
            with open(path, "rb") as opened:
                os.fsync(opened.fileno())
                status = os.fstat(opened.fileno())
            with model.lock:
                model.index.set_guard(file.number, status.st_ino, status.st_mtime_ns)
        with model.lock:
            model.index.set_flags(complete=1)
        model.refresh()

    def close(self) -> None:
        """Idempotent."""
        fds, self._fds = self._fds, {}
        for fd in fds.values():
            os.close(fd)
        if self._lock_fd >= 0:
            self._lease.close()
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _fd(self, file: FileRow) -> int:
        with self._lock:
            if file.number not in self._fds:
                self._make_writable(file)
                path = self.model.path_of(self.model.files[file.number])
                self._fds[file.number] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            return self._fds[file.number]

    def _make_writable(self, file: FileRow) -> None:
        """A file under repair becomes our own first: the user's file, linked or referenced, is never written."""
        model = self.model
        path = model.path_of(file)
        own = model.directory / DATA / (f"repaired-{file.number}" if os.path.isabs(file.stored) else file.stored)
        if path == own and path.exists() and path.stat().st_nlink == 1:
            path.chmod(0o644)
        else:
            temporary = own.with_name(f".{own.name}.new")
            if path.exists():
                copy(path, temporary)
            with open(temporary, "ab") as opened:
                os.ftruncate(opened.fileno(), min(os.fstat(opened.fileno()).st_size, file.size_bytes))
            temporary.replace(own)
            fsync_directory(own.parent)
        if own.stat().st_size < file.size_bytes:
            with open(own, "r+b") as opened:
                preallocate(opened.fileno(), file.size_bytes)
        stored = str(own.relative_to(model.directory / DATA))
        if file.inode or stored != file.stored:
            with model.lock:
                model.index.set_guard(file.number, 0, 0)
                model.index.set_stored(file.number, stored)
            model.refresh()
