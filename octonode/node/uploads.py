"""Models that come over the API: `api.ports.Uploads`. What is written is durable before it is counted.

One directory an upload under `OCTONODE_HOME/uploads/`: `upload.json` says what is to come, `offsets.json` how much of
each file has been synced, `data/` holds the files. A kill or a power cut loses at most what was not synced; bytes
behind the offset are cut off when the client goes on.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Final, Protocol

import trio

from octonode.api.ports import Report
from octonode.api.schema import AddModel, ModelOutcome, bad_request
from octonode.api.schema.uploads import CreateUpload, FinishUpload, UploadFacts, UploadFileFacts
from octonode.errors import NotFound, OctonodeError, Refused
from octonode.models.placing import check_free
from octonode.models.store import ModelStore
from octonode.network.clock import wall_clock_ms
from octonode.node.upload import Upload, check_request

log = logging.getLogger(__name__)

UPLOADS_MAX: Final = 16
"""Open at once."""
WRITES_MAX: Final = 16
"""Bodies being received at once; each holds at most PIECE_BYTES."""
PIECE_BYTES: Final = 1024 * 1024
"""Gathered before a thread writes it."""
SYNC_BYTES: Final = 64 * 1024 * 1024
SYNC_SECONDS: Final = 2.0
SWEEP_SECONDS: Final = 600.0
DAY_MS: Final = 86_400_000


class Adding(Protocol):
    """`node.models.Models`, as far as it is needed here."""

    async def add(self, request: AddModel, report: Report) -> ModelOutcome: ...


class Uploads:
    """`connect` it with the models before it is used. After `expire_days` without a byte an upload goes; 0: never."""

    def __init__(
        self,
        home: Path,
        store: ModelStore,
        *,
        expire_days: float,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._directory = home / "uploads"
        self._store = store
        self._models: Adding | None = None
        self._expire_ms = int(expire_days * DAY_MS)
        self._now_ms = now_ms
        self._open: dict[str, Upload] | None = None
        self._lock = trio.Lock()
        self._writes = 0

    def connect(self, models: Adding) -> None:
        self._models = models

    async def run(self) -> None:
        """Removes what nobody goes on with, until cancelled."""
        while True:
            await self._all()
            await self.sweep()
            await trio.sleep(SWEEP_SECONDS)

    async def sweep(self) -> None:
        for upload in list((await self._all()).values()):
            if upload.expired(self._now_ms(), self._expire_ms) and not upload.busy:
                log.info("upload %s is removed: nobody went on with it", upload.id)
                await self._remove(upload)

    # -- api.ports.Uploads --------------------------------------------------------------------------------------

    async def create(self, request: CreateUpload) -> UploadFacts:
        check_request(request)
        await self.sweep()
        everything = await self._all()
        async with self._lock:
            if len(everything) >= UPLOADS_MAX:
                raise Refused(
                    f"{UPLOADS_MAX} uploads are open; finish one, or abort it: octonode models uploads",
                    code="OVERLOADED",
                )
            size = sum(file.size_bytes for file in request.files)
            to_come = sum(upload.missing_bytes for upload in everything.values())
            await trio.to_thread.run_sync(self._check_room, size + to_come)
            number = secrets.token_hex(16)
            upload = await trio.to_thread.run_sync(
                lambda: Upload.create(self._directory / number, request, self._now_ms())
            )
            everything[number] = upload
        return self._facts(upload)

    async def list(self) -> Sequence[UploadFacts]:
        return [self._facts(upload) for upload in (await self._all()).values() if upload.directory.is_dir()]

    async def get(self, upload: str) -> UploadFacts:
        return self._facts(await self._find(upload))

    async def write(
        self, upload: str, path: str, pieces: AsyncGenerator[bytes, None], *, first_byte: int, total_bytes: int | None
    ) -> UploadFileFacts:
        found = await self._find(upload)
        size = found.size_of(path)
        if total_bytes not in (None, size):
            raise bad_request(f"{path} was announced with {size} bytes, not {total_bytes}", "content-range")
        if found.finishing:
            raise OctonodeError("this upload is being imported; nothing more is taken", code="ALREADY_RUNNING")
        if self._writes >= WRITES_MAX:
            raise Refused(f"{WRITES_MAX} uploads are being written; try again in a moment", code="OVERLOADED")
        self._writes += 1
        try:
            async with found.writing(path):
                offset = found.offsets[path]
                if first_byte != offset:
                    raise OctonodeError(
                        f"{path} is here up to byte {offset}; go on from there",
                        code="BAD_SEQUENCE",
                        detail={"offset_bytes": offset},
                    )
                await self._write(found, path, pieces)
        finally:
            self._writes -= 1
        return UploadFileFacts(path, size, found.offsets[path])

    async def _write(self, upload: Upload, path: str, pieces: AsyncGenerator[bytes, None]) -> None:
        """Raises TOO_LARGE, DISK_FULL, and what `pieces` raises; what came before is synced and counted."""
        file = await trio.to_thread.run_sync(upload.open, path)
        synced_at, gathered = trio.current_time(), bytearray()
        try:
            async with aclosing(pieces) as body:
                async for piece in body:
                    gathered += piece
                    if len(gathered) >= PIECE_BYTES:
                        await trio.to_thread.run_sync(file.write, bytes(gathered))
                        gathered.clear()
                    late = trio.current_time() - synced_at >= SYNC_SECONDS
                    if file.unsynced_bytes >= SYNC_BYTES or (late and file.unsynced_bytes):
                        await trio.to_thread.run_sync(file.sync)
                        synced_at = trio.current_time()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(file.finish, bytes(gathered))

    async def finish(self, upload: str, request: FinishUpload, report: Report) -> ModelOutcome:
        """Raises BAD_REQUEST while bytes are missing, and what adding a model raises. An upload that is refused for its
        content is removed; one that is refused for its name or version can be finished with others."""
        found = await self._find(upload)
        missing = {file.path: file.offset_bytes for file in found.files if file.offset_bytes < file.size_bytes}
        if missing:
            raise bad_request(f"{len(missing)} files are not whole yet: {', '.join(sorted(missing)[:5])}")
        if found.busy:
            raise OctonodeError("this upload is being written or imported already", code="ALREADY_RUNNING")
        wanted = found.request
        added = AddModel(
            path=str(found.model_path),
            name=request.name or wanted.name,
            version=request.version or wanted.version,
            license=wanted.license,
            publish=wanted.publish,
            root=request.root,
        )
        assert self._models is not None
        found.finishing = True
        try:
            outcome = await self._models.add(added, report)
        except OctonodeError as error:
            if error.code in ("FORMAT_REFUSED", "VERIFICATION_FAILED"):
                await self._remove(found)
            raise
        finally:
            found.finishing = False
        await self._remove(found)
        return outcome

    async def abort(self, upload: str) -> UploadFacts:
        found = await self._find(upload)
        if found.finishing:
            raise OctonodeError("this upload is being imported; it cannot be aborted now", code="ALREADY_RUNNING")
        await found.stop_writing()
        facts = self._facts(found)
        await self._remove(found)
        return facts

    def _check_room(self, size_bytes: int) -> None:
        """Raises DISK_FULL where so much more does not fit."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._store.check_quota(size_bytes)
        check_free(self._directory, size_bytes)

    # -- what is open -------------------------------------------------------------------------------------------

    async def _all(self) -> dict[str, Upload]:
        async with self._lock:
            if self._open is None:
                found = await trio.to_thread.run_sync(Upload.load_all, self._directory)
                self._open = {upload.id: upload for upload in found}
            return self._open

    async def _find(self, number: str) -> Upload:
        everything = await self._all()
        upload = everything.get(number)
        if upload is not None and not upload.directory.is_dir():  # tidied away
            del everything[number]
            upload = None
        if upload is None:
            raise NotFound(f"there is no upload {number[:64]!r}: it was finished, aborted, or expired")
        return upload

    async def _remove(self, upload: Upload) -> None:
        (await self._all()).pop(upload.id, None)
        await trio.to_thread.run_sync(lambda: shutil.rmtree(upload.directory, ignore_errors=True))

    def _facts(self, upload: Upload) -> UploadFacts:
        wanted = upload.request
        return UploadFacts(
            upload=upload.id,
            files=upload.files,
            name=wanted.name,
            version=wanted.version,
            license=wanted.license,
            publish=wanted.publish,
            fingerprint=wanted.fingerprint,
            expires_at_ms=upload.touched_at_ms + self._expire_ms if self._expire_ms else 0,
        )
