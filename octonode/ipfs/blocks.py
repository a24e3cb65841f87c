"""What a gateway serves from: bodies made of small pieces of memory and long ranges of files, never copied together."""

from __future__ import annotations

import os
from collections.abc import Callable
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

    def __init__(
        self,
        parts: list[bytes | FileRange],
        fds: tuple[int, ...] = (),
        *,
        unchanged: Callable[[], bool] = lambda: True,
    ) -> None:
        self.parts = parts
        self.size_bytes = sum(map(_size, parts))
        self.unchanged = unchanged
        """Asked before the last of it is sent: whether the files are still those that were verified."""
        self._fds = fds

    def narrow(self, first_byte: int, size_bytes: int) -> None:
        """Keep this part of it alone; it must lie inside."""
        assert first_byte >= 0
        assert first_byte + size_bytes <= self.size_bytes
        kept: list[bytes | FileRange] = []
        position, end = 0, first_byte + size_bytes
        for part in self.parts:
            start, stop = max(first_byte - position, 0), min(end - position, _size(part))
            if start < stop:
                kept.append(
                    part[start:stop]
                    if isinstance(part, bytes)
                    else FileRange(part.fd, part.offset_bytes + start, stop - start)
                )
            position += _size(part)
        self.parts, self.size_bytes = kept, size_bytes

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
            if len(self.parts) == 1:
                return data
            out += data
        return bytes(out)


def _size(part: bytes | FileRange) -> int:
    return len(part) if isinstance(part, bytes) else part.size_bytes


class RangeNotHeld(Exception):
    """The bytes asked for lie outside the file."""


class IsDirectory(Exception):
    """What was asked for as a file is a directory."""


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that is held, wholly or in part."""

    cid: Cid
    size_bytes: int
    roots: tuple[Cid, ...]
    """Of each step of the path that led to it, the file's own last."""
    read: Callable[[int, int], Body | None]
    """(first byte, bytes) inside the file: its bytes as they are, or None unless all of them are held."""


class BlockSource(Protocol):
    """Blocks by CID, public ones alone. Methods block on disk: the gateway calls them in threads."""

    def block(self, cid: Cid) -> Body | None:
        """The bytes of one block, or None when it is not held (or not public)."""
        ...

    def run(self, root: Cid, first_byte: int, last_byte: int | None, *, nodes: bool) -> Body | None:
        """A CAR with the leaves of the file `root` that hold the bytes asked for, the DAG nodes before them if
        `nodes`. None unless all of them are held. Raises RangeNotHeld when `first_byte` lies behind the file's end."""
        ...

    def file(self, root: Cid, path: tuple[str, ...]) -> FoundFile | None:
        """The file `root`, or the one at `path` below the directory `root`. None when nothing public is there.
        Raises IsDirectory."""
        ...

    def have(self, root: Cid) -> bytes | None:
        """The bitmap of a model root: bit `i % 8` of byte `i // 8` is leaf i, counted through all files."""
        ...
