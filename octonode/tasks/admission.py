"""Whether a stranger's task is taken, as pure rules in one order: the cheap checks come first. Time is an argument.

size (framing) -> expiry -> access -> rate -> signature (envelope) -> budget -> open tasks and queue. The steps in
brackets belong to the protocol; `Admission.first_look` stands before them, `Admission.open` behind.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from octonode.config import TasksConfig
from octonode.ids import PeerId

PEERS_MAX = 4096
"""Peers with a token bucket. At the bound the one that asked longest ago is forgotten; it starts with a full bucket."""

EXPIRY_MARGIN_MS = 50
"""A task with less time left than this cannot be answered in time."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """No, why, and when to come back (0: no use in coming back)."""

    code: str
    message: str
    retry_after_ms: int = 0


class TokenBucket:
    """`rate_per_second` tokens flow in up to `burst`; each request takes one. At most burst + rate x time."""

    __slots__ = ("_at_ms", "_tokens", "burst", "rate")

    def __init__(self, rate_per_second: float, burst: int, now_ms: int) -> None:
        self.rate = rate_per_second
        self.burst = burst
        self._tokens = float(burst)
        self._at_ms = now_ms

    def take(self, now_ms: int) -> int:
        """0 when a token was taken; else the milliseconds until there is one. A clock that steps back gives nothing."""
        if now_ms > self._at_ms:
            self._tokens = min(float(self.burst), self._tokens + (now_ms - self._at_ms) / 1000 * self.rate)
            self._at_ms = now_ms
        if self._tokens >= 1:
            self._tokens -= 1
            return 0
        if self.rate <= 0:
            return 60_000
        return max(1, int((1 - self._tokens) / self.rate * 1000) + 1)


@dataclass(frozen=True, slots=True)
class Arrival:
    """What is known of a request before its signature has been looked at."""

    peer: PeerId
    known: bool
    allowed: bool
    """By the access rules: list, token or open."""
    access: Literal["token", "peers", "open"] | str
    expires_at_ms: int


class Admission:
    """The bounded memory behind the rules: buckets by peer, open tasks by peer. One per provider."""

    def __init__(self, bounds: TasksConfig) -> None:
        self._bounds = bounds
        self._buckets: OrderedDict[tuple[PeerId, bool], TokenBucket] = OrderedDict()
        self._open: dict[PeerId, int] = {}
        self._open_all = 0
        self._open_unknown = 0
        self.leaving = False

    @property
    def open_tasks(self) -> int:
        return self._open_all

    @property
    def peers(self) -> int:
        return len(self._buckets)

    def open_of(self, peer: PeerId) -> int:
        return self._open.get(peer, 0)

    def first_look(self, arrival: Arrival, now_ms: int) -> Refusal | None:
        """Expiry, access, rate: before anything expensive is done for the request. None: go on."""
        if self.leaving:
            return Refusal("LEAVING", "this node is shutting down; ask another one", 5000)
        if arrival.expires_at_ms <= now_ms + EXPIRY_MARGIN_MS:
            return Refusal("EXPIRED", "the task has expired; send it again with a later expiry")
        if not arrival.allowed:
            return _no_access(arrival)
        wait_ms = self._bucket(arrival.peer, arrival.known, now_ms).take(now_ms)
        if wait_ms:
            return Refusal("RATE_LIMITED", f"too many requests; come back in {wait_ms} ms", wait_ms)
        return None

    def begin(self, peer: PeerId, *, queue_full: bool, known: bool = True) -> Refusal | None:
        """Count the task as open, or say why not. Every None is followed by one `end` with the same `known`.

        All unknown peers together have `open_unknown_max`: identities are free, so a bound for each alone is none.

        `queue_full`: the engine has no slot and the queue before it no place.
        """
        bounds = self._bounds
        if self.leaving:
            return Refusal("LEAVING", "this node is shutting down; ask another one", 5000)
        if self._open_all >= bounds.open_max:
            return Refusal("OVERLOADED", f"{self._open_all} tasks are open here; ask another node or come back", 1000)
        if self.open_of(peer) >= bounds.open_per_peer_max:
            return Refusal("OVERLOADED", f"you have {self.open_of(peer)} tasks open here; let one end first", 1000)
        if not known and self._open_unknown >= bounds.open_unknown_max:
            return Refusal("OVERLOADED", "the share of unknown peers is taken; join this node, or come back", 1000)
        if queue_full:
            return Refusal("OVERLOADED", f"{bounds.queue_max} tasks wait here; ask another node or come back", 1000)
        self._open[peer] = self.open_of(peer) + 1
        self._open_all += 1
        self._open_unknown += not known
        return None

    def end(self, peer: PeerId, *, known: bool = True) -> None:
        assert self._open.get(peer, 0) > 0, "end without begin"
        self._open_all -= 1
        self._open_unknown -= not known
        self._open[peer] -= 1
        if not self._open[peer]:
            del self._open[peer]

    def _bucket(self, peer: PeerId, known: bool, now_ms: int) -> TokenBucket:
        key = (peer, known)
        bucket = self._buckets.get(key)
        if bucket is not None:
            self._buckets.move_to_end(key)
            return bucket
        bounds = self._bounds
        if known:
            bucket = TokenBucket(bounds.requests_per_second_known, bounds.requests_burst_known, now_ms)
        else:
            bucket = TokenBucket(bounds.requests_per_second_unknown, bounds.requests_burst_unknown, now_ms)
        self._buckets[key] = bucket
        if len(self._buckets) > PEERS_MAX:
            self._buckets.popitem(last=False)
        return bucket


def _no_access(arrival: Arrival) -> Refusal:
    if arrival.access == "token":
        message = (
            "this node takes tasks from those who have joined it; join it by the line it printed: octonode join LINE"
        )
        return Refusal("UNAUTHORIZED", message)
    return Refusal("FORBIDDEN", "this node takes tasks from listed peers alone; ask its owner to list your peer id")
