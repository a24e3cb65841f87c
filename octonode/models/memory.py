"""One bound for the memory of all fetches: bytes are taken before they are asked for and given back once written."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

MEMORY_BYTES_MAX: Final = 160 * 1024 * 1024
"""In flight over all fetches of a node. With what Python keeps beside it a fetch stays below 256 MiB above idle."""


class FetchMemory:
    """A semaphore of bytes. Whoever waits with the highest priority goes next, the first among equals."""

    def __init__(self, bytes_max: int = MEMORY_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._waiting: list[tuple[int, int, int, trio.Event]] = []
        self._order = itertools.count()
        self.taken_bytes = 0
        self.peak_bytes = 0

    @asynccontextmanager
    async def take(self, size_bytes: int, priority: int = 0) -> AsyncIterator[None]:
        """Hold `size_bytes` while the block runs; more than the bound is granted alone."""
        size_bytes = min(size_bytes, self._bytes_max)
        if self._waiting or not self._fits(size_bytes):
            granted = trio.Event()
            entry = (-priority, next(self._order), size_bytes, granted)
            heapq.heappush(self._waiting, entry)
            try:
                await granted.wait()
            except trio.Cancelled:
                if granted.is_set():
                    self._give_back(size_bytes)
                else:
                    self._waiting.remove(entry)
                    heapq.heapify(self._waiting)
                    self._grant()
                raise
        else:
            self._count(size_bytes)
        try:
            yield
        finally:
            self._give_back(size_bytes)

    def _fits(self, size_bytes: int) -> bool:
        return self.taken_bytes + size_bytes <= self._bytes_max

    def _count(self, size_bytes: int) -> None:
        self.taken_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.taken_bytes)

    def _give_back(self, size_bytes: int) -> None:
        self.taken_bytes -= size_bytes
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self._fits(self._waiting[0][2]):
            _, _, size_bytes, granted = heapq.heappop(self._waiting)
            self._count(size_bytes)
            granted.set()
