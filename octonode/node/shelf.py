"""What is held here, as values in memory: announcements, hello and lists must not wait for a disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import trio

from octonode.ids import PeerId
from octonode.models.library import Library, ModelEntry
from octonode.models.manifest import SignedManifest


@dataclass(frozen=True, slots=True)
class Held:
    """A model on disk, wholly or in part."""

    root: str
    entry: ModelEntry
    signed: SignedManifest | None
    held_bytes: int

    @property
    def public(self) -> bool:
        return self.entry.row.public

    @property
    def complete(self) -> bool:
        return self.entry.complete

    @property
    def manifest(self) -> str:
        return self.signed.cid.text if self.signed else ""

    @property
    def name(self) -> str:
        return f"{self.signed.manifest.publisher}/{self.signed.manifest.name}" if self.signed else ""

    @property
    def version(self) -> str:
        return self.signed.manifest.version if self.signed else ""

    @property
    def format(self) -> str:
        return self.signed.manifest.format if self.signed else ""


class Shelf:
    """A snapshot of the library. `refresh` after every change; `network.hello.Manifests` for peers that ask."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._held: Mapping[str, Held] = {}
        self._lock = trio.Lock()

    async def refresh(self) -> None:
        async with self._lock:
            entries = await trio.to_thread.run_sync(self._library.list)
            self._held = {e.root.text: Held(e.root.text, e, e.manifest, e.held_bytes) for e in entries}

    def all(self) -> tuple[Held, ...]:
        return tuple(self._held.values())

    def get(self, root: str) -> Held | None:
        return self._held.get(root)

    def public(self) -> tuple[Held, ...]:
        """What peers may know of."""
        return tuple(held for held in self._held.values() if held.public)

    def manifest(self, publisher: PeerId, name: str) -> bytes | None:
        """The signed manifest with the highest seq that we hold under a name, public ones alone."""
        found = [h.signed for h in self.public() if h.signed and h.name == f"{publisher}/{name}"]
        return max(found, key=lambda signed: signed.manifest.seq).encode() if found else None

    def manifest_by_cid(self, cid: str) -> bytes | None:
        return next((h.signed.encode() for h in self.public() if h.signed and h.manifest == cid), None)
