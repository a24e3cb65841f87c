"""What callers want of a peer over bitswap, and what they are told in the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from octonode.errors import NotFound
from octonode.ids import PeerId
from octonode.ipfs.cid import Cid

Arrived = Callable[[Cid, memoryview], None]
"""A verified block; the memory is the receiver's to keep."""

Key = tuple[bytes, bool]
"""(digest, only its presence is asked)."""


@dataclass(slots=True, eq=False)
class Order:
    """What one caller waits for. `error` and `missing` are read once `done` is set."""

    arrived: Arrived
    left: set[Key] = field(default_factory=set)
    missing: list[Cid] = field(default_factory=list)
    error: Exception | None = None
    done: trio.Event = field(default_factory=trio.Event)

    def fail(self, error: Exception) -> None:
        self.error = self.error or error
        self.done.set()


@dataclass(slots=True, eq=False)
class Want:
    """A block, or its presence, that at least one order waits for."""

    cid: Cid
    presence: bool
    size_bytes: int
    orders: list[Order] = field(default_factory=list)
    sent: bool = False
    """Under way, as far as we know."""
    was_sent: bool = False
    """Its block may come, even if it is to be asked for anew."""

    @property
    def key(self) -> Key:
        return self.cid.digest, self.presence


def outcome(order: Order, peer_id: PeerId, *, presence: bool) -> None:
    """Raises what the order ended with; NotFound where all is answered and a block is not there."""
    if order.error is not None:
        raise order.error
    if order.missing and not presence:
        raise NotFound(f"{peer_id} does not have {order.missing[0]}")
