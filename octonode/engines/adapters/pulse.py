"""Tells a slow step from a hung one: one step of a large network on a processor takes longer than the daemon waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from octonode.engines.adapters.base import Outcome, Progress, Request, each_alone
from octonode.engines.adapters.stoppable import Stop, run_stoppable
from octonode.protocol.work.skills import WorkRequest, WorkResult

PULSE_SECONDS: Final = 10.0
STEP_SECONDS_MAX: Final = 900.0
"""After so long without a step of its own, what computes is left to the daemon's watchdog, too."""
BUSY_SECONDS: Final = 1.0
"""Of processor time since the last pulse; who hangs uses none."""


@contextmanager
def pulsing(progress: Progress, *, pulse_seconds: float = PULSE_SECONDS) -> Iterator[Progress]:
    """`progress` to be used within the block: what it told last is told again while the process computes."""
    told = _Told(progress)
    ended = threading.Event()
    thread = threading.Thread(target=_pulse, args=(told, ended, pulse_seconds), name="pulse", daemon=True)
    thread.start()
    try:
        yield told
    finally:
        ended.set()
        thread.join()


async def each_pulsing(
    requests: Sequence[WorkRequest],
    kind: type[Request],
    work: Callable[[Request, Progress, Stop], WorkResult],
    progress: Progress,
) -> list[Outcome]:
    """As `each_alone`, in a stoppable thread and with a pulse: for work whose steps take long."""

    def run(stop: Stop) -> list[Outcome]:
        with pulsing(progress) as told:
            return each_alone(requests, kind, lambda each: work(each, told, stop))

    return await run_stoppable(run)


class _Told:
    """What was told last, and when."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._last = (0, 1)
        self.at = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        self._last = (done, total)
        self.at = time.monotonic()
        self._progress(done, total)

    def again(self) -> None:
        self._progress(*self._last)


def _pulse(told: _Told, ended: threading.Event, pulse_seconds: float) -> None:
    used = time.process_time()
    least = BUSY_SECONDS * pulse_seconds / PULSE_SECONDS
    while not ended.wait(pulse_seconds):
        before, used = used, time.process_time()
        if used - before >= least and time.monotonic() - told.at < STEP_SECONDS_MAX:
            told.again()
