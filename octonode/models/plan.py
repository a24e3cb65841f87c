"""Which leaves are asked of whom: rarest first, in runs, every source from a place of its own, twice in the endgame.

Sans-IO. Sets of leaves are integers (models.bitmap), so a decision costs microseconds at 40,000 leaves.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Hashable, Iterable
from typing import Final

from octonode.ipfs.layout import Layout, Leaf
from octonode.models import bitmap

ENDGAME_LEAVES: Final = 32
"""When so few are left and all are under way, the slow ones are asked of a second source too. Of a small model it is
an eighth: else it would be asked for twice as a whole."""
RUN_LEAVES_MAX: Final = 128
ASKED_AT_MOST: Final = 2


class FetchPlan:
    """What is missing, what was asked of whom, and what each source has. `have` is what is held at the start."""

    def __init__(self, layout: Layout, have: int, rng: random.Random) -> None:
        self._leaves = layout.leaves
        self._everything = bitmap.full(len(layout.leaves))
        self._missing = self._everything & ~have
        self._free = self._missing
        self._asked: dict[int, list[Hashable]] = {}
        self._has: dict[Hashable, int] = {}
        self._cursor: dict[Hashable, int] = {}
        self._levels: list[int] = []
        self._endgame_leaves = min(ENDGAME_LEAVES, max(4, len(layout.leaves) // 8))
        self._reserved = 0
        self._fellows: frozenset[Hashable] = frozenset()
        self._fellow_leaves = 0
        self._near: set[Hashable] = set()
        self._near_leaves = 0
        self._rng = rng
        held = bitmap.members(have & self._everything)
        self.done_bytes = sum(self._leaves[number].size_bytes for number in held)

    @property
    def complete(self) -> bool:
        return not self._missing

    @property
    def missing(self) -> int:
        """The set of leaves not yet verified."""
        return self._missing

    def set_source(self, key: Hashable, has: int | None, *, near: bool = False) -> None:
        """A source and what it has (None: all). Called again when its bitmap was read again.

        `near`: it costs nobody anything, such as a file on this machine. What it has is asked of it alone, and nothing
        of that is left to others.
        """
        self._has[key] = self._everything if has is None else has & self._everything
        if near:
            self._near.add(key)
        if key not in self._cursor:
            self._cursor[key] = self._rng.randrange(max(1, len(self._leaves)))
        self._rank()

    def holds(self, key: Hashable) -> int:
        """What a source has said it has; nothing before it said so."""
        return self._has.get(key, 0)

    def has_said(self, key: Hashable) -> bool:
        return key in self._has

    def is_whole(self, key: Hashable) -> bool:
        return self._has.get(key) == self._everything

    def reserve(self, leaves: int, fellows: Collection[Hashable]) -> None:
        """`leaves` are left to others who fetch the same model, the sources `fellows`: those that have everything are
        not asked for these, nor for what a fellow has by now, nor for anything a second time."""
        self._reserved, self._fellows = leaves, frozenset(fellows)
        self._rank()

    def waits_at(self, key: Hashable) -> bool:
        """True when the source is idle for us only because all that it could give is reserved."""
        free = self._free & self._has.get(key, 0)
        return bool(free) and not self._askable(key, free)

    def _askable(self, key: Hashable, leaves: int) -> int:
        if key in self._near:
            return leaves
        leaves &= ~self._near_leaves
        return leaves & ~(self._reserved | self._fellow_leaves) if self.is_whole(key) else leaves

    def drop_source(self, key: Hashable) -> None:
        """The source is gone; what was asked of it alone is free again."""
        self._has.pop(key, None)
        self._cursor.pop(key, None)
        self.give_back(key, [n for n, keys in self._asked.items() if key in keys])
        self._rank()

    def _rank(self) -> None:
        """levels[k]: leaves that exactly k + 1 sources have."""
        self._near_leaves = 0
        for key in self._near & self._has.keys():
            self._near_leaves |= self._has[key]
        self._fellow_leaves = 0
        for key in self._fellows & self._has.keys():
            self._fellow_leaves |= self._has[key]
        at_least: list[int] = [0] * (len(self._has) + 1)
        for has in self._has.values():
            for k in range(len(at_least) - 2, 0, -1):
                at_least[k] |= at_least[k - 1] & has
            at_least[0] |= has
        self._levels = [low & ~high for low, high in itertools.pairwise(at_least)]

    def can_help(self, key: Hashable) -> bool:
        """True when the source has something that is missing, or has not said yet what it has."""
        return key not in self._has or bool(self._missing & self._has[key])

    def next_run(self, key: Hashable, bytes_max: int) -> tuple[Leaf, ...]:
        """Consecutive leaves of one file to ask of `key` now, at least one whatever `bytes_max`; () for none."""
        free = self._askable(key, self._free & self._has[key])
        for level in self._levels:
            if rare := free & level:
                return self._take(key, free, self._first(key, rare), bytes_max)
        return self._endgame(key)

    def _first(self, key: Hashable, candidates: int) -> int:
        cursor = self._cursor[key]
        behind = candidates >> cursor
        return bitmap.lowest(behind) + cursor if behind else bitmap.lowest(candidates)

    def _take(self, key: Hashable, free: int, first: int, bytes_max: int) -> tuple[Leaf, ...]:
        run: list[Leaf] = []
        size = 0
        for number in range(first, first + bitmap.run_length(free, first, RUN_LEAVES_MAX)):
            leaf = self._leaves[number]
            size += leaf.size_bytes
            if run and (size > bytes_max or leaf.file != run[0].file):
                break
            run.append(leaf)
            self._asked.setdefault(number, []).append(key)
        self._free &= ~(bitmap.full(len(run)) << first)
        self._cursor[key] = run[-1].number + 1
        return tuple(run)

    def _endgame(self, key: Hashable) -> tuple[Leaf, ...]:
        if len(self._asked) > self._endgame_leaves or self._free:
            return ()
        if self._fellows and self.is_whole(key) and key not in self._near:
            return ()
        for number, keys in self._asked.items():
            if self._askable(key, self._has[key]) >> number & 1 and key not in keys and len(keys) < ASKED_AT_MOST:
                keys.append(key)
                return (self._leaves[number],)
        return ()

    def verified(self, leaves: Iterable[Leaf]) -> int:
        """These are written. The bytes that were new."""
        fresh = 0
        given = list(leaves)
        first = min((leaf.number for leaf in given), default=0)
        last = max((leaf.number for leaf in given), default=0)
        # Sets of a large model are large: they are looked at and changed once for all leaves that came.
        done, missing = 0, (self._missing >> first) & bitmap.full(last - first + 1)
        for leaf in given:
            offset = leaf.number - first
            if missing >> offset & 1 and not done >> offset & 1:
                fresh += leaf.size_bytes
            done |= 1 << offset
            self._asked.pop(leaf.number, None)
        self._missing &= ~(done << first)
        self._free &= ~(done << first)
        self.done_bytes += fresh
        return fresh

    def give_back(self, key: Hashable, numbers: Iterable[int]) -> None:
        """`key` will not bring these after all; those nobody else was asked for are free again."""
        for number in numbers:
            keys = self._asked.get(number)
            if keys is None or key not in keys:
                continue
            keys.remove(key)
            if not keys:
                del self._asked[number]
                self._free |= self._missing & (1 << number)
