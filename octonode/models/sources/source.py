"""What a fetch takes blocks from. A source opens lanes; a lane is one connection and does one thing at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from octonode.ids import PeerId
from octonode.ipfs.cid import Cid
from octonode.ipfs.layout import Layout, Leaf

Arrived = Callable[[list[tuple[Leaf, memoryview]]], None]
"""Called with leaves as they become whole, in order, and their blocks as the CID hashes them; the memory stays as it is
until the lane's next call."""


class Lane(Protocol):
    """Raises Unreachable (Stalled for silence), NotFound, VerificationFailed or RemoteProtocolError (it lies)."""

    async def block(self, cid: Cid) -> bytes:
        """One block, not verified."""
        ...

    async def have(self, layout: Layout) -> int | None:
        """The set of leaves that can be had here (see models.bitmap); None: all of them."""
        ...

    async def leaves(self, file_root: Cid, leaves: Sequence[Leaf], arrived: Arrived) -> None:
        """Consecutive leaves of one file, not verified."""
        ...

    def close(self) -> None: ...


class Source(Protocol):
    @property
    def name(self) -> str:
        """What is banned when it lies: an address, a peer or a path. No two sources of a fetch have the same."""
        ...

    @property
    def label(self) -> str:
        """How people see it: `gateway:<peer id>`, `bitswap:<peer id>`, a URL or a path."""
        ...

    @property
    def peer_id(self) -> PeerId | None:
        """The peer behind it, where there is one: of its sources one is used at a time, the first that works."""
        ...

    @property
    def rank(self) -> int:
        """Sources of a higher rank are used only while those of a lower one cannot help: 0 local, 1 peers, 2 others."""
        ...

    @property
    def verifies(self) -> bool:
        """True when its lanes hand on only what they have hashed: it is not hashed again."""
        ...

    @property
    def lanes(self) -> int:
        """How many lanes are worth having at once."""
        ...

    def open(self) -> Lane: ...
