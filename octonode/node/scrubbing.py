"""The periodic check of everything held: slow, oldest first, going on after a restart, never beside a fetch."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable

import trio

from octonode.config import ModelsConfig
from octonode.errors import OctonodeError
from octonode.ipfs.cid import Cid
from octonode.models.keeping import DAY_MS
from octonode.models.scrubbing import Checked, ScrubLog, ScrubNote, check_some, done
from octonode.models.store import ModelStore
from octonode.node.events import Emit
from octonode.node.shelf import Held, Shelf

log = logging.getLogger(__name__)

STEP_BYTES_MAX = 8 * 1024 * 1024
"""Hashed in one go, before the pace and the fetches are looked at again."""
LOOK_SECONDS = 60.0
"""Between two looks for a model whose check is due."""
BUSY_SECONDS = 2.0
"""Between two looks whether the disk is free again."""
SAVE_BYTES = 256 * 1024 * 1024
"""A restart goes back by so much at most."""


class Scrubber:
    """`busy` says whether fetches or imports use the disk; `repair` fetches what is missing of a root again."""

    def __init__(
        self,
        *,
        settings: ModelsConfig,
        store: ModelStore,
        shelf: Shelf,
        notes: ScrubLog,
        busy: Callable[[], bool],
        repair: Callable[[Cid], Awaitable[object]],
        changed: Callable[[], Awaitable[None]],
        emit: Emit,
        now_ms: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._store = store
        self._shelf = shelf
        self._notes = notes
        self._busy = busy
        self._repair = repair
        self._changed = changed
        self._emit = emit
        self._now_ms = now_ms
        self._unreadable: set[str] = set()
        self.reading = trio.Lock()
        """Held while leaves are read: who removes a model takes it first, so that a check is no reason to refuse."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Sleeps for ever where `models.scrub_days` or `models.scrub_bytes_per_second` is 0."""
        task_status.started()
        if not self._settings.scrub_days or not self._settings.scrub_bytes_per_second:
            await trio.sleep_forever()
        while True:
            held = self._next()
            if held is None:
                await trio.sleep(LOOK_SECONDS)
                continue
            try:
                await self._check(held)
            except (OctonodeError, OSError) as error:
                self._unreadable.add(held.root)
                log.warning("%s cannot be checked: %s", held.name or held.root, error)

    def _next(self) -> Held | None:
        """The one under way, else the one checked longest ago, if it is time for it."""
        due_ms = self._now_ms() - self._settings.scrub_days * DAY_MS
        found: list[tuple[bool, int, Held]] = []
        for held in self._shelf.all():
            note = self._notes.note(held.root)
            at_ms = note.checked_ms or held.entry.row.created_ms  # every leaf was hashed when it came
            if held.root not in self._unreadable and (note.next_leaf or at_ms <= due_ms):
                found.append((not note.next_leaf, at_ms, held))
        return min(found, key=lambda each: each[:2])[2] if found else None

    async def _check(self, held: Held) -> None:
        """From where it was to its end. What is damaged is repaired from peers, and told of."""
        root, unsaved = held.entry.root, 0
        note = self._notes.note(held.root)
        self._emit("scrub", root=held.root, state="started", first_leaf=note.next_leaf)
        try:
            while True:
                while self._busy():
                    await trio.sleep(BUSY_SECONDS)
                began = trio.current_time()
                checked = await self._step(root, note)
                if checked is None:
                    return
                note = done(note, checked, self._now_ms())
                unsaved += checked.size_bytes
                if checked.bad:
                    await self._tell(held, checked)
                if unsaved >= SAVE_BYTES or not note.next_leaf or checked.bad:
                    await trio.to_thread.run_sync(self._notes.set, held.root, note)
                    unsaved = 0
                if not note.next_leaf:
                    break
                await trio.sleep_until(began + checked.size_bytes / self._settings.scrub_bytes_per_second)
        finally:
            if unsaved:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(self._notes.set, held.root, note)
        self._emit("scrub", root=held.root, state="done", damaged=note.damaged)
        if note.damaged:
            await self._mend(held, note)

    async def _step(self, root: Cid, note: ScrubNote) -> Checked | None:
        size_bytes = min(STEP_BYTES_MAX, self._settings.scrub_bytes_per_second)
        async with self.reading:
            return await trio.to_thread.run_sync(self._check_some, root, note.next_leaf, size_bytes)

    def _check_some(self, root: Cid, first_leaf: int, size_bytes: int) -> Checked | None:
        """None when the model was removed meanwhile."""
        model = self._store.get(root)
        hold = model.leases.hold_open() if model is not None else None
        if model is None or hold is None:
            return None
        try:
            return check_some(model, first_leaf, size_bytes)
        except FileNotFoundError:
            return None
        finally:
            if hold >= 0:
                os.close(hold)

    async def _tell(self, held: Held, checked: Checked) -> None:
        log.warning(
            "%s: %d blocks are damaged on disk and no longer handed out", held.name or held.root, len(checked.bad)
        )
        self._emit("damaged", root=held.root, blocks=len(checked.bad))
        await self._changed()

    async def _mend(self, held: Held, note: ScrubNote) -> None:
        try:
            await self._repair(held.entry.root)
        except OctonodeError as error:
            log.warning("%s stays damaged: %s", held.name or held.root, error.message)
            return
        await trio.to_thread.run_sync(self._notes.set, held.root, ScrubNote(note.checked_ms))
        log.info("%s is repaired: %d blocks were fetched again", held.name or held.root, note.damaged)
        self._emit("repaired", root=held.root, blocks=note.damaged)
