"""Room for a model under `models.disk_bytes_max`: what was unused for longest goes first.

Only what can be fetched again goes: complete models that another node holds, that nobody pinned and that are not
served here. The last copy known is the owner's to remove (`octonode models rm --force`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from octonode.models.library import Library
from octonode.node.events import Emit
from octonode.node.shelf import Held, Shelf

log = logging.getLogger(__name__)


class Evictor:
    """`others` counts the other nodes that hold a root whole; `in_use` says whether it is wanted here."""

    def __init__(
        self,
        library: Library,
        shelf: Shelf,
        *,
        others: Callable[[str], int],
        in_use: Callable[[str], bool],
        emit: Emit,
    ) -> None:
        self._library = library
        self._shelf = shelf
        self._others = others
        self._in_use = in_use
        self._emit = emit
        self._lock = trio.Lock()

    async def make_room(self, missing_bytes: int) -> bool:
        """Remove models until `missing_bytes` of the quota are free. False where that cannot be: nothing is removed."""
        async with self._lock:
            await self._shelf.refresh()
            chosen, freed = [], 0
            for held in sorted(filter(self._may_go, self._shelf.all()), key=lambda held: held.entry.row.last_used_ms):
                if freed >= missing_bytes:
                    break
                chosen.append(held)
                freed += held.entry.row.size_bytes
            if freed < missing_bytes:
                return False
            for held in chosen:
                await trio.to_thread.run_sync(self._library.remove, f"cid:{held.root}")
                log.info("%s made room for another model; it was unused for longest", held.name or held.root)
                self._emit("evicted", root=held.root, size_bytes=held.entry.row.size_bytes)
            await self._shelf.refresh()
            return True

    def _may_go(self, held: Held) -> bool:
        return (
            held.complete and not held.entry.row.pinned and not self._in_use(held.root) and self._others(held.root) > 0
        )
