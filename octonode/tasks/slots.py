"""The queue before each engine: as many tasks run as it decodes at once, the next wait in order of arrival."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from octonode.errors import Refused


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def new_id() -> bytes:
    """16 random bytes for a task, a message or a conversation."""
    return os.urandom(16)


@dataclass(frozen=True, slots=True)
class Measured:
    """What tasks here have shown of a model, for the announcement; 0 before the first one."""

    tokens_per_second: float = 0.0
    first_token_ms: float = 0.0


class Measurements:
    """Moving averages by model. At `MODELS_MAX` models the one measured longest ago is forgotten."""

    MODELS_MAX = 256
    WEIGHT = 0.2
    """Of the newest task."""

    def __init__(self) -> None:
        self._by_root: dict[str, Measured] = {}

    def of(self, root: str) -> Measured:
        return self._by_root.get(root, Measured())

    def note(self, root: str, *, first_token_ms: float, tokens: int, seconds: float) -> None:
        """`tokens` were decoded in `seconds` after the first one."""
        before = self._by_root.pop(root, None)
        speed = tokens / seconds if tokens > 0 and seconds > 0 else 0.0
        if before is None:
            after = Measured(speed, first_token_ms)
        else:
            after = Measured(
                self._mean(before.tokens_per_second, speed), self._mean(before.first_token_ms, first_token_ms)
            )
        self._by_root[root] = after
        if len(self._by_root) > self.MODELS_MAX:
            del self._by_root[next(iter(self._by_root))]

    def _mean(self, before: float, now: float) -> float:
        if not before or not now:
            return before or now
        return before + (now - before) * self.WEIGHT


class EngineSlots:
    """Shared by the dispatcher (local answers) and the provider, so that both stand in one queue."""

    def __init__(self, queue_max: int) -> None:
        """`queue_max`: tasks that may wait in all; `tasks.queue_max`."""
        self.measured = Measurements()
        self._queue_max = queue_max
        self._taken: dict[str, int] = {}
        self._lines: dict[str, deque[_Waiter]] = {}
        self._waiting = 0

    @property
    def waiting(self) -> int:
        return self._waiting

    @property
    def running(self) -> int:
        return sum(self._taken.values())

    def taken(self, root: str) -> int:
        return self._taken.get(root, 0)

    def full(self, root: str, parallel: int) -> bool:
        """True when a task for `root` would be refused now."""
        return self._waiting >= self._queue_max and self.taken(root) >= parallel

    @asynccontextmanager
    async def slot(
        self, root: str, parallel: int, on_wait: Callable[[int], None] = lambda place: None
    ) -> AsyncIterator[None]:
        """Holds one of the `parallel` slots of the engine of `root` inside the block.

        Raises Refused (OVERLOADED) when `queue_max` tasks wait already. While waiting, `on_wait` is told the place in
        the line, from 1, whenever it changes.
        """
        line = self._lines.get(root)
        if line or self.taken(root) >= max(1, parallel):
            await self._wait(root, on_wait)
        else:
            self._taken[root] = self.taken(root) + 1
        try:
            yield
        finally:
            self._leave(root)

    async def _wait(self, root: str, on_wait: Callable[[int], None]) -> None:
        if self._waiting >= self._queue_max:
            raise Refused(
                f"{self._waiting} tasks wait here already; ask another node or come back in a second",
                retry_after_seconds=1.0,
            )
        waiter = _Waiter(on_wait)
        line = self._lines.setdefault(root, deque())
        line.append(waiter)
        self._waiting += 1
        on_wait(len(line))
        try:
            await waiter.turn.wait()
        except trio.Cancelled:
            if waiter.turn.is_set():  # the slot was ours already: hand it on
                self._leave(root)
            else:
                line.remove(waiter)
                self._waiting -= 1
                self._tell_places(root)
            raise

    def _leave(self, root: str) -> None:
        """Gives the slot to the first of the line, or back."""
        line = self._lines.get(root)
        if line:
            line.popleft().turn.set()
            self._waiting -= 1
            self._tell_places(root)
            return
        self._taken[root] -= 1
        if self._taken[root] == 0:
            del self._taken[root]
            self._lines.pop(root, None)

    def _tell_places(self, root: str) -> None:
        for place, waiter in enumerate(self._lines[root], start=1):
            waiter.on_wait(place)


class _Waiter:
    def __init__(self, on_wait: Callable[[int], None]) -> None:
        self.turn = trio.Event()
        self.on_wait = on_wait
