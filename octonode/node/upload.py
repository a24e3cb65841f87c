"""One upload on disk: what is to come, what is there for good, and the file that is being written. Blocks on disk."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from octonode.api.schema import bad_request, parse, to_json
from octonode.api.schema.uploads import (
    FINGERPRINT_CHARACTERS_MAX,
    CreateUpload,
    UploadFileFacts,
)
from octonode.errors import NotFound, OctonodeError
from octonode.models.disk import disk_error
from octonode.models.manifest import FILES_MAX, is_model_name, safe_path
from octonode.models.placing import write_atomically
from octonode.models.version import Version
from octonode.network.clock import wall_clock_ms

log = logging.getLogger(__name__)

FILE_BYTES_MAX: Final = 2**46
DESCRIPTION: Final = "upload.json"
OFFSETS: Final = "offsets.json"
DATA: Final = "data"


def check_request(request: CreateUpload) -> None:
    """Raises BAD_REQUEST for what could never be finished."""
    if not 0 < len(request.files) <= FILES_MAX:
        raise bad_request(f"an upload has 1 to {FILES_MAX} files", "files")
    paths = [file.path for file in request.files]
    for path in paths:
        if not safe_path(path) or any(part.startswith(".") for part in path.split("/")):
            raise bad_request(f"{path[:200]!r} cannot be a path in a model", "files")
    whole = {tuple(path.split("/")) for path in paths}
    folders = {parts[:length] for parts in whole for length in range(1, len(parts))}
    if len(whole) < len(paths) or whole & folders:
        raise bad_request("a path is named twice, or is a file and a folder at once", "files")
    if any(not 0 <= file.size_bytes <= FILE_BYTES_MAX for file in request.files):
        raise bad_request("size_bytes must be the size of the file", "files")
    if not request.name and len(paths) > 1:
        raise bad_request("give a model of several files a name", "name")
    if request.name and not is_model_name(request.name):
        raise bad_request("a name has lower-case letters, digits, dots and dashes", "name")
    if request.version:
        try:
            Version.parse(request.version)
        except ValueError as error:
            raise bad_request(str(error), "version") from None
    if len(request.fingerprint) > FINGERPRINT_CHARACTERS_MAX:
        raise bad_request(f"a fingerprint has at most {FINGERPRINT_CHARACTERS_MAX} characters", "fingerprint")


class Upload:
    """Only `create` and `load_all` make one."""

    def __init__(self, directory: Path, request: CreateUpload, offsets: dict[str, int], touched_at_ms: int) -> None:
        self.id = directory.name
        self.directory = directory
        self.request = request
        self.offsets = offsets
        """Synced bytes of each file."""
        self.touched_at_ms = touched_at_ms
        self.finishing = False
        self._sizes = {file.path: file.size_bytes for file in request.files}
        self._writers: dict[str, tuple[trio.CancelScope, trio.Event]] = {}

    @classmethod
    def create(cls, directory: Path, request: CreateUpload, now_ms: int) -> Upload:
        """Raises DISK_FULL and the like."""
        try:
            (directory / DATA).mkdir(parents=True, mode=0o700)
        except OSError as error:
            raise disk_error(error, directory) from error
        upload = cls(directory, request, {file.path: 0 for file in request.files}, now_ms)
        for file in request.files:
            if file.size_bytes == 0:
                upload.open(file.path).finish(b"")
        write_atomically(directory / DESCRIPTION, json.dumps(to_json(request)).encode(), 0o600)
        upload.save(now_ms)
        return upload

    @classmethod
    def load_all(cls, directory: Path) -> list[Upload]:
        """Those of an earlier run. What cannot be read is logged and left for a person to look at."""
        found = []
        for each in sorted(directory.glob("*")) if directory.is_dir() else ():
            try:
                request = parse(CreateUpload, json.loads((each / DESCRIPTION).read_bytes()))
                check_request(request)
                kept = json.loads((each / OFFSETS).read_bytes())
                offsets = {file.path: int(kept["offsets"].get(file.path, 0)) for file in request.files}
                found.append(cls(each, request, offsets, int(kept["touched_at_ms"])))
            except (OSError, ValueError, KeyError, TypeError, AttributeError, OctonodeError) as error:
                log.warning("the upload in %s is damaged and passed over: %s", each, error)
        return found

    @property
    def files(self) -> tuple[UploadFileFacts, ...]:
        return tuple(UploadFileFacts(path, size, self.offsets[path]) for path, size in self._sizes.items())

    @property
    def missing_bytes(self) -> int:
        return sum(self._sizes.values()) - sum(self.offsets.values())

    @property
    def busy(self) -> bool:
        return self.finishing or bool(self._writers)

    @property
    def model_path(self) -> Path:
        """What is to be imported: the file of a model of one file, else the folder."""
        paths = list(self._sizes)
        return self.directory / DATA / paths[0] if len(paths) == 1 else self.directory / DATA

    def size_of(self, path: str) -> int:
        if path not in self._sizes:
            raise NotFound(f"upload {self.id} has no file {path[:200]!r}; its files were named when it began")
        return self._sizes[path]

    def expired(self, now_ms: int, expire_ms: int) -> bool:
        return expire_ms > 0 and now_ms - self.touched_at_ms > expire_ms

    def save(self, now_ms: int) -> None:
        self.touched_at_ms = now_ms
        kept = {"offsets": self.offsets, "touched_at_ms": now_ms}
        write_atomically(self.directory / OFFSETS, json.dumps(kept).encode(), 0o600)

    @asynccontextmanager
    async def writing(self, path: str) -> AsyncIterator[None]:
        """One writer a file. A new one ends the one before: a client that lost its connection need not wait until
        that is noticed here."""
        while path in self._writers:
            scope, ended = self._writers[path]
            scope.cancel()
            await ended.wait()
        scope, ended = trio.CancelScope(), trio.Event()
        self._writers[path] = scope, ended
        try:
            with scope:
                yield
        finally:
            del self._writers[path]
            ended.set()
        if scope.cancelled_caught:
            raise OctonodeError("another request goes on with this file", code="CANCELED")

    async def stop_writing(self) -> None:
        for scope, ended in list(self._writers.values()):
            scope.cancel()
            await ended.wait()

    def open(self, path: str) -> UploadingFile:
        return UploadingFile(self, path)


class UploadingFile:
    """The file that is being written; every method blocks. `finish` closes it."""

    def __init__(self, upload: Upload, path: str) -> None:
        self._upload = upload
        self._path = path
        self._place = upload.directory / DATA / path
        self.unsynced_bytes = 0
        try:
            self._place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(self._place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            there = os.fstat(self._fd).st_size
            if there > upload.offsets[path]:
                os.ftruncate(self._fd, upload.offsets[path])  # what was not synced may be anything after a power cut
        except OSError as error:
            raise disk_error(error, self._place) from error
        if there < upload.offsets[path]:
            os.close(self._fd)
            raise NotFound(f"the bytes of {path} that came are gone from the disk; begin the upload again")

    def write(self, data: bytes) -> None:
        """Raises TOO_LARGE, DISK_FULL; what was written before stays counted."""
        start = self._upload.offsets[self._path] + self.unsynced_bytes
        if start + len(data) > self._upload.size_of(self._path):
            raise OctonodeError(f"{self._path} was announced with fewer bytes than come", code="TOO_LARGE")
        view = memoryview(data)
        try:
            while view:
                count = os.pwrite(self._fd, view, start)
                view, start = view[count:], start + count
                self.unsynced_bytes += count
        except OSError as error:
            raise disk_error(error, self._place, len(view)) from error

    def sync(self) -> None:
        """Durable, and then counted."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise disk_error(error, self._place) from error
        self._upload.offsets[self._path] += self.unsynced_bytes
        self.unsynced_bytes = 0
        self._upload.save(wall_clock_ms())

    def finish(self, rest: bytes) -> None:
        """Write what was gathered, sync, close."""
        try:
            try:
                if rest:
                    self.write(rest)
            finally:
                self.sync()
        finally:
            os.close(self._fd)
