"""Others who fetch the same model at the same time, and what is left to them. Sans-IO; time is a `now` argument."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from octonode.models.plan import FetchPlan
from octonode.models.shares import share_out

PROGRESS_PART: Final = 8
"""Waiting goes on while the others bring at least one part in so many of what they owe, within the patience."""


class Fellows:
    """Keeps `plan.reserve` up to date. `own` is our name in the shares; empty: nothing is ever reserved."""

    def __init__(self, plan: FetchPlan, leaf_count: int, own: str, patience_seconds: float) -> None:
        self._plan = plan
        self._leaf_count = leaf_count
        self._own = own
        self._patience_seconds = patience_seconds
        self._peers: dict[Hashable, str] = {}
        self._shares: dict[str, int] = {}
        self._slow: set[str] = set()
        self._waits_since: float | None = None
        self._owed_then = 0

    @property
    def names(self) -> frozenset[str]:
        """Those who share with us now."""
        return frozenset(self._shares) - {self._own}

    def saw(self, key: Hashable, peer: str) -> None:
        """The source `key` of the peer `peer` has said what it has; the plan knows it."""
        if not self._own or not peer or peer == self._own:
            return
        fetches = not self._plan.is_whole(key) and peer not in self._slow
        if fetches != (key in self._peers):
            if fetches:
                self._peers[key] = peer
            else:
                del self._peers[key]
            self._share()

    def gone(self, key: Hashable) -> None:
        if self._peers.pop(key, None) is not None:
            self._share()

    def waits(self, now: float) -> None:
        """A source that has everything is idle, because all that is free is left to others. After the patience the
        slowest of them is counted in no more, and its share falls to the rest of us."""
        owed = {peer: self._owed(key, peer).bit_count() for key, peer in self._peers.items()}
        left = sum(owed.values())
        if self._waits_since is None or left < self._owed_then - self._owed_then // PROGRESS_PART:
            self._waits_since, self._owed_then = now, left
        elif now - self._waits_since >= self._patience_seconds and owed:
            slowest = max(owed, key=lambda peer: (owed[peer], peer))
            self._slow.add(slowest)
            self._peers = {key: peer for key, peer in self._peers.items() if peer != slowest}
            self._waits_since = None
            self._share()

    def works(self) -> None:
        """There is something to ask for again."""
        self._waits_since = None

    def _owed(self, key: Hashable, peer: str) -> int:
        return self._shares.get(peer, 0) & self._plan.missing & ~self._plan.holds(key)

    def _share(self) -> None:
        names = {self._own, *self._peers.values()}
        self._shares = share_out(names, self._leaf_count) if len(names) > 1 else {}
        reserved = 0
        for name, share in self._shares.items():
            reserved |= share if name != self._own else 0
        self._plan.reserve(reserved, self._peers if self._shares else ())
