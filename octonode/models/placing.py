"""Bringing a user's file into the store without a second copy where the file system allows it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from octonode.errors import OctonodeError
from octonode.models.disk import disk_error

Placement = Literal["auto", "copy", "reference"]
Placed = Literal["reflink", "link", "copy", "reference"]

FREE_BYTES_MARGIN: Final = 64 * 1024 * 1024
"""Left free on the disk: the index, logs and other programs need some."""
_FICLONE: Final = 0x40049409
_COPY_BYTES: Final = 8 * 1024 * 1024


def check_free(path: Path, needed_bytes: int) -> None:
    """Raises OctonodeError (DISK_FULL) when `needed_bytes` do not fit beside the margin."""
    free = shutil.disk_usage(path).free
    if free < needed_bytes + FREE_BYTES_MARGIN:
        raise OctonodeError(
            f"{needed_bytes / 2**20:.0f} MiB are needed and {free / 2**20:.0f} MiB are free at {path} "
            f"({FREE_BYTES_MARGIN // 2**20} MiB stay free); free some space: octonode models gc",
            code="DISK_FULL",
        )


def preallocate(fd: int, size_bytes: int) -> None:
    """Take the disk now, so that a full disk shows before the first byte is fetched. Raises OSError."""
    if size_bytes == 0:
        return
    try:
        os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(fd, size_bytes)


def place(
    source: Path, target: Path, placement: Placement, progress: Callable[[int, int], None] | None = None
) -> Placed:
    """Put `source` at `target`: a reflink, else a hard link, else a copy. Raises OctonodeError (DISK_FULL) or OSError.

    A hard link shares its bytes with the user's file: the guard on inode, size and time finds a change.
    """
    if placement == "reference":
        return "reference"
    if _reflink(source, target):
        return "reflink"
    if placement == "auto":
        try:
            os.link(source, target)
            return "link"
        except OSError:
            target.unlink(missing_ok=True)
    copy(source, target, progress)
    return "copy"


def _reflink(source: Path, target: Path) -> bool:
    with open(source, "rb") as old, open(target, "wb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError:
            done = False
        else:
            os.fsync(new.fileno())
            done = True
    if not done:
        target.unlink()
    return done


def copy(source: Path, target: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """A durable copy in the kernel where it can. Raises OctonodeError (DISK_FULL) and leaves nothing behind then."""
    size = source.stat().st_size
    check_free(target.parent, size)
    try:
        with open(source, "rb", buffering=0) as old, open(target, "wb", buffering=0) as new:
            done = 0
            while chunk := _copy_some(old.fileno(), new.fileno(), done):
                done += chunk
                if progress is not None:
                    progress(done, size)
            os.fsync(new.fileno())
    except OSError as error:
        target.unlink(missing_ok=True)
        raise disk_error(error, target, size) from error


def _copy_some(old: int, new: int, offset: int) -> int:
    try:
        return os.sendfile(new, old, offset, _COPY_BYTES)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSOCK):
            raise
    data = os.pread(old, _COPY_BYTES, offset)
    view = memoryview(data)
    while view:
        view = view[os.write(new, view) :]
    return len(data)


def fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Nobody ever sees half of it: a temporary file beside, fsync, rename, fsync of the directory.

    Raises OctonodeError (DISK_FULL, READ_ONLY, DISK_FAILED).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.new")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise disk_error(error, path) from error
