"""Files and directories as UnixFS DAGs under the profile `unixfs-v1-2025`: CIDv1, raw leaves, 1 MiB, 1024 links.

Source of the profile: IPIP-499; vectors in protocols/vectors/cid.json. A file is read once, each byte is hashed once,
and memory holds one buffer, the digests (32 bytes a leaf) and the nodes (about 55 bytes a leaf).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from octonode.ipfs.cid import RAW, Cid, dag_pb_cid
from octonode.ipfs.dagpb import Link, encode_directory, encode_file

PROFILE: Final = "unixfs-v1-2025"
LEAF_BYTES: Final = 1024 * 1024
LINKS_PER_NODE: Final = 1024
EMPTY_LEAF: Final = Cid(RAW, hashlib.sha256(b"").digest())

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all); may raise to stop."""


class Readable(Protocol):
    """What an importer reads from: a raw (unbuffered) binary file."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


@dataclass(frozen=True, slots=True)
class ImportResult:
    """The DAG of one file."""

    root: Cid
    size_bytes: int
    total_size_bytes: int
    """Tsize: the file and its nodes."""
    nodes: tuple[tuple[Cid, bytes], ...]
    """dag-pb nodes, children before parents; empty when the root is the only leaf."""
    leaves: tuple[bytes, ...]
    """Digests of the leaves in order; all are LEAF_BYTES long but the last."""


class TreeBuilder:
    """Builds the balanced tree from leaves in order; a level is folded as soon as it is full."""

    def __init__(self, links_per_node: int = LINKS_PER_NODE) -> None:
        self._width = links_per_node
        self._levels: list[list[tuple[Cid, int, int]]] = [[]]
        self._nodes: list[tuple[Cid, bytes]] = []
        self._digests: list[bytes] = []

    def add(self, digest: bytes, size_bytes: int) -> None:
        """The next leaf: its sha2-256 and its length."""
        self._digests.append(digest)
        self._push(0, (Cid(RAW, digest), size_bytes, size_bytes))

    def _push(self, level: int, child: tuple[Cid, int, int]) -> None:
        if level == len(self._levels):
            self._levels.append([])
        if len(self._levels[level]) == self._width:
            self._fold(level)
        self._levels[level].append(child)

    def _fold(self, level: int) -> None:
        children, self._levels[level] = self._levels[level], []
        block = encode_file(children)
        cid = dag_pb_cid(block)
        self._nodes.append((cid, block))
        size = sum(c[1] for c in children)
        self._push(level + 1, (cid, size, len(block) + sum(c[2] for c in children)))

    def finish(self) -> ImportResult:
        """The whole DAG. Nothing may be added afterwards."""
        if not self._digests:
            self.add(EMPTY_LEAF.digest, 0)
        level = 0
        while level < len(self._levels) - 1 or len(self._levels[level]) > 1:
            if self._levels[level]:
                self._fold(level)
            level += 1
        ((root, size, total),) = self._levels[level]
        return ImportResult(root, size, total, tuple(self._nodes), tuple(self._digests))


def import_stream(source: Readable, size_bytes: int = 0, progress: Progress | None = None) -> ImportResult:
    """The DAG of everything that can be read from `source`. `size_bytes` is told to `progress` as the whole."""
    builder = TreeBuilder()
    buffer = memoryview(bytearray(LEAF_BYTES))  # one leaf: it is still in the cache when it is hashed
    sha256 = hashlib.sha256
    done = filled = 0
    while True:
        count = source.readinto(buffer[filled:]) or 0
        filled += count
        if filled == LEAF_BYTES or (count == 0 and filled):
            builder.add(sha256(buffer[:filled]).digest(), filled)
            done += filled
            filled = 0
            if progress is not None:
                progress(done, max(size_bytes, done))
        if count == 0:
            return builder.finish()


def import_file(path: Path, progress: Progress | None = None) -> ImportResult:
    """The DAG of the file at `path`; nothing is stored. Raises OSError when it cannot be read."""
    with open(path, "rb", buffering=0) as file:
        return import_stream(file, path.stat().st_size, progress)


@dataclass(frozen=True, slots=True)
class DirectoryResult:
    root: Cid
    total_size_bytes: int
    nodes: tuple[tuple[Cid, bytes], ...]
    """Directory nodes, children before parents."""


def import_directory(files: Mapping[str, tuple[Cid, int]]) -> DirectoryResult:
    """The UnixFS directory of `files`: relative POSIX path -> (root, total size of its DAG). At most 1024 a level."""
    here: list[Link] = []
    nodes: list[tuple[Cid, bytes]] = []
    below: dict[str, dict[str, tuple[Cid, int]]] = {}
    for path, (cid, total) in files.items():
        head, slash, rest = path.partition("/")
        if slash:
            below.setdefault(head, {})[rest] = (cid, total)
        else:
            here.append(Link(cid, head, total))
    for name, inner in below.items():
        result = import_directory(inner)
        nodes.extend(result.nodes)
        here.append(Link(result.root, name, result.total_size_bytes))
    assert len({link.name for link in here}) == len(here) <= LINKS_PER_NODE
    block = encode_directory(here)
    cid = dag_pb_cid(block)
    nodes.append((cid, block))
    return DirectoryResult(cid, len(block) + sum(link.total_size_bytes for link in here), tuple(nodes))


def leaf_digests(chunks: Iterable[bytes]) -> ImportResult:
    """The DAG of leaves given one by one, each LEAF_BYTES long but the last. For tests and generators."""
    builder = TreeBuilder()
    for chunk in chunks:
        builder.add(hashlib.sha256(chunk).digest(), len(chunk))
    return builder.finish()
