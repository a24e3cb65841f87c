"""The wall clock, as the network's services take it: tests bring their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")
NowMs = Callable[[], int]
"""Unix time in milliseconds."""


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Chance(Protocol):
    """What the network's services use of `random.Random`."""

    def random(self) -> float: ...

    def sample(self, population: Sequence[Item], k: int) -> list[Item]: ...

    def randbytes(self, n: int) -> bytes: ...
