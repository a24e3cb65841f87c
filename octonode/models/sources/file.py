"""Leaves from a local file that may be the one wanted: an earlier download, or one named by the user."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import trio

from octonode.errors import NotFound
from octonode.ids import PeerId
from octonode.ipfs.cid import Cid
from octonode.ipfs.layout import Layout, Leaf
from octonode.models.sources.source import Arrived, Lane


class FileSource:
    """Offers the leaves of the one file with `root`; every leaf is verified like those of a stranger."""

    rank, lanes, verifies = 0, 1, False
    peer_id: PeerId | None = None

    def __init__(self, path: Path, root: Cid) -> None:
        self._path = path
        self._root = root.v1
        self.name = self.label = str(path)

    def open(self) -> Lane:
        return _FileLane(self._path, self._root)


class _FileLane:
    def __init__(self, path: Path, root: Cid) -> None:
        self._path = path
        self._root = root

    def close(self) -> None:
        """Nothing is held open between two calls."""

    async def block(self, cid: Cid) -> bytes:
        raise NotFound(f"{self._path} has leaves, not nodes")

    async def have(self, layout: Layout) -> int | None:
        """What lies inside the file as it is; an earlier download may be cut short."""
        return await trio.to_thread.run_sync(self._inside, layout)

    def _inside(self, layout: Layout) -> int:
        try:
            size_bytes = os.stat(self._path).st_size
        except OSError as error:
            raise NotFound(f"{self._path}: {error.strerror}") from error
        found = 0
        for leaf in layout.leaves:
            if layout.files[leaf.file].root.v1 == self._root and leaf.offset_bytes + leaf.size_bytes <= size_bytes:
                found |= 1 << leaf.number
        return found

    async def leaves(self, file_root: Cid, leaves: Sequence[Leaf], arrived: Arrived) -> None:
        if file_root.v1 != self._root:
            raise NotFound(f"{self._path} is another file")
        for leaf in leaves:
            arrived([(leaf, memoryview(await trio.to_thread.run_sync(self._read, leaf)))])

    def _read(self, leaf: Leaf) -> bytes:
        try:
            with open(self._path, "rb", buffering=0) as file:
                data = os.pread(file.fileno(), leaf.size_bytes, leaf.offset_bytes)
        except OSError as error:
            raise NotFound(f"{self._path}: {error.strerror}") from error
        if len(data) != leaf.size_bytes:
            raise NotFound(f"{self._path} is shorter than the file wanted")
        return leaf.block(data)
