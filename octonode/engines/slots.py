"""Which slot of an engine a request gets, and whether it may reuse the prompt cached there. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slot:
    index: int
    reuse: bool
    """True when the prompt cached in the slot belongs to the same, named scope: only then may it be looked at."""


class Slots:
    """`parallel` slots, each with the scope of the last prompt it held.

    A scope gets its own slot back when that is free; others get the slot that was idle longest, so that a running
    conversation keeps its cache as long as there is choice.
    """

    def __init__(self, parallel: int) -> None:
        assert parallel >= 1
        self._free = list(range(parallel))
        self._scopes = [""] * parallel

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, scope: str) -> Slot:
        """A free slot; the caller made sure that there is one."""
        assert self._free, "no slot is free"
        index = next((i for i in self._free if scope and self._scopes[i] == scope), None)
        reuse = index is not None
        if index is None:
            index = next((i for i in self._free if not self._scopes[i]), self._free[0])
        self._free.remove(index)
        self._scopes[index] = scope
        return Slot(index, reuse)

    def give_back(self, slot: Slot) -> None:
        assert slot.index not in self._free
        self._free.append(slot.index)


def common_prefix(held: Sequence[Hashable], wanted: Sequence[Hashable]) -> int:
    """Tokens of a slot's cache that a new prompt can keep: the last one is always computed, for its logits."""
    count = 0
    for left, right in zip(held, wanted[:-1], strict=False):
        if left != right:
            break
        count += 1
    return count
