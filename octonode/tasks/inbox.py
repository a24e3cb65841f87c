"""Events of one question between the task that drives it and the consumer; pieces that wait are joined."""

from __future__ import annotations

from collections import deque

import trio

from octonode.errors import OctonodeError
from octonode.tasks.asking import AskEvent, Pieces, Progress

PUTS_MAX = 256
"""Puts the consumer may lag behind; then the driver waits for it."""
CONSUMER_SECONDS_MAX = 4.0
"""And for this long; then the question ends with SLOW_READER. Below the 5 s after which yamux cuts the provider."""


class Inbox:
    """Single producer, single consumer. Iterate it once; it raises what `fail` was given."""

    def __init__(self) -> None:
        self._events: deque[AskEvent] = deque()
        self._puts = 0
        self.first_piece_at: float | None = None
        """Loop time of the first piece."""
        self._ended = False
        self._error: OctonodeError | None = None
        self._news = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()

    @property
    def full(self) -> bool:
        return self._puts >= PUTS_MAX

    def put(self, event: AskEvent) -> None:
        last = self._events[-1] if self._events else None
        if type(event) is Pieces and self.first_piece_at is None:
            self.first_piece_at = trio.current_time()
        if type(event) is Pieces and type(last) is Pieces:
            self._events[-1] = Pieces(last.pieces + event.pieces, last.first)
        elif type(event) is Progress and type(last) is Progress:
            self._events[-1] = event
        else:
            self._events.append(event)
        self._puts += 1
        self._news.unpark()

    async def room(self) -> None:
        """Waits while the consumer lags too far behind. Raises OctonodeError (SLOW_READER)."""
        if not self.full:
            return
        with trio.move_on_after(CONSUMER_SECONDS_MAX):
            while self._puts >= PUTS_MAX:
                await self._room.park()
            return
        raise OctonodeError("the answer was not read for too long; it was canceled", code="SLOW_READER")

    @property
    def ended(self) -> bool:
        return self._ended

    def end(self) -> None:
        self._ended = True
        self._news.unpark()

    def fail(self, error: OctonodeError) -> None:
        self._error = error
        self.end()

    def __aiter__(self) -> Inbox:
        return self

    async def __anext__(self) -> AskEvent:
        if self._events or self._ended:
            await trio.lowlevel.checkpoint()
        while not self._events:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._ended:
                raise StopAsyncIteration
            await self._news.park()
        self._puts = 0
        self._room.unpark()
        return self._events.popleft()
