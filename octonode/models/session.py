"""One running fetch: a task a lane, a window a source, and what is done about sources that fail."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

import trio

from octonode.errors import NotFound, OctonodeError, RemoteProtocolError, Unreachable, VerificationFailed, one_error
from octonode.ipfs.gateway_client import Stalled
from octonode.ipfs.layout import Layout, Leaf
from octonode.models.fellows import Fellows
from octonode.models.fetching import BlockPeers, FetchLimits, FetchProgress, Progress, add_peers
from octonode.models.memory import FetchMemory
from octonode.models.plan import FetchPlan
from octonode.models.receiving import BATCH_BYTES, Batch, Receiver
from octonode.models.sources.source import Lane, Source
from octonode.models.writing import LeafWriter

log = logging.getLogger(__name__)

PROGRESS_SECONDS: Final = 0.25
LAST_RANK: Final = 2
"""Gateways of strangers: asked for what nobody nearer has."""
_FAST_SECONDS: Final = 1.0
"""A run that takes less than this lets its source's window grow."""
_GENTLE_SECONDS: Final = 1.0
"""At the start, where others may begin at the same time, windows do not grow for so long: until all know each other."""
_SPEED_SECONDS: Final = 2.0
"""Over about so long speeds are averaged."""


class _SourceState:
    def __init__(self, source: Source, window_bytes: int) -> None:
        self.source = source
        self.window_bytes = window_bytes
        self.failures = 0
        self.scope = trio.CancelScope()


class FetchSession:
    """Brings the missing leaves of one layout into the store, from all the sources there are."""

    def __init__(
        self,
        layout: Layout,
        writer: LeafWriter,
        *,
        limits: FetchLimits,
        rng: random.Random,
        progress: Progress | None,
        banned: dict[str, str],
        memory: FetchMemory,
        priority: int = 0,
        own: str = "",
    ) -> None:
        self._layout = layout
        self._limits = limits
        self._progress = progress
        self._plan = FetchPlan(layout, writer.model.have_bits(), rng)
        self._fellows = Fellows(self._plan, len(layout.leaves), own, limits.patience_seconds)
        self._memory = memory
        self._priority = priority
        self._receiver = Receiver(writer, self._verified, self._wrong, limits.sync_bytes)
        self._active: dict[str, _SourceState] = {}
        self._set_aside: dict[str, float] = {}
        self._set_aside_times: Counter[str] = Counter()
        self._banned = banned
        self._changed = trio.Event()
        self._last_byte_at = 0.0
        self._settle_at = math.inf
        self._own = own
        self._gentle_until = math.inf
        self._last_error = "nobody is known to have it"
        self._labels: dict[str, str] = {}
        self.by_source: Counter[str] = Counter()
        """Verified bytes by the label of the source."""
        self._speeds: dict[str, float] = {}
        self._measured: Counter[str] = Counter()

    async def run(self, sources: Sequence[Source], peers: BlockPeers | None) -> None:
        """Until every leaf is verified and written. Raises Unreachable when no byte came for too long,
        VerificationFailed when all sources lie."""
        self._last_byte_at = trio.current_time()
        if not self._plan.complete:
            with one_error():
                async with trio.open_nursery() as nursery:
                    await nursery.start(self._receiver.run)
                    nursery.start_soon(self._report_progress)
                    nursery.start_soon(self._find_sources, list(sources), peers, nursery)
                    while self._plan.missing:
                        await self._changed.wait()
                    nursery.cancel_scope.cancel()
        self._tell("done")

    # -- sources ------------------------------------------------------------------------------------------------

    async def _find_sources(self, sources: list[Source], peers: BlockPeers | None, nursery: trio.Nursery) -> None:
        """Start sources, ask for more of them, bring those set aside back after a while, and give up in the end."""
        next_ask = 0.0
        with trio.move_on_after(self._limits.settle_seconds):  # who began a moment before us shares with us
            await add_peers(self._layout.root, sources, peers, self._limits, self._banned)
        self._settle_at = trio.current_time() + self._limits.settle_seconds
        self._gentle_until = trio.current_time() + (_GENTLE_SECONDS if self._own else 0.0)
        while True:
            now = trio.current_time()
            self._start_sources(sources, nursery, now)
            self._give_up_in_time(sources, peers is not None, now - self._last_byte_at)
            await trio.sleep(self._limits.retry_seconds)
            if peers is not None and trio.current_time() >= next_ask:
                await add_peers(self._layout.root, sources, peers, self._limits, self._banned)
                pause = self._limits.look_seconds if self._active else 4 * self._limits.retry_seconds
                next_ask = trio.current_time() + pause

    def _give_up_in_time(self, sources: Sequence[Source], more_may_come: bool, quiet_seconds: float) -> None:
        """Raises VerificationFailed once all who are known to have it lied, Unreachable after a long silence."""
        missing = self._plan.missing.bit_count()
        what = f"{missing} of {len(self._layout.leaves)} blocks of {self._layout.root} are missing"
        lied = not self._active and all(source.name in self._banned for source in sources)
        if lied and sources and (not more_may_come or quiet_seconds > self._limits.nobody_seconds):
            raise VerificationFailed(
                f"{what} and nobody known gives true ones: {self._last_error}. Nothing false was written and what was "
                "verified is kept; run the same command again when another holder is online"
            )
        if (lied and not more_may_come) or quiet_seconds > self._limits.give_up_seconds:
            raise Unreachable(
                f"{what} and no source gives them: {self._last_error}. What was fetched is kept; run the same command "
                "again later"
            )

    def _start_sources(self, sources: Sequence[Source], nursery: trio.Nursery, now: float) -> None:
        for source in sorted(sources, key=lambda each: each.rank):
            name = source.name
            if len(self._active) >= self._limits.sources_max:
                return
            if name in self._active or name in self._banned or self._set_aside.get(name, 0.0) > now:
                continue
            if self._has_better_way(source, sources, now):
                continue
            nearer = (key for key, active in self._active.items() if active.source.rank < source.rank)
            if source.rank < LAST_RANK or not any(self._plan.can_help(key) for key in nearer):
                self._active[name] = _SourceState(source, self._limits.window_bytes_start)
                self._labels[name] = source.label
                nursery.start_soon(self._run_source, self._active[name])

    def _has_better_way(self, source: Source, sources: Sequence[Source], now: float) -> bool:
        """True when the same peer is used another way, or may be: the first of its sources that works is the one."""
        if source.peer_id is None:
            return False
        for other in sources:
            if other is source:
                return any(each.source.peer_id == source.peer_id for each in self._active.values())
            usable = other.name not in self._banned and self._set_aside.get(other.name, 0.0) <= now
            if other.peer_id == source.peer_id and usable:
                return True
        return False

    async def _run_source(self, state: _SourceState) -> None:
        """All lanes of one source, until it is banned or fails too often. Only a full disk and the like get out."""
        name = state.source.name
        try:
            with state.scope:
                async with trio.open_nursery() as nursery:
                    for number in range(state.source.lanes):
                        nursery.start_soon(self._run_lane, state, f"{name}#{number}")
        finally:
            self._active.pop(name, None)
            self._plan.drop_source(name)
            self._fellows.gone(name)
            self._set_aside[name] = trio.current_time() + self._limits.set_aside_seconds
            self._wake()

    async def _run_lane(self, state: _SourceState, label: str) -> None:
        name = state.source.name
        lane = state.source.open()
        read_at = -math.inf
        try:
            while not self._plan.complete:
                try:
                    if trio.current_time() - read_at >= self._limits.read_bitmap_seconds:
                        await self._read_bitmap(state.source, lane)
                        read_at = trio.current_time()
                    if not self._settled():
                        await self._idle_at(name)
                        continue
                    run = self._plan.next_run(name, max(1, state.window_bytes // state.source.lanes))
                    if not run:
                        if await self._idle_at(name):
                            read_at = -math.inf
                        continue
                    self._fellows.works()
                    await self._take_run(state, lane, run)
                except OctonodeError as error:
                    if not await self._failed(state, error):
                        return
                    read_at = -math.inf
        finally:
            lane.close()
            log.debug("lane %s ends", label)

    def _settled(self) -> bool:
        """Nobody is asked for leaves before all who are known at the start have said what they have, or had time to."""
        if self._settle_at and (
            trio.current_time() >= self._settle_at or all(self._plan.has_said(name) for name in self._active)
        ):
            self._settle_at = 0.0
            self._wake()
        return not self._settle_at

    async def _read_bitmap(self, source: Source, lane: Lane) -> None:
        self._plan.set_source(source.name, await lane.have(self._layout), near=source.rank == 0)
        self._fellows.saw(source.name, source.peer_id or "")

    async def _idle_at(self, name: str) -> bool:
        """There is nothing to ask of this source now; True when it is time to read its bitmap again."""
        if self._plan.waits_at(name):
            self._fellows.waits(trio.current_time())
        with trio.move_on_after(min(self._limits.idle_bitmap_seconds, self._limits.read_bitmap_seconds)):
            await self._changed.wait()
            return False
        return not self._plan.is_whole(name)

    async def _wait_for_change(self) -> None:
        """Until something is free again, or it is time to read the bitmap again."""
        with trio.move_on_after(self._limits.read_bitmap_seconds):
            await self._changed.wait()

    async def _take_run(self, state: _SourceState, lane: Lane, run: tuple[Leaf, ...]) -> None:
        """Receive one run; its memory is free again when this returns. Gives back what did not come."""
        name = state.source.name
        batches: list[Batch] = []
        gathered: list[tuple[Leaf, memoryview]] = []
        missing = {leaf.number for leaf in run}
        started = -math.inf

        def hand_on() -> None:
            if gathered:
                batches.append(Batch(name, state.source.verifies, gathered.copy()))
                gathered.clear()
                self._receiver.put(batches[-1])

        def arrived(leaves: list[tuple[Leaf, memoryview]]) -> None:
            gathered.extend(leaves)
            missing.difference_update(leaf.number for leaf, _ in leaves)
            if sum(len(data) for _, data in gathered) >= BATCH_BYTES:
                hand_on()

        try:
            async with self._memory.take(sum(leaf.size_bytes for leaf in run), self._priority):
                started = trio.current_time()
                try:
                    await lane.leaves(self._layout.files[run[0].file].root, run, arrived)
                finally:
                    hand_on()
                    self._plan.give_back(name, missing)
                    self._wake()
                    for batch in batches:
                        await batch.done.wait()
        finally:
            self._plan.give_back(name, missing)
        state.failures = 0
        if trio.current_time() - started < _FAST_SECONDS and trio.current_time() >= self._gentle_until:
            state.window_bytes = min(self._limits.window_bytes_max, state.window_bytes * 2)

    async def _failed(self, state: _SourceState, error: OctonodeError) -> bool:
        """What a lane's failure means for its source; False when the lane is to end."""
        name = state.source.name
        self._last_error = error.message if name in error.message else f"{name}: {error.message}"
        if isinstance(error, VerificationFailed):
            self._ban(name, error.message)
            return False
        if isinstance(error, RemoteProtocolError):
            log.info("%s is not used any more: %s", name, error.message)
            self._ban(name, error.message)
            return False
        state.failures += 1
        if isinstance(error, Stalled):
            state.window_bytes = max(self._limits.window_bytes_start // 4, state.window_bytes // 2)
        if state.failures >= self._limits.failures_max * state.source.lanes:
            self._set_aside_times[name] += 1
            log.info("%s is set aside: %s", name, error.message)
            if self._set_aside_times[name] >= self._limits.set_aside_max:
                self._ban(name, error.message)
            state.scope.cancel()
            return False
        if isinstance(error, NotFound):
            await self._wait_for_change()
        await trio.sleep(self._limits.retry_seconds * state.failures)
        return True

    def _ban(self, name: str, why: str) -> None:
        self._banned[name] = why
        if name in self._active:
            self._active[name].scope.cancel()
        self._wake()

    # -- what the receiver says ---------------------------------------------------------------------------------

    def _verified(self, source: str, leaves: list[Leaf]) -> None:
        fresh = self._plan.verified(leaves)
        self.by_source[self._labels[source]] += fresh
        self._set_aside_times.pop(source, None)
        if fresh:
            self._last_byte_at = trio.current_time()
        self._wake()

    def _wrong(self, source: str, leaf: Leaf) -> None:
        log.warning("%s sent wrong bytes for %s and is banned for this model", source, leaf.cid)
        self._last_error = f"{source} sent wrong bytes"
        self._ban(source, f"wrong bytes for {leaf.cid}")

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # -- progress -----------------------------------------------------------------------------------------------

    async def _report_progress(self) -> None:
        while True:
            self._tell("leaves")
            await trio.sleep(PROGRESS_SECONDS)
            weight = PROGRESS_SECONDS / _SPEED_SECONDS
            for name, done in self.by_source.items():
                now = (done - self._measured[name]) / PROGRESS_SECONDS
                self._speeds[name] = self._speeds.get(name, now) * (1 - weight) + now * weight
                self._measured[name] = done

    def _tell(self, phase: Literal["leaves", "done"]) -> None:
        if self._progress is None:
            return
        total, done, speed = self._layout.size_bytes, self._plan.done_bytes, sum(self._speeds.values())
        left = 0.0 if phase == "done" else (total - done) / speed if speed > 0 else math.inf
        by_source, speeds = dict(self.by_source), dict(self._speeds)
        self._progress(FetchProgress(self._layout.root, phase, done, total, speed, left, by_source, speeds))
