"""Hashing a model again when its owner asks, repairing it from peers, and letting go of what is about to be removed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from octonode.engines.supervisor import Supervisor
from octonode.errors import OctonodeError, VerificationFailed
from octonode.models.checking import VerifyReport
from octonode.models.fetching import FetchProgress
from octonode.models.library import Library
from octonode.models.scrubbing import ScrubLog, ScrubNote
from octonode.network.clock import wall_clock_ms
from octonode.node.shelf import Held
from octonode.node.source import Source

UNLOAD_SECONDS: Final = 60.0
"""For a worker to end its answers and go; plan.Policy.drain_timeout_seconds is the most of it."""


class Checks:
    """`reading` is held by the periodic check while it reads."""

    def __init__(
        self, *, library: Library, source: Source, supervisor: Supervisor, notes: ScrubLog, reading: trio.Lock
    ) -> None:
        self._library = library
        self._source = source
        self._supervisor = supervisor
        self._notes = notes
        self._reading = reading

    def note(self, root: str) -> ScrubNote:
        return self._notes.note(root)

    async def verify(
        self,
        held: Held,
        progress: Callable[[int, int], None],
        *,
        repair: bool,
        fetched: Callable[[FetchProgress], None],
    ) -> str:
        """Hash it; with `repair` fetch what is damaged or missing. A note for people.

        Raises VerificationFailed for damage that is left, and what a fetch raises.
        """
        found = await trio.to_thread.run_sync(lambda: self._library.verify(f"cid:{held.root}", progress))
        await self._keep(held, found)
        if repair and (found.bad_leaves or found.missing_leaves):
            await self._source.fetch_model(held.entry.root, fetched)
            await self._keep(held, None)
            return f"{len(found.bad_leaves) + found.missing_leaves} damaged or missing blocks were fetched again"
        if found.bad_leaves or found.bad_files:
            raise VerificationFailed(
                f"{held.name or held.root}: {len(found.bad_leaves)} blocks and {len(found.bad_files)} files are "
                f"damaged; repair it from peers: octonode models verify cid:{held.root} --repair"
            )
        return f"{found.missing_leaves} blocks are not here yet" if found.missing_leaves else ""

    async def _keep(self, held: Held, found: VerifyReport | None) -> None:
        note = ScrubNote(wall_clock_ms(), 0, len(found.bad_leaves) if found else 0)
        await trio.to_thread.run_sync(self._notes.set, held.root, note)
        await self._source.refresh()

    @asynccontextmanager
    async def let_go(self, root: str) -> AsyncIterator[None]:
        """Once the worker of a model that is wanted no more is gone, and while the periodic check stands still.

        Raises OctonodeError (IN_USE) when the worker does not end.
        """
        with trio.move_on_after(UNLOAD_SECONDS) as patience:
            seen = self._supervisor.changes
            while any(worker.model_root == root and worker.pid for worker in self._supervisor.status()):
                seen = await self._supervisor.wait_changed(seen)
        if patience.cancelled_caught:
            raise OctonodeError(
                f"the engine of {root} does not end; look at octonode logs, then try again", code="IN_USE"
            )
        async with self._reading:
            yield
        self._notes.forget(root)
