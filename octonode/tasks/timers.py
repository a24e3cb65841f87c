"""Timers that all streams of a side share: a thousand of them then cost no more wake-ups of the loop than one.

A deadline of trio's own is cheap to set and dear to meet: it wakes the loop for one task, by an exception.
"""

from __future__ import annotations

import heapq
import math
from typing import Protocol

import trio
from trio.lowlevel import ParkingLot

GRAIN_SECONDS = 0.005
"""Who is due within one grain is woken together."""
LOOK_SECONDS = 0.125
"""Between two looks at those who wait."""
LATE_SECONDS = 0.05
"""A look that comes this much late tells that our own loop did not turn."""


class Pace:
    """Wakes whoever parks in a lot, at the time it has asked for or at most `GRAIN_SECONDS` later."""

    def __init__(self) -> None:
        self._due: dict[int, list[ParkingLot]] = {}
        """By the number of their grain."""
        self._order: list[int] = []
        self._sleep = trio.CancelScope()

    def wake_at(self, due: float, lot: ParkingLot) -> None:
        """It cannot be taken back; who has been woken before is woken for nothing."""
        grain = math.ceil(due / GRAIN_SECONDS)
        lots = self._due.get(grain)
        if lots is not None:
            lots.append(lot)
            return
        self._due[grain] = [lot]
        heapq.heappush(self._order, grain)
        if self._order[0] == grain:
            self._sleep.deadline = grain * GRAIN_SECONDS

    async def run(self) -> None:
        """Until cancelled."""
        order = self._order
        while True:
            with trio.CancelScope(deadline=order[0] * GRAIN_SECONDS if order else math.inf) as self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            while order and order[0] * GRAIN_SECONDS <= now:
                for lot in self._due.pop(heapq.heappop(order)):
                    lot.unpark_all()


class Waiter(Protocol):
    """Who may wait too long for the other end."""

    waits_since: float
    """Loop time; infinite while it waits for nothing."""

    def give_up(self) -> None:
        """It has waited for too long."""
        ...


class Watch:
    """Looks at all who wait, and has those give up who do for longer than `seconds_max`.

    Time in which our own loop did not turn is not held against the other end: what it sent meanwhile lies unread here.
    """

    def __init__(self, seconds_max: float) -> None:
        self.seconds_max = seconds_max
        self._waiters: set[Waiter] = set()
        self._first = ParkingLot()

    def add(self, waiter: Waiter) -> None:
        self._waiters.add(waiter)
        self._first.unpark()

    def remove(self, waiter: Waiter) -> None:
        self._waiters.discard(waiter)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            while not self._waiters:
                await self._first.park()
            due = trio.current_time() + LOOK_SECONDS
            await trio.sleep_until(due)
            self._look(trio.current_time(), trio.current_time() - due)

    def _look(self, now: float, late_seconds: float) -> None:
        for waiter in tuple(self._waiters):
            if late_seconds > LATE_SECONDS:
                waiter.waits_since += late_seconds
            if now - waiter.waits_since >= self.seconds_max:
                waiter.give_up()
