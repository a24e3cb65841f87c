"""A regular expression as a deterministic automaton: after each character one state, however the expression is written.

Engines keep every way in which the text so far may be meant, and try each of them for each token of their vocabulary.
`((a?){20}){20}` can be meant in more ways than they can count. An automaton without alternatives has one.

Positions of the characters in an expression and which may follow which: V. M. Glushkov, The Abstract Theory of
Automata, 1961. States are sets of positions, as bits of a whole number. Pure.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from octonode.engines.constraint.tree import Characters, Choice, Pattern, Repeat, Sequence
from octonode.errors import OctonodeError

STEPS_MAX: Final = 500_000
"""For all expressions of one schema: some 0.2 s, in which a worker does nothing else."""


@dataclass(frozen=True, slots=True)
class State:
    ends: bool
    """The text may end here."""
    ways: tuple[tuple[Characters, int], ...]
    """Characters, of which no two ways have one in common -> the number of the next state."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Of a part of the expression: whether it may be empty, and the positions where it begins and ends."""

    empty: bool
    first: int
    last: int


@dataclass
class Automata:
    """Makes automata for one schema, and counts what that costs."""

    steps_left: int = STEPS_MAX

    def states_of(self, pattern: Pattern) -> tuple[State, ...]:
        """The states, of which the first is the beginning. Raises OctonodeError UNSUPPORTED where it takes too long."""
        positions = _Positions(self._spend)
        whole = positions.of(pattern)
        kinds = _kinds(positions.characters)
        numbers = {(whole.first, whole.empty): 0}
        waiting = [(whole.first, whole.empty)]
        states: list[State] = []
        while len(states) < len(waiting):
            following, ends = waiting[len(states)]
            ways = []
            for mask, characters in kinds.items():
                self._spend(1 + (following & mask).bit_count())
                if met := following & mask:
                    target = (positions.after(met), bool(met & whole.last))
                    if target not in numbers:
                        numbers[target] = len(waiting)
                        waiting.append(target)
                    ways.append((characters, numbers[target]))
            states.append(State(ends, tuple(ways)))
        return tuple(states)

    def _spend(self, steps: int) -> None:
        self.steps_left -= steps
        if self.steps_left < 0:
            raise OctonodeError(
                "the schema has a pattern that cannot be enforced: it may be meant in too many ways; simplify it",
                code="UNSUPPORTED",
            )


@dataclass
class _Positions:
    """Numbers every character of an expression, those in a counted repetition as often as it counts."""

    spend: Callable[[int], None]
    characters: list[Characters] = field(default_factory=list)
    follow: list[int] = field(default_factory=list)

    def of(self, part: Pattern) -> _Part:
        if isinstance(part, Characters):
            self.characters.append(part)
            self.follow.append(0)
            bit = 1 << len(self.characters) - 1
            return _Part(False, bit, bit)
        if isinstance(part, Sequence):
            return self._joined([self.of(each) for each in part.parts])
        if isinstance(part, Choice):
            options = [self.of(each) for each in part.options]
            return _Part(
                any(each.empty for each in options), _union(o.first for o in options), _union(o.last for o in options)
            )
        return self._repeated(part)

    def _repeated(self, part: Repeat) -> _Part:
        count = max(1, part.least) if part.most is None else part.most
        copies = [self.of(part.part) for _ in range(count)]
        for number, each in enumerate(copies):
            if number >= part.least:
                copies[number] = _Part(True, each.first, each.last)
        if part.most is None:
            self._join(copies[-1].last, copies[-1].first)
        return self._joined(copies)

    def _joined(self, parts: list[_Part]) -> _Part:
        whole = _Part(True, 0, 0)
        for each in parts:
            self._join(whole.last, each.first)
            whole = _Part(
                whole.empty and each.empty,
                whole.first | (each.first if whole.empty else 0),
                each.last | (whole.last if each.empty else 0),
            )
        return whole

    def _join(self, last: int, first: int) -> None:
        self.spend(1 + last.bit_count())
        for number in _bits(last):
            self.follow[number] |= first

    def after(self, met: int) -> int:
        return _union(self.follow[number] for number in _bits(met))


def _kinds(characters: list[Characters]) -> dict[int, Characters]:
    """Positions that take a character -> all characters that just they take."""
    takers: dict[Characters, int] = defaultdict(int)
    for number, each in enumerate(characters):
        takers[each] |= 1 << number
    changes: dict[int, list[Characters]] = defaultdict(list)
    for each in takers:
        for low, high in _merged(each.ranges):
            changes[low].append(each)
            changes[high + 1].append(each)
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    mask = 0
    edges = sorted(changes)
    for low, after in itertools.pairwise(edges):
        for each in changes[low]:
            mask ^= takers[each]
        if mask:
            found[mask].append((low, after - 1))
    return {mask: Characters(tuple(ranges)) for mask, ranges in found.items()}


def _merged(ranges: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def _union(masks: Iterable[int]) -> int:
    found = 0
    for each in masks:
        found |= each
    return found


def _bits(mask: int) -> Iterator[int]:
    """Numbers of the bits that are set."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
