"""A block source in memory and a gateway that runs, for the tests of this room."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from octonode.ipfs import car
from octonode.ipfs.blocks import Body, FileRange, FoundFile, RangeNotHeld
from octonode.ipfs.cid import Cid
from octonode.ipfs.gateway import Gateway, GatewayLimits
from octonode.ipfs.unixfs import LEAF_BYTES, ImportResult, import_file


class OneFile:
    """Serves the blocks of one file on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dag: ImportResult = import_file(path)
        self.opened = 0
        self.touched = False

    def _range(self, number: int, fd: int) -> FileRange:
        return FileRange(fd, number * LEAF_BYTES, min(LEAF_BYTES, self.dag.size_bytes - number * LEAF_BYTES))

    def block(self, cid: Cid) -> Body | None:
        if cid in dict(self.dag.nodes):
            return Body([dict(self.dag.nodes)[cid]])
        if cid.digest not in self.dag.leaves:
            return None
        fd = os.open(self.path, os.O_RDONLY)
        self.opened += 1
        return Body([self._range(self.dag.leaves.index(cid.digest), fd)], (fd,))

    def run(self, root: Cid, first_byte: int, last_byte: int | None, *, nodes: bool) -> Body | None:
        if root != self.dag.root:
            return None
        if first_byte >= self.dag.size_bytes:
            raise RangeNotHeld
        end = self.dag.size_bytes - 1 if last_byte is None else min(last_byte, self.dag.size_bytes - 1)
        fd = os.open(self.path, os.O_RDONLY)
        parts: list[bytes | FileRange] = [car.header([root])]
        for cid, block in self.dag.nodes if nodes else ():
            parts += [car.section_prefix(cid, len(block)), block]
        for number in range(first_byte // LEAF_BYTES, end // LEAF_BYTES + 1):
            piece = self._range(number, fd)
            parts += [car.section_prefix(Cid(0x55, self.dag.leaves[number]), piece.size_bytes), piece]
        return Body(parts, (fd,))

    def file(self, root: Cid, path: tuple[str, ...]) -> FoundFile | None:
        return FoundFile(root, self.dag.size_bytes, (root,), self.read) if root == self.dag.root and not path else None

    def read(self, first_byte: int, size_bytes: int) -> Body | None:
        fd = os.open(self.path, os.O_RDONLY)
        self.opened += 1
        return Body([FileRange(fd, first_byte, size_bytes)], (fd,), unchanged=lambda: not self.touched)

    def have(self, root: Cid) -> bytes | None:
        return b"\xff" if root == self.dag.root else None


@pytest.fixture
def one_file(tmp_path: Path) -> OneFile:
    path = tmp_path / "three.bin"
    path.write_bytes(os.urandom(3 * LEAF_BYTES + 17))
    return OneFile(path)


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Gateway]]


@pytest.fixture
def serve() -> Serve:
    @contextlib.asynccontextmanager
    async def serving(source: OneFile, limits: GatewayLimits | None = None) -> AsyncIterator[Gateway]:
        gateway = Gateway("127.0.0.1:0", source, limits)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(gateway.run)
                yield gateway
                nursery.cancel_scope.cancel()

    return serving
