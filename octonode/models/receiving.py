"""Where leaves from all sources meet: hashed, written and synced in threads, behind one bounded channel."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from octonode.errors import RemoteProtocolError, VerificationFailed
from octonode.ipfs.layout import Leaf
from octonode.models.writing import SYNC_BYTES, LeafWriter

THREADS: Final = 2
QUEUE_BATCHES: Final = 1024
"""Batches waiting for a thread. Never reached: the windows of the sources bound what is in memory, and a lane waits
for its batches before it takes the next run."""
SYNC_SECONDS: Final = 2.0
"""What was written is synced and marked at the latest after this, as leaves come."""
BATCH_BYTES: Final = 4 * 1024 * 1024


@dataclass(slots=True, eq=False)
class Batch:
    """Leaves of one lane; `done` is set when the lane may use their memory again."""

    source: str
    verified: bool
    """Their hashes are known to be right."""
    leaves: list[tuple[Leaf, memoryview]]
    """With their blocks."""
    done: trio.Event = field(default_factory=trio.Event)


class Receiver:
    """`on_verified(source, leaves)` and `on_wrong(source, leaf)` are called in the loop, after the writing."""

    def __init__(
        self,
        writer: LeafWriter,
        on_verified: Callable[[str, list[Leaf]], None],
        on_wrong: Callable[[str, Leaf], None],
        sync_bytes: int = SYNC_BYTES,
    ) -> None:
        self._writer = writer
        self._on_verified = on_verified
        self._on_wrong = on_wrong
        self._sync_bytes = sync_bytes
        self._send, self._receive = trio.open_memory_channel[Batch](QUEUE_BATCHES)
        self._limiter = trio.CapacityLimiter(THREADS)
        self._sync_lock = trio.Lock()
        self._synced_at = trio.current_time()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Raises OctonodeError (DISK_FULL). Where the DAG is at fault: VerificationFailed (it lies
        about a size) or RemoteProtocolError (a leaf is none, or of another kind than the first)."""
        async with trio.open_nursery() as nursery:
            for _ in range(THREADS):
                nursery.start_soon(self._work)
            task_status.started()

    def put(self, batch: Batch) -> None:
        self._send.send_nowait(batch)

    async def _work(self) -> None:
        async for batch in self._receive:
            try:
                good, wrong = await trio.to_thread.run_sync(self._verify_and_write, batch, limiter=self._limiter)
            finally:
                batch.done.set()
            if good:
                self._on_verified(batch.source, good)
            if wrong is not None:
                self._on_wrong(batch.source, wrong)
            if self._sync_is_due():
                async with self._sync_lock:
                    if self._sync_is_due():
                        await trio.to_thread.run_sync(self._writer.sync)
                        self._synced_at = trio.current_time()

    def _sync_is_due(self) -> bool:
        """After so many bytes; on a slow line after so many seconds, since a minute's bytes are dear there."""
        late = trio.current_time() - self._synced_at >= SYNC_SECONDS
        return self._writer.pending_bytes >= self._sync_bytes or (late and self._writer.pending_bytes > 0)

    def _verify_and_write(self, batch: Batch) -> tuple[list[Leaf], Leaf | None]:
        """In a thread. What was right and written, and the first that was wrong; nothing wrong is ever written."""
        good: list[Leaf] = []
        for leaf, block in batch.leaves:
            if not batch.verified and hashlib.sha256(block).digest() != leaf.digest:
                return good, leaf
            try:
                data = leaf.unwrap(block)
            except VerificationFailed as error:  # its hash is right: not the source lies, the root does
                raise RemoteProtocolError(error.message) from error
            self._writer.write(leaf, data)
            good.append(leaf)
        return good, None
