"""Timers that streams share: nobody is woken too soon, and our own lateness is nobody's silence."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import trio
from trio.lowlevel import ParkingLot
from trio.testing import MockClock as Clock

from octonode.protocol.messages import StatusUpdate
from octonode.tasks.timers import GRAIN_SECONDS, LATE_SECONDS, LOOK_SECONDS, Pace, Watch
from octonode.tasks.writer import FRAME_SECONDS
from tests.tasks.callers import call, pair, request


class Waiting:
    """A waiter that remembers when it gave up."""

    def __init__(self, waits_since: float) -> None:
        self.waits_since = waits_since
        self.gave_up_at: list[float] = []

    def give_up(self) -> None:
        self.gave_up_at.append(trio.current_time())


async def test_each_is_woken_at_its_time_and_at_most_one_grain_later(autojump_clock: Clock) -> None:
    pace, woken = Pace(), {}

    async def wait(due: float) -> None:
        lot = ParkingLot()
        pace.wake_at(due, lot)
        await lot.park()
        woken[due] = trio.current_time()

    dues = [5.0, 0.2, 0.201, 0.204, 0.0, 3.1, 1.0]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pace.run)
        async with trio.open_nursery() as waiting:
            for due in dues:
                waiting.start_soon(wait, due)
        nursery.cancel_scope.cancel()
    assert sorted(woken) == sorted(dues)
    assert all(-1e-9 <= at - due <= GRAIN_SECONDS + 1e-9 for due, at in woken.items())


async def test_an_earlier_time_is_met_though_a_later_one_was_asked_for_first(autojump_clock: Clock) -> None:
    pace, lot = Pace(), ParkingLot()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pace.run)
        pace.wake_at(100.0, ParkingLot())
        await trio.sleep(1)
        pace.wake_at(2.0, lot)
        await lot.park()
        assert trio.current_time() == pytest.approx(2.0)
        nursery.cancel_scope.cancel()


async def test_who_waits_too_long_gives_up_and_who_waits_for_nothing_does_not(autojump_clock: Clock) -> None:
    watch, patient, silent = Watch(3.0), Waiting(math.inf), Waiting(0.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        watch.add(patient)
        watch.add(silent)
        await trio.sleep(3.0 + LOOK_SECONDS)
        watch.remove(silent)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert silent.gave_up_at[0] == pytest.approx(3.0, abs=LOOK_SECONDS)
    assert patient.gave_up_at == []


async def test_time_in_which_our_own_loop_did_not_turn_is_not_held_against_the_other_end() -> None:
    watch, waiter = Watch(3.0), Waiting(0.0)
    watch.add(waiter)
    watch._look(now=2.9, late_seconds=2.0)  # two of these seconds were our own
    watch._look(now=4.9, late_seconds=LATE_SECONDS / 2)
    assert waiter.gave_up_at == []
    watch._look(now=5.1, late_seconds=0.0)
    assert len(waiter.gave_up_at) == 1


async def test_frames_of_a_fast_model_are_a_frame_time_apart_and_those_of_a_slow_one_are_not_delayed(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with pair(tmp_path) as (asker, provider, engine):
        for seconds_per_token, least, most in ((0.007, FRAME_SECONDS, 0.037), (0.05, 0.05, 0.05)):
            engine.script.answer_tokens, engine.script.seconds_per_token = 60, seconds_per_token
            caller, times = await call(asker, provider), []
            await caller.send(request(parameters={"max_tokens": 60}))
            await caller.until(lambda message, times=times: times.append((message, trio.current_time())))  # type: ignore[misc]
            texts = [at for message, at in times if isinstance(message, StatusUpdate) and message.pieces]
            gaps = [after - before for before, after in itertools.pairwise(texts)][:-1]  # the last one never waits
            assert min(gaps) >= least - 1e-6
            assert max(gaps) <= most + GRAIN_SECONDS
