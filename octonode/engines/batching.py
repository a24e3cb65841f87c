"""Requests that are run together: at once when nothing runs, else all that came meanwhile. Inside a worker.

Work-conserving: a lone request waits for nobody. While a batch runs, others collect by their key; the next batch is the
key whose first request waited longest. Requests whose askers left are dropped before they run, and a batch that nobody
wants any more is cancelled. Refuses above `queue_max`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from octonode.engines.calls import again
from octonode.errors import OctonodeError

QUEUE_MAX = 256
"""Requests that may wait in one worker; one more is refused with OVERLOADED."""
SIZES = (1, 2, 4, 8, 16)
"""That are tried at load."""
GAIN_LEAST = 1.1
"""By which a size must beat the throughput of the best smaller one to be taken."""

Request = TypeVar("Request")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
Run = Callable[[Sequence[Request], Progress], Awaitable[Sequence[Result | OctonodeError]]]
"""Makes one outcome for each request, in order. Never called while it runs."""


class DynamicBatcher(Generic[Request, Result]):
    """See the module. `submit` is for any number of tasks; `run` must be running."""

    def __init__(
        self,
        run: Run[Request, Result],
        key: Callable[[Request], Hashable],
        *,
        batch_size_max: int = 1,
        queue_max: int = QUEUE_MAX,
    ) -> None:
        self._run = run
        self._key = key
        self.batch_size_max = batch_size_max
        self._queue_max = queue_max
        self._lines: OrderedDict[Hashable, deque[_Waiting[Request, Result]]] = OrderedDict()
        self._waiting = 0
        self._wake = trio.lowlevel.ParkingLot()
        self.sizes: list[int] = []
        """Of the last batches, at most 64, for those who want to see what was joined."""

    async def submit(self, request: Request, progress: Progress) -> Result:
        """The outcome of one request; cancel the caller to leave. Raises what `run` gave for it, OVERLOADED."""
        if self._waiting >= self._queue_max:
            raise OctonodeError(
                f"{self._waiting} requests wait here already; come back in a second",
                code="OVERLOADED",
                retry_after_seconds=1.0,
            )
        waiting, key = _Waiting[Request, Result](request, progress), self._key(request)
        self._lines.setdefault(key, deque()).append(waiting)
        self._waiting += 1
        self._wake.unpark()
        try:
            await waiting.done.wait()
        finally:
            waiting.leave()
            self._forget(key, waiting)
        assert waiting.outcome is not None
        if isinstance(waiting.outcome, OctonodeError):
            raise again(waiting.outcome)
        if isinstance(waiting.outcome, Exception):
            raise waiting.outcome
        return waiting.outcome

    def _forget(self, key: Hashable, waiting: _Waiting[Request, Result]) -> None:
        """Who left before its turn holds no place, and its request no memory."""
        line = self._lines.get(key)
        if line is not None and waiting in line:
            line.remove(waiting)
            self._waiting -= 1
            if not line:
                del self._lines[key]

    async def run(self) -> None:
        """Runs batches until cancelled."""
        while True:
            batch = self._next_batch()
            if not batch:
                await self._wake.park()
                continue
            self.sizes = [*self.sizes[-63:], len(batch)]
            await self._run_batch(batch)

    def _next_batch(self) -> list[_Waiting[Request, Result]]:
        """Those of one key that still want it; empty when nobody waits."""
        while self._lines:
            key = next(iter(self._lines))
            line = self._lines.pop(key)
            batch: list[_Waiting[Request, Result]] = []
            while line and len(batch) < self.batch_size_max:
                waiting = line.popleft()
                self._waiting -= 1
                if not waiting.left:
                    batch.append(waiting)
            if line:
                self._lines[key] = line  # behind the others: no key starves
            if batch:
                return batch
        return []

    async def _run_batch(self, batch: Sequence[_Waiting[Request, Result]]) -> None:
        scope = trio.CancelScope()

        def someone_left() -> None:
            if all(each.left for each in batch):
                scope.cancel()

        def tell(done: int, total: int) -> None:
            for each in batch:
                if not each.left:
                    each.progress(done, total)

        for each in batch:
            each.on_leave = someone_left
        outcomes: Sequence[Result | Exception] = ()
        with scope:
            outcomes = await self._outcomes(batch, tell)
        for each, outcome in zip(batch, outcomes, strict=False):
            each.end(outcome)

    async def _outcomes(
        self, batch: Sequence[_Waiting[Request, Result]], tell: Progress
    ) -> Sequence[Result | Exception]:
        """What all of them fail by together may be the fault of one: so each is run alone then."""
        try:
            outcomes = await self._run([each.request for each in batch], tell)
            assert len(outcomes) == len(batch), "one outcome a request"
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [error if each.left else (await self._outcomes([each], tell))[0] for each in batch]
        return outcomes


@dataclass(eq=False)
class _Waiting(Generic[Request, Result]):
    request: Request
    progress: Progress
    outcome: Result | Exception | None = None
    left: bool = False
    on_leave: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        self.done = trio.Event()

    def end(self, outcome: Result | Exception) -> None:
        self.outcome = outcome
        self.done.set()

    def leave(self) -> None:
        self.left = True
        if self.on_leave is not None and not self.done.is_set():
            self.on_leave()


async def measured_size(
    run_once: Callable[[int], Awaitable[float]], *, sizes: Sequence[int] = SIZES, seconds_max: float = 3.0
) -> int:
    """The batch size that pays: sizes are tried from small to large until the gain ends or the time is spent.

    `run_once(size)` runs one batch and gives its seconds. The first run warms up and is not counted.
    """
    spent = await run_once(1)
    best_size, best_rate = 1, 0.0
    for size in sizes:
        seconds = await run_once(size)
        spent += seconds
        rate = size / max(seconds, 1e-9)
        if best_rate and rate < best_rate * GAIN_LEAST:
            break
        best_size, best_rate = size, rate
        if spent + 2 * seconds > seconds_max:  # the next size would take about twice as long
            break
    return best_size
