"""The models on disk as a cache: room made when asked, faults of the disk watched, uses noted. `api.ports.Cache`."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

import trio

from octonode.api.schema.cache import Collected, CollectGarbage, GarbageFacts
from octonode.config import ModelsConfig
from octonode.engines.supervisor import Supervisor
from octonode.errors import OctonodeError
from octonode.ipfs.cid import Cid
from octonode.models.disk import disk_error, probe, read_only
from octonode.models.keeping import DAY_MS, Verdict
from octonode.models.placing import FREE_BYTES_MARGIN
from octonode.models.staging import disk_bytes
from octonode.models.store import ModelStore
from octonode.node.events import Emit
from octonode.node.evicting import Evictor
from octonode.node.scrubbing import Scrubber
from octonode.node.shelf import Held, Shelf

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 10.0
"""Between two looks at the disk's state."""
PROBE_SECONDS: Final = 300.0
"""Between two writes that try it out while all is well; when it is not, each look tries."""
TOUCH_SECONDS: Final = 3600.0
"""How often a model that runs is noted as used; so much a crash makes it look older."""
TIDY_SECONDS: Final = 24 * 3600.0
"""Between two rounds that remove old unfinished fetches and leftovers."""
STORE: Final = "store"
"""The part in `status` that a fault of the disk shows under."""


class Cache:
    """`troubles` is where parts say what does not work now."""

    def __init__(
        self,
        *,
        settings: ModelsConfig,
        store: ModelStore,
        shelf: Shelf,
        evictor: Evictor,
        scrubber: Scrubber,
        supervisor: Supervisor,
        troubles: MutableMapping[str, str],
        emit: Emit,
    ) -> None:
        self._settings = settings
        self._store = store
        self._shelf = shelf
        self._evictor = evictor
        self._scrubber = scrubber
        self._supervisor = supervisor
        self._troubles = troubles
        self._emit = emit
        self._probed_at = float("-inf")
        self._lame: set[str] = set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            nursery.start_soon(self._scrubber.run)
            nursery.start_soon(self._watch_disk)
            nursery.start_soon(self._note_uses)
            nursery.start_soon(self._tidy)

    # api.ports.Cache

    async def collect(self, asked: CollectGarbage) -> Collected:
        """Make room, or tell how it would be made."""
        await self._shelf.refresh()
        over = self._over_quota()
        wanted = max(asked.free_bytes, over)
        leftovers = await trio.to_thread.run_sync(self._leftovers, asked.dry_run)
        ask = self._evictor.plan if asked.dry_run else self._evictor.collect
        missing = max(0, wanted - sum(each.size_bytes for each in leftovers if each.goes))
        verdicts = await ask(missing, partial_days=self._settings.partial_days, force=asked.force)
        items = (*leftovers, *(_shown(each) for each in verdicts))
        freed = sum(each.size_bytes for each in items if each.goes)
        return Collected(items, freed, asked.dry_run, max(0, wanted - freed))

    def _over_quota(self) -> int:
        taken = sum(held.entry.row.size_bytes for held in self._shelf.all())
        return max(0, taken - self._settings.disk_bytes_max) if self._settings.disk_bytes_max else 0

    def _leftovers(self, dry_run: bool) -> list[GarbageFacts]:
        """In a thread: hidden directories of processes that are gone, and uploads that nobody went on with."""
        staging = self._store.staging
        dead = [
            GarbageFacts("leftover", str(path), size_bytes, True, "left by a process that ended")
            for path, size_bytes in staging.orphans()
        ]
        if not dry_run:
            staging.sweep()
        uploads = self._uploads()
        for path, fact in uploads:
            if fact.goes and not dry_run:
                shutil.rmtree(path, ignore_errors=True)
        return [*dead, *(fact for _, fact in uploads)]

    def _uploads(self) -> list[tuple[Path, GarbageFacts]]:
        found = []
        days = self._settings.partial_days
        for path in sorted(self._store.directory.parent.joinpath("uploads").glob("*")):
            try:
                newest = max((each.lstat().st_mtime for each in (path, *path.rglob("*"))), default=0.0)
            except OSError:
                continue
            age = (time.time() - newest) * 1000 / DAY_MS
            goes = bool(days) and age >= days
            why = (
                f"an unfinished upload, {age:.0f} days old" if goes else f"an unfinished upload, kept for {days:g} days"
            )
            found.append((path, GarbageFacts("upload", str(path), disk_bytes(path), goes, why)))
        return found

    # What runs beside.

    async def _tidy(self) -> None:
        await trio.to_thread.run_sync(self._store.index_blocks)
        while True:
            try:
                await self.collect(CollectGarbage())
            except (OctonodeError, OSError) as error:
                log.warning("the models could not be tidied: %s", error)
            await trio.sleep(TIDY_SECONDS)

    async def _note_uses(self) -> None:
        """An engine uses its model from the load to the unload."""
        running: set[str] = set()
        noted_at, seen = trio.current_time(), -1
        while True:
            with trio.move_on_at(noted_at + TOUCH_SECONDS) as hour:
                seen = await self._supervisor.wait_changed(seen)
            now = {worker.model_root for worker in self._supervisor.status() if worker.pid}
            changed = now if hour.cancelled_caught else now ^ running
            noted_at = trio.current_time() if hour.cancelled_caught else noted_at
            running = now
            for root in changed:
                await trio.to_thread.run_sync(self._touch, root)

    def _touch(self, root: str) -> None:
        try:
            self._store.touch(Cid.parse(root))
        except (OctonodeError, OSError) as error:
            log.info("the use of %s is not noted: %s", root, error)

    async def _watch_disk(self) -> None:
        while True:
            reason = await trio.to_thread.run_sync(self._look)
            if reason != self._troubles.get(STORE, ""):
                self._emit("store", state="degraded" if reason else "ready", reason=reason)
                log.warning("the store: %s", reason or "all is well again")
            if reason:
                self._troubles[STORE] = reason
            else:
                self._troubles.pop(STORE, None)
            await self._watch_models()
            await trio.sleep(LOOK_SECONDS)

    def _look(self) -> str:
        """In a thread: what is wrong with the disk of the models, in a line; empty when nothing is."""
        place = self._store.directory if self._store.directory.exists() else self._store.directory.parent
        if read_only(place):
            return disk_error(_refusal(place), place).message
        free = shutil.disk_usage(place).free
        if free < FREE_BYTES_MARGIN:
            return (
                f"the disk of {place} has {free / 2**20:.0f} MiB left: nothing is fetched or added until there is "
                "room again: octonode models gc --free SIZE"
            )
        now = time.monotonic()
        if STORE in self._troubles or now - self._probed_at >= PROBE_SECONDS:
            fault = probe(place)
            if fault is not None:
                return disk_error(fault, place).message
            self._probed_at = now
        return ""

    async def _watch_models(self) -> None:
        """Models that were whole and are damaged: the engine runs on, and the owner should know."""
        lame: dict[str, str] = {}
        for held in self._shelf.all():
            damaged = 0 if held.complete else await trio.to_thread.run_sync(self._damaged, held)
            if damaged:
                lame[held.name or f"cid:{held.root}"] = (
                    f"{damaged} blocks are damaged on disk and not handed out; repair it: "
                    f"octonode models verify cid:{held.root} --repair"
                )
        for name in self._lame - lame.keys():
            self._troubles.pop(name, None)
        self._troubles.update(lame)
        self._lame = set(lame)

    def _damaged(self, held: Held) -> int:
        """In a thread: how many blocks of a model that was whole once are missing; 0 for an unfinished fetch."""
        try:
            model = self._store.get(held.entry.root)
            if model is None or not any(file.inode for file in model.files):
                return 0
            return model.row.leaf_count - model.have_bits().bit_count()
        except (OctonodeError, OSError):
            return 0


def _refusal(place: Path) -> OSError:
    mounted = os.statvfs(place).f_flag & os.ST_RDONLY
    return OSError(errno.EROFS if mounted else errno.EACCES, os.strerror(errno.EACCES))


def _shown(verdict: Verdict) -> GarbageFacts:
    model = verdict.model
    return GarbageFacts(
        "model" if model.complete else "partial",
        model.name,
        model.size_bytes,
        verdict.goes,
        verdict.reason,
        model.root,
        model.last_used_ms,
    )
