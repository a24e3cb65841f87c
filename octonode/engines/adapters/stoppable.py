"""Work that blocks, in a thread, told to stop when its task is cancelled: libraries look at a flag now and then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

T = TypeVar("T")


class Stopped(Exception):
    """Nobody wants the result any more."""


class Stop:
    """The flag. `check` is for callbacks of libraries that end by an exception, `asked` for those that ask."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._telling: list[Callable[[], object]] = []

    @property
    def asked(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """Raises Stopped."""
        if self._event.is_set():
            raise Stopped

    def ask(self) -> None:
        self._event.set()
        for tell in tuple(self._telling):
            tell()

    @contextmanager
    def telling(self, tell: Callable[[], object]) -> Iterator[None]:
        """Within the block `tell` is called, from another thread, when the work shall stop: for libraries that have a
        switch of their own."""
        self._telling.append(tell)
        try:
            if self.asked:
                tell()
            yield
        finally:
            self._telling.remove(tell)


async def run_stoppable(work: Callable[[Stop], T]) -> T:
    """What `work` gives or raises. Cancelled, it returns only after the thread came to its end, by Stopped or without:
    so nothing of one request still runs beside the next."""
    stop = Stop()

    def caught() -> T | Exception:
        try:
            return work(stop)
        except Exception as error:
            return error

    outcome: T | Exception = Stopped()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_ask_when_cancelled, stop)
        with trio.CancelScope(shield=True):
            outcome = await trio.to_thread.run_sync(caught)
        nursery.cancel_scope.cancel()
    await trio.lowlevel.checkpoint_if_cancelled()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def _ask_when_cancelled(stop: Stop) -> None:
    try:
        await trio.sleep_forever()
    finally:
        stop.ask()
