"""Requests for results in a worker: the batch size measured at load, and the batcher between requests and the maker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from octonode.engines.batching import DynamicBatcher, measured_size
from octonode.engines.contract import EngineFacts
from octonode.errors import OctonodeError
from octonode.protocol.work.skills import WorkRequest, WorkResult

if TYPE_CHECKING:
    from octonode.engines.adapters.base import Maker, Outcome, Progress

MEASURE_SECONDS = 1.0
"""At most, where the options of the load do not say otherwise."""


class Making:
    """A loaded maker with its batcher. `run` must be running while requests are made."""

    def __init__(self, maker: Maker) -> None:
        self._maker = maker
        self.batcher: DynamicBatcher[WorkRequest, WorkResult] = DynamicBatcher(self._make, maker.key)

    async def measured(self, facts: EngineFacts, seconds_max: float = MEASURE_SECONDS) -> EngineFacts:
        """The facts with the batch size that pays here, and twice as many requests at once: one batch runs, one
        collects. Raises what the maker raises for its own sample."""
        size = 1
        if self._maker.sample() is not None and seconds_max > 0:
            size = await measured_size(self._time, seconds_max=seconds_max)
        self.batcher.batch_size_max = size
        return replace(facts, batch_size=size, parallel=2 * size)

    async def _time(self, size: int) -> float:
        sample = self._maker.sample()
        assert sample is not None
        began = time.perf_counter()
        for outcome in await self._maker.make([sample] * size, _unheard):
            if isinstance(outcome, OctonodeError):
                raise outcome
        return time.perf_counter() - began

    async def run(self) -> None:
        await self.batcher.run()

    async def make(self, request: WorkRequest, progress: Progress) -> WorkResult:
        """The result of one request; cancel the task to leave. Raises OctonodeError."""
        return await self.batcher.submit(request, progress)

    async def _make(self, requests: Sequence[WorkRequest], progress: Progress) -> Sequence[Outcome]:
        token = trio.lowlevel.current_trio_token()

        def tell(done: int, total: int) -> None:
            """From whatever thread the engine runs in."""
            token.run_sync_soon(progress, done, total)

        return await self._maker.make(requests, tell)


def _unheard(done: int, total: int) -> None:
    pass
