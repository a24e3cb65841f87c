"""The line before each engine: as many tasks run as it decodes at once, the next wait by mode and order of arrival."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from octonode.errors import Refused
from octonode.protocol.messages import Mode
from octonode.tasks.queue import Queue


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

    def begin(self, root: str, measured: Measured, *, anew: bool = False) -> None:
        """What the node has measured itself, until tasks have shown more. `anew`: in place of what they have shown."""
        if anew:
            self._by_root.pop(root, None)
        self._by_root.setdefault(root, measured)
        self._keep_to_the_bound()

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
        self._keep_to_the_bound()

    def _keep_to_the_bound(self) -> None:
        if len(self._by_root) > self.MODELS_MAX:
            del self._by_root[next(iter(self._by_root))]

    def _mean(self, before: float, now: float) -> float:
        if not before or not now:
            return before or now
        return before + (now - before) * self.WEIGHT


LEVELS: Final[dict[Mode, int]] = {"realtime": 0, "": 1, "batch": 2, "async": 3}
"""Of the modes in the line before an engine, the most urgent first."""
AGEING_MS = 15_000
"""Who has waited so long counts as one level more urgent: `async` is passed by nobody who comes 45 s later."""
BATCH_SECONDS_LEAST, BATCH_SECONDS_MOST = 1.0, 5.0


class EngineSlots:
    """Shared by the dispatcher (local answers) and the provider, so that both stand in one queue."""

    def __init__(self, queue_max: int, *, batch_seconds: float = 2.0) -> None:
        """`queue_max`: tasks that may wait in all; `tasks.queue_max`. `batch_seconds`: how long a batch is collected,
        1 to 5; `tasks.batch_seconds`."""
        self.measured = Measurements()
        self._queue_max = queue_max
        self._batch_seconds = min(max(batch_seconds, BATCH_SECONDS_LEAST), BATCH_SECONDS_MOST)
        self._lines: dict[str, _Line] = {}

    @property
    def waiting(self) -> int:
        return sum(line.queue.waiting + len(line.collected) for line in self._lines.values())

    @property
    def running(self) -> int:
        return sum(line.queue.running for line in self._lines.values())

    def taken(self, root: str) -> int:
        line = self._lines.get(root)
        return line.queue.running if line is not None else 0

    def full(self, root: str, parallel: int, mode: Mode = "") -> bool:
        """True when a task for `root` would be refused now."""
        if mode == "realtime":
            return self.taken(root) >= max(1, parallel)
        return self.waiting >= self._queue_max and (mode == "batch" or self.taken(root) >= parallel)

    @asynccontextmanager
    async def slot(
        self,
        root: str,
        parallel: int,
        on_wait: Callable[[int], None] = lambda place: None,
        *,
        mode: Mode = "",
        batch_size: int = 1,
        on_collect: Callable[[int, int], None] = lambda here, wanted: None,
    ) -> AsyncIterator[None]:
        """Holds one of the `parallel` slots of the engine of `root` inside the block.

        Raises Refused (OVERLOADED) when `queue_max` tasks wait already, and for `realtime` when no slot is free. Tasks
        of mode `batch` are collected first: until `batch_size` are there, or the oldest has waited for `batch_seconds`;
        meanwhile `on_collect` is told (here, wanted). While waiting in the line, `on_wait` is told the place in it,
        from 1, whenever it changes.
        """
        line = self._lines.get(root)
        if line is None:
            line = self._lines[root] = _Line(Queue(waiting_max=self._queue_max + 1, ageing_ms=AGEING_MS))
        line.parallel = max(1, parallel)
        waiter = _Waiter(on_wait, on_collect)
        try:
            self._refuse_if_full(line, mode)
            if mode == "batch" and batch_size > 1:
                await self._collect(line, waiter, batch_size)
            else:
                line.enter(waiter, mode)
            if not waiter.turn.is_set():
                await waiter.turn.wait()
            yield
        finally:
            line.leave(waiter)
            if line.empty and self._lines.get(root) is line:
                del self._lines[root]

    def _refuse_if_full(self, line: _Line, mode: Mode) -> None:
        free = line.queue.running < line.parallel
        if mode == "realtime" and not free:
            raise Refused(
                f"all {line.parallel} slots are taken, and a realtime task never waits; ask another node, come back "
                "in a second, or ask without a mode",
                retry_after_seconds=1.0,
            )
        if self.waiting >= self._queue_max and not (free and mode != "batch"):
            raise Refused(
                f"{self.waiting} tasks wait here already; ask another node or come back in a second",
                retry_after_seconds=1.0,
            )

    async def _collect(self, line: _Line, waiter: _Waiter, batch_size: int) -> None:
        """Until the batch that `waiter` belongs to is let into the line, by its size or by its time."""
        if not line.collected:
            line.batch_due = trio.current_time() + self._batch_seconds
        due = line.batch_due
        line.collected.append(waiter)
        if len(line.collected) >= batch_size:
            line.release_batch()
            return
        for each in line.collected:
            each.on_collect(len(line.collected), batch_size)
        with trio.move_on_at(due):
            await waiter.turn.wait()
        if waiter in line.collected:  # the first of them to wake lets all of them in
            line.release_batch()


class _Line:
    """Before one engine: the tasks that hold a slot, that wait for one, and those that are collected for a batch."""

    def __init__(self, queue: Queue[_Waiter]) -> None:
        self.queue = queue
        self.parallel = 1
        self.collected: list[_Waiter] = []
        self.batch_due = 0.0
        """Loop time at which those collected are let in."""

    @property
    def empty(self) -> bool:
        return not (self.queue.waiting or self.queue.running or self.collected)

    def enter(self, waiter: _Waiter, mode: Mode) -> None:
        taken = self.queue.put(waiter, LEVELS[mode], int(trio.current_time() * 1000))
        assert taken, "EngineSlots counts all lines together; the one more is for who goes through at once"
        self._hand_out()

    def release_batch(self) -> None:
        batch, self.collected = self.collected, []
        for waiter in batch:
            self.enter(waiter, "batch")

    def leave(self, waiter: _Waiter) -> None:
        """Whatever it was doing here; a slot that it held, or was about to hold, is handed on."""
        if waiter in self.collected:
            self.collected.remove(waiter)
        elif self.queue.cancel(waiter) is not None:
            self._hand_out()

    def _hand_out(self) -> None:
        while self.queue.running < self.parallel:
            waiter = self.queue.take()
            if waiter is None:
                break
            waiter.turn.set()
        for place, each in enumerate(self.queue, start=1):
            if each.place != place:
                each.place = place
                each.on_wait(place)


class _Waiter:
    def __init__(self, on_wait: Callable[[int], None], on_collect: Callable[[int, int], None]) -> None:
        self.turn = trio.Event()
        self.place = 0
        """Last told; 0: none."""
        self.on_wait = on_wait
        self.on_collect = on_collect
