"""Models of a hub for this node: resolved to a commit, downloaded, taken in under our own signature.

The manifest says where its bytes are from: `ext: {"hub": {"repo", "commit", "file", "revision"}}`. What is held is not
downloaded again, and what is held is used while the hub cannot be reached.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import trio

from octonode.api.ports import Report
from octonode.api.schema import ModelProgress
from octonode.errors import OctonodeError, Unreachable
from octonode.ids import PeerId
from octonode.ipfs.cid import Cid
from octonode.models.adding import default_name
from octonode.models.library import FIRST_VERSION, Library, ModelEntry
from octonode.models.manifest import ModelManifest, SignedManifest
from octonode.models.origin import hub_origin, is_from, origin_of
from octonode.models.reference import HubReference
from octonode.models.sources.hub import Hub, HubListing, HubProgress
from octonode.models.sources.hub_files import Choice, choose
from octonode.models.version import Version
from octonode.node.evicting import require_room
from octonode.node.reporting import FromThread

log = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 3600.0
DOWNLOADS_AT_ONCE: Final = 2
"""More wait; one of them has several files under way."""
_COMMIT_CHARACTERS: Final = 40

MakeRoom = Callable[[int], Awaitable[bool]]


class HubModels:
    """`bring` is all of it. `refresh` is called after a model came; `make_room` where the quota is full."""

    def __init__(
        self, hub: Hub, library: Library, home: Path, *, own: PeerId, refresh: Callable[[], Awaitable[None]],
        make_room: MakeRoom | None = None, expire_days: float = 7.0,
    ) -> None:  # fmt: skip
        self._hub = hub
        self._library = library
        self._own = own
        self._directory = home / "downloads" / "hub"
        self._refresh = refresh
        self._make_room = make_room
        self._expire_seconds = expire_days * 86_400.0
        self._limit = trio.CapacityLimiter(DOWNLOADS_AT_ONCE)
        self._locks: dict[str, trio.Lock] = {}

    async def bring(
        self, reference: HubReference, report: Report = lambda _: None
    ) -> tuple[Cid, SignedManifest | None, int]:
        """The model, complete and in the store, its manifest, and the bytes that were downloaded for it.

        Raises what `Hub.listing` and `HubListing.download` raise, BAD_REQUEST that lists the choices, FormatRefused,
        DISK_FULL. Cancelling ends the download at once; the next call goes on from there.
        """
        async with self._lock_of(reference.repository), self._limit:
            held = await trio.to_thread.run_sync(self._held, reference)
            if held is not None and _is_commit(reference.revision):
                return held.root, held.manifest, 0
            report(ModelProgress("find"))
            try:
                async with self._hub.listing(reference) as listing:
                    return await self._bring(reference, listing, report)
            except Unreachable as error:
                if held is None:
                    raise
                log.warning("%s: %s; the one held here is used", reference, error.message)
                return held.root, held.manifest, 0

    async def _bring(
        self, reference: HubReference, listing: HubListing, report: Report
    ) -> tuple[Cid, SignedManifest | None, int]:
        choice = choose(reference, listing.files, self._hub.settings.patterns)
        held = await trio.to_thread.run_sync(self._same, reference, listing.commit, choice)
        if held is not None:
            return held.root, held.manifest, 0
        directory = self._directory / reference.repository.replace("/", "--") / listing.commit
        await trio.to_thread.run_sync(lambda: directory.mkdir(parents=True, exist_ok=True))
        there = await trio.to_thread.run_sync(_bytes_below, directory)
        await require_room(
            self._library, self._directory, choice.size_bytes, max(0, choice.size_bytes - there), self._make_room
        )
        label = f"hf:{reference.repository}"

        def show(each: HubProgress) -> None:
            sources = {label: max(0, each.done_bytes - there)}
            report(ModelProgress(each.stage, each.done_bytes, each.total_bytes, sources, each.bytes_per_second))

        await listing.download(choice.files, directory, show)
        entry = await self._take_in(reference, listing, choice, directory, report)
        await trio.to_thread.run_sync(lambda: shutil.rmtree(directory, ignore_errors=True))
        await self._refresh()
        return entry.root, entry.manifest, max(0, choice.size_bytes - there)

    async def _take_in(
        self, reference: HubReference, listing: HubListing, choice: Choice, directory: Path, report: Report
    ) -> ModelEntry:
        """Sniffed, hashed and signed. What is refused by its content is deleted: trying again would not help."""
        path = directory / (choice.files[0].path if choice.alone else choice.folder)
        progress = FromThread(report, "import")

        def add() -> ModelEntry:
            name, version = self._name_and_version(reference, path)
            return self._library.add(
                path, name=name, version=version, licence=listing.licence, public=not listing.closed,
                ext=hub_origin(reference, listing.commit), progress=progress,
            )  # fmt: skip

        try:
            return await trio.to_thread.run_sync(add)
        except OctonodeError as error:
            if error.code == "FORMAT_REFUSED":
                await trio.to_thread.run_sync(lambda: shutil.rmtree(directory, ignore_errors=True))
            raise

    # -- what is held already; in threads -----------------------------------------------------------------------

    def _entries(self) -> list[tuple[ModelEntry, ModelManifest]]:
        """Complete models that are signed, the newest first."""
        found = [
            (entry, entry.manifest.manifest)
            for entry in self._library.list()
            if entry.complete and entry.manifest is not None
        ]
        return sorted(found, key=lambda each: -each[1].created_ms)

    def _held(self, reference: HubReference) -> ModelEntry | None:
        for entry, manifest in self._entries():
            if manifest.publisher == self._own and is_from(manifest, reference):
                return entry
        return None

    def _same(self, reference: HubReference, commit: str, choice: Choice) -> ModelEntry | None:
        """The same commit, or the same bytes: a single large file is known by its sha256 before it is here."""
        pinned = replace(reference, revision=commit)
        digest = choice.files[0].sha256 if choice.alone else ""
        for entry, manifest in self._entries():
            if manifest.publisher == self._own and is_from(manifest, pinned):
                return entry
            if digest and len(manifest.files) == 1 and manifest.files[0].sha256.hex() == digest:
                return entry
        return None

    def _name_and_version(self, reference: HubReference, path: Path) -> tuple[str, str]:
        """A name of its own for each repository, and a version that was not published before."""
        organisation, _, repository = reference.repository.partition("/")
        name = default_name(path) if path.is_file() else default_name(Path(repository))
        if not path.is_file() and reference.file:
            name = default_name(Path(f"{repository}-{reference.file}".replace("/", "-")))
        known = self._library.catalogue.named(self._own, name)
        if any(origin_of(signed.manifest).get("repo") != reference.repository for signed in known):
            name = default_name(Path(f"{organisation}-{name}"))
            known = self._library.catalogue.named(self._own, name)
        tag = reference.revision.removeprefix("v")
        with contextlib.suppress(ValueError):
            if str(Version.parse(tag)) not in {signed.manifest.version for signed in known}:
                return name, tag
        latest = max((Version.parse(signed.manifest.version) for signed in known), default=None)
        return name, f"{latest.major}.{latest.minor}.{latest.patch + 1}" if latest is not None else FIRST_VERSION

    async def run(self) -> None:
        """Removes downloads that nobody went on with for long (`models.partial_days`), until cancelled."""
        while True:
            await trio.to_thread.run_sync(self.sweep)
            await trio.sleep(SWEEP_SECONDS)

    def sweep(self) -> None:
        """Blocks on disk."""
        now = time.time()
        for directory in self._directory.glob("*/*"):
            with contextlib.suppress(OSError):
                touched = max(each.lstat().st_mtime for each in (directory, *directory.rglob("*")))
                if self._expire_seconds and now - touched > self._expire_seconds:
                    shutil.rmtree(directory, ignore_errors=True)

    @asynccontextmanager
    async def _lock_of(self, repository: str) -> AsyncIterator[None]:
        """One at a time for a repository: the second finds what the first brought."""
        lock = self._locks.setdefault(repository, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._locks.pop(repository, None)


def _is_commit(revision: str) -> bool:
    return len(revision) == _COMMIT_CHARACTERS and all(each in "0123456789abcdef" for each in revision)


def _bytes_below(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
