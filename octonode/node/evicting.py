"""Room on the disk: for a model under `models.disk_bytes_max`, and for whoever asks (`octonode models gc`).

Only what can be fetched again goes by itself: complete models that another node holds, that nobody pinned, serves or
has open. The last copy known is the owner's to remove (`--force`). `models.keeping` decides, this asks and removes.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from octonode.errors import OctonodeError
from octonode.models.held import BITMAP
from octonode.models.keeping import Candidate, Verdict, bytes_of, choose
from octonode.models.library import Library
from octonode.models.placing import check_free
from octonode.models.staging import disk_bytes
from octonode.models.store import QUOTA_MISSING
from octonode.network.clock import wall_clock_ms
from octonode.node.events import Emit
from octonode.node.shelf import Held, Shelf

log = logging.getLogger(__name__)


class Evictor:
    """`others` counts the other nodes that hold a root whole; `in_use` says whether it is wanted here, `fetching`
    whether a fetch of it runs or waits."""

    def __init__(
        self,
        library: Library,
        shelf: Shelf,
        *,
        others: Callable[[str], int],
        in_use: Callable[[str], bool],
        emit: Emit,
        fetching: Callable[[str], bool] = lambda root: False,
    ) -> None:
        self._library = library
        self._shelf = shelf
        self._others = others
        self._in_use = in_use
        self._fetching = fetching
        self._emit = emit
        self._lock = trio.Lock()

    async def make_room(self, missing_bytes: int) -> bool:
        """Remove models until `missing_bytes` of the quota are free. False where that cannot be: nothing is removed."""
        async with self._lock:
            verdicts = await self._judge(missing_bytes, on_disk=False)
            if bytes_of(verdicts) < missing_bytes:
                return False
            freed = await self._remove(verdicts)
        return freed >= missing_bytes

    async def plan(self, free_bytes: int, *, partial_days: float, force: bool = False) -> list[Verdict]:
        """What `collect` would do: sizes are what the disk gains."""
        return await self._judge(free_bytes, on_disk=True, partial_days=partial_days, force=force)

    async def collect(self, free_bytes: int, *, partial_days: float, force: bool = False) -> list[Verdict]:
        """Remove what goes. One that somebody began to use meanwhile stays, and says so."""
        async with self._lock:
            verdicts = await self._judge(free_bytes, on_disk=True, partial_days=partial_days, force=force)
            stayed = dict[str, str]()
            await self._remove(verdicts, stayed)
        return [
            Verdict(each.model, False, stayed[each.model.root]) if each.model.root in stayed else each
            for each in verdicts
        ]

    async def _judge(
        self, free_bytes: int, *, on_disk: bool, partial_days: float = 0.0, force: bool = False
    ) -> list[Verdict]:
        await self._shelf.refresh()
        candidates = [await self._candidate(held, on_disk=on_disk) for held in self._shelf.all()]
        return choose(candidates, free_bytes=free_bytes, now_ms=wall_clock_ms(), partial_days=partial_days, force=force)

    async def _candidate(self, held: Held, *, on_disk: bool) -> Candidate:
        row = held.entry.row
        users, size_bytes, written_at_ms, whole_once = await trio.to_thread.run_sync(self._look, held, on_disk)
        return Candidate(
            held.root,
            held.name or f"cid:{held.root}",
            size_bytes,
            row.last_used_ms,
            complete=held.complete or whole_once,
            pinned=row.pinned,
            previous=self._library.following.is_previous(held.root),
            users=users,
            wanted=self._in_use(held.root),
            written=self._fetching(held.root),
            others=self._others(held.root),
            written_at_ms=written_at_ms,
        )

    def _look(self, held: Held, on_disk: bool) -> tuple[tuple[str, ...], int, int, bool]:
        """In a thread: who has it open, its bytes, when it was written, whether it was whole once. All may be gone."""
        model = self._library.store.get(held.entry.root)
        if model is None:
            return (), 0, wall_clock_ms(), False
        users = tuple(holder.text for holder in model.leases.holders())
        size_bytes = disk_bytes(model.directory) if on_disk else held.entry.row.size_bytes
        try:
            written_at_ms = (model.directory / BITMAP).stat().st_mtime_ns // 1_000_000
        except OSError:
            written_at_ms = wall_clock_ms()
        return users, size_bytes, written_at_ms, any(file.inode for file in model.files)

    async def _remove(self, verdicts: list[Verdict], stayed: dict[str, str] | None = None) -> int:
        freed = 0
        for each in verdicts:
            if not each.goes:
                continue
            model = each.model
            try:
                await trio.to_thread.run_sync(self._library.remove, f"cid:{model.root}")
            except OctonodeError as error:  # used since the look, or the disk does not let it go
                log.warning("%s was to make room and stays: %s", model.name, error.message)
                if stayed is not None:
                    stayed[model.root] = error.message
                continue
            freed += model.size_bytes
            log.info("%s was removed to make room: %s", model.name, each.reason)
            self._emit("evicted", root=model.root, size_bytes=model.size_bytes)
        await self._shelf.refresh()
        return freed


async def require_room(
    library: Library,
    directory: Path,
    kept_bytes: int,
    written_bytes: int,
    make_room: Callable[[int], Awaitable[bool]] | None,
) -> None:
    """Before `written_bytes` go to `directory`, of which `kept_bytes` become a model: other models make room as for one
    that arrives. Raises DISK_FULL. The directory is there afterwards."""

    def check() -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        library.store.check_quota(kept_bytes)
        check_free(directory, written_bytes)

    try:
        await trio.to_thread.run_sync(check)
    except OctonodeError as error:
        over_bytes = error.detail.get(QUOTA_MISSING, 0)
        if not over_bytes or make_room is None or not await make_room(over_bytes):
            raise
        await trio.to_thread.run_sync(check)
