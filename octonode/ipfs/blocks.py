"""What a gateway serves from: bodies made of small pieces of memory and long ranges of files, never copied together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

from octonode.ipfs.cid import Cid


@dataclass(frozen=True, slots=True)
class FileRange:
    """`size_bytes` of an open file from `offset_bytes` on. The descriptor belongs to the Body."""

    fd: int
    offset_bytes: int
    size_bytes: int


class Body:
    """A response: its pieces in order. Whoever got it closes it, which closes its files."""

    def __init__(self, parts: list[bytes | FileRange], fds: tuple[int, ...] = ()) -> None:
        self.parts = parts
        self.size_bytes = sum(len(part) if isinstance(part, bytes) else part.size_bytes for part in parts)
        self._fds = fds

    def close(self) -> None:
        fds, self._fds = self._fds, ()
        for fd in fds:
            os.close(fd)

    def read(self) -> bytes:
        """All of it in memory; for single blocks. Raises OSError or EOFError when a file became shorter."""
        out = bytearray()
        for part in self.parts:
            data = part if isinstance(part, bytes) else os.pread(part.fd, part.size_bytes, part.offset_bytes)
            if len(data) != (len(part) if isinstance(part, bytes) else part.size_bytes):
                raise EOFError("a file of the store became shorter")
            out += data
        return bytes(out)


class RangeNotHeld(Exception):
    """The bytes asked for lie outside the file."""


class BlockSource(Protocol):
    """Blocks by CID, public ones alone. Methods block on disk: the gateway calls them in threads."""

    def block(self, cid: Cid) -> Body | None:
        """The bytes of one block, or None when it is not held (or not public)."""
        ...

    def run(self, root: Cid, first_byte: int, last_byte: int | None, *, nodes: bool) -> Body | None:
        """A CAR with the leaves of the file `root` that hold the bytes asked for, the DAG nodes before them if
        `nodes`. None unless all of them are held. Raises RangeNotHeld when `first_byte` lies behind the file's end."""
        ...

    def have(self, root: Cid) -> bytes | None:
        """The bitmap of a model root: bit `i % 8` of byte `i // 8` is leaf i, counted through all files."""
        ...
