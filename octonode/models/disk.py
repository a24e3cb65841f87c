"""Faults of the disk as errors that say what to do: full, over quota, read-only, failing."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Final

from octonode.errors import OctonodeError

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
DISK_CODES: Final = frozenset({"DISK_FULL", "READ_ONLY", "DISK_FAILED"})
"""Codes of `disk_error`: what goes away when somebody looks after the disk, and is worth trying again then."""
_KEPT: Final = "then run the same command again: what was fetched is kept"


def disk_error(error: OSError, path: Path, needed_bytes: int = 0) -> OctonodeError:
    """DISK_FULL, READ_ONLY, DISK_FAILED, or INTERNAL for what is no fault of the disk."""
    if error.errno in NO_SPACE:
        need = f"; {needed_bytes / 2**20:.0f} MiB are needed" if needed_bytes else ""
        what = {errno.EDQUOT: "your quota on the disk of {} is used up", errno.EFBIG: "{} meets a limit on file sizes"}
        said = what.get(error.errno or 0, "the disk of {} is full").format(path)
        return OctonodeError(f"{said}{need}. Free some space (octonode models gc), {_KEPT}", code="DISK_FULL")
    if error.errno == errno.EROFS:
        return OctonodeError(
            f"the disk of {path} is read-only: models on it are used and served, nothing is added or removed. Mount it "
            f"for writing, or move OCTONODE_HOME, {_KEPT}",
            code="READ_ONLY",
        )
    if error.errno in READ_ONLY:
        return OctonodeError(
            f"{path} may not be written ({error.strerror}): make it belong to the user that runs octonode, {_KEPT}",
            code="READ_ONLY",
        )
    if error.errno == errno.EIO:
        return OctonodeError(
            f"the disk of {path} fails ({error.strerror}): look at the system's log (dmesg), move OCTONODE_HOME to "
            f"another disk if it is dying, {_KEPT}",
            code="DISK_FAILED",
        )
    return OctonodeError(f"{path}: {error.strerror}; check the disk and its permissions")


def sqlite_error(error: sqlite3.Error, path: Path) -> OctonodeError:
    """The same for what SQLite says, which often hides why: then the disk itself is asked."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return OctonodeError(f"{path}: {error}; is another octonode using it? Try again", code="OVERLOADED")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return OctonodeError(f"{path} is damaged ({error}); remove the model and fetch it again")
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return disk_error(_why(code, path), path)
    return OctonodeError(f"{path}: {error}; is another octonode using it?")


def _why(code: int, path: Path) -> OSError:
    if read_only(path.parent):
        return OSError(errno.EROFS if _mounted_read_only(path.parent) else errno.EACCES, "Permission denied")
    if code == sqlite3.SQLITE_FULL:
        return OSError(errno.ENOSPC, "no space left")
    found = probe(path.parent)
    if found is not None:
        return found
    # A small file can be written: what failed was a large one (RLIMIT_FSIZE), or the disk had no room just then.
    return OSError(errno.EFBIG if code == sqlite3.SQLITE_IOERR else errno.EACCES, "it cannot be written")


def probe(directory: Path) -> OSError | None:
    """Write and sync a block in `directory`: what keeps that from being done, or None."""
    path = directory / f".probe-{os.getpid()}"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, bytes(4096))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)
    except OSError as error:
        return error
    return None


def read_only(directory: Path) -> bool:
    """True where nothing can be made in `directory`, be it the mount or its permissions."""
    return directory.exists() and not os.access(directory, os.W_OK)


def _mounted_read_only(directory: Path) -> bool:
    return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)


def sqlite_address(path: Path) -> str:
    """The URI that opens the database at `path`, which must be there, as its disk allows. For `sqlite3.connect`.

    On a disk mounted read-only no lock and no journal can be made, and none is needed: nobody else writes there.
    """
    address = f"file:{str(path).replace('%', '%25').replace('?', '%3f').replace('#', '%23')}"
    if not read_only(path.parent):
        return f"{address}?mode=rw"
    return f"{address}?mode=ro&immutable=1" if _mounted_read_only(path.parent) else f"{address}?mode=ro"
