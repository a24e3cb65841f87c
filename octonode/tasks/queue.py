"""The one queue of this program, pure: who waits, who is next, who runs. Time is an argument.

The line before each engine (`slots`) and the jobs on disk (`jobs`) both stand on it. An item waits at a level, 0 the
most urgent, and rises one level for every `ageing_ms` of waiting. Since all rise alike, that order never changes once
an item is in: it is the order of arrival, put back by `ageing_ms` for each level. So nobody starves: from
`level * ageing_ms` after its arrival on an item is passed by no later one, and at most `waiting_max - 1` are before it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator
from typing import Generic, Literal, TypeVar

Key = TypeVar("Key", bound=Hashable)

Where = Literal["waiting", "running"]


class Queue(Generic[Key]):
    """Each key is in it once, waiting or running, from `put` to `finish` or `cancel`. Deterministic."""

    def __init__(self, *, waiting_max: int, ageing_ms: int) -> None:
        self.waiting_max = waiting_max
        self.ageing_ms = ageing_ms
        self._line: list[tuple[int, int, Key]] = []
        """Waiting, the next first: (rank, number, key). Numbers are unique, so keys are never compared."""
        self._places: dict[Key, tuple[int, int]] = {}
        """(rank, number) of all, the running among them: who comes back has its old place."""
        self._running: dict[Key, None] = {}
        self._numbers = 0
        self._latest_ms = 0

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[Key]:
        """Those that wait, the next first."""
        return (key for _, _, key in self._line)

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def full(self) -> bool:
        return len(self._line) >= self.waiting_max

    def where(self, key: Key) -> Where | None:
        """None: it is not in here."""
        if key not in self._places:
            return None
        return "running" if key in self._running else "waiting"

    def put(self, key: Key, level: int, now_ms: int) -> bool:
        """Wait from now on. False when `waiting_max` wait already. A clock that steps back lets nobody pass."""
        assert key not in self._places, "a key is in the queue once"
        assert level >= 0
        if self.full:
            return False
        self._latest_ms = max(self._latest_ms, now_ms)
        self._numbers += 1
        place = (self._latest_ms + level * self.ageing_ms, self._numbers)
        self._places[key] = place
        insort(self._line, (*place, key), key=_place)
        return True

    def take(self) -> Key | None:
        """The next one, which runs from now on; None when nobody waits."""
        if not self._line:
            return None
        key = self._line.pop(0)[2]
        self._running[key] = None
        return key

    def finish(self, key: Key) -> None:
        """It has run."""
        del self._running[key]
        del self._places[key]

    def requeue(self, key: Key) -> None:
        """It was running and has to run again, from the place that it had: what was in is never refused again."""
        del self._running[key]
        insort(self._line, (*self._places[key], key), key=_place)

    def cancel(self, key: Key) -> Where | None:
        """Out of the queue, wherever it is; says where it was."""
        was = self.where(key)
        if was == "waiting":
            del self._line[bisect_left(self._line, self._places[key], key=_place)]
        elif was == "running":
            del self._running[key]
        self._places.pop(key, None)
        return was

    def place(self, key: Key) -> int:
        """Of one that waits, from 1."""
        return bisect_left(self._line, self._places[key], key=_place) + 1


def _place(item: tuple[int, int, object]) -> tuple[int, int]:
    return item[:2]
