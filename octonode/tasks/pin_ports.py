"""What keeping models needs of the rest of the node: its models, and a place for the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from octonode.ids import PeerId
from octonode.tasks.pins import Pin, Released

Progress = Callable[[int, int], None]
"""(bytes here, bytes in all)."""


@dataclass(frozen=True, slots=True)
class HeldFacts:
    """A model on our disk, wholly or in part."""

    size_bytes: int
    have_bytes: int
    complete: bool
    pinned: bool


class Keeper(Protocol):
    """The models of this node: `node.keeper`."""

    def held(self, root: str) -> HeldFacts | None:
        """None when nothing of it is on the disk. Must not block."""
        ...

    def others(self, root: str) -> int:
        """Other nodes known to hold it whole."""
        ...

    async def disk_free_bytes(self) -> int:
        """What models may still take."""
        ...

    async def check(self, root: str, manifest: bytes, asker: PeerId) -> None:
        """Raises OctonodeError for no root, no signed manifest of it (where not empty), a model not for the asker."""
        ...

    async def fetch(self, root: str, manifest: bytes, progress: Progress) -> None:
        """Complete and verified when this returns, its manifest (if there is one) with it. Raises OctonodeError."""
        ...

    async def keep(self, root: str, pinned: bool) -> None:
        """Never evict it, or let it be evicted again. Nothing happens where it is not held."""
        ...

    async def remove(self, root: str) -> None:
        """Raises OctonodeError when it is in use."""
        ...


class PinStore(Protocol):
    """The rows behind the book, committed when a call returns. Raises OctonodeError (DISK_FULL)."""

    async def load(self) -> tuple[Sequence[Pin], Sequence[Released]]: ...

    async def save(self, pin: Pin, manifest: bytes = b"") -> None:
        """`manifest`: empty leaves the one that is there. A released model is one no more."""
        ...

    async def drop(self, pin: Pin, released: Released | None) -> None: ...

    async def forget(self, root: str) -> None:
        """A released model is gone."""
        ...

    async def manifest(self, root: str) -> bytes: ...
