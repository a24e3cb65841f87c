"""How many streams one peer may have with us at once, and how many callers may wait for one."""

from __future__ import annotations

import trio

from octonode.errors import Refused

WAITERS_PER_SLOT = 2
"""The queue before a full house, as a multiple of the slots; at its end callers are refused at once."""


INBOUND_SLACK = 56
"""What a peer may have open with us beyond its own limit: identify, routing, gossip, and streams that just end."""


class StreamSlots:
    """Counts the open streams towards one peer. A stream that is done gives its slot back exactly once."""

    def __init__(self, total: int) -> None:
        assert total > 0
        self._semaphore = trio.Semaphore(total)
        self._total = total

    @property
    def in_use(self) -> int:
        return self._total - self._semaphore.value

    @property
    def waiting(self) -> int:
        return self._semaphore.statistics().tasks_waiting

    async def acquire(self) -> None:
        """Wait for a slot. Raises Refused (OVERLOADED) when too many wait already; bring your own deadline."""
        if self._semaphore.value == 0 and self.waiting >= self._total * WAITERS_PER_SLOT:
            raise Refused(
                f"{self._total} streams to this peer are open and {self.waiting} wait; try again or ask another peer",
                retry_after_seconds=1.0,
            )
        await self._semaphore.acquire()

    def acquire_nowait(self) -> bool:
        """False when no slot is free or others wait for one."""
        try:
            self._semaphore.acquire_nowait()
        except trio.WouldBlock:
            return False
        return True

    def release(self) -> None:
        self._semaphore.release()
