"""What a root is made of: walk its DAG nodes, and number the leaves of all its files in order.

Sans-IO: `DagWalk` says which blocks it wants, the caller brings them, and the `Layout` comes out. Every bound is
checked while expanding, so that a small hostile DAG that repeats itself cannot grow without end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from octonode.errors import RemoteProtocolError, VerificationFailed
from octonode.ipfs.cid import RAW, Cid
from octonode.ipfs.dagpb import BLOCK_BYTES_MAX, DEPTH_MAX, DirectoryNode, FileNode, interpret

LEAVES_MAX: Final = 1 << 20
NODES_MAX: Final = 1 << 14
NODE_BYTES_MAX: Final = 128 * 1024 * 1024
FILES_MAX: Final = 1024
DIRECTORY_DEPTH_MAX: Final = 8
DIRECTORIES_MAX: Final = 4096
"""Entered on the way through all files; a directory that stands at many places counts at each."""


@dataclass(frozen=True, slots=True)
class FileLayout:
    path: str
    """Relative POSIX path below the root; empty when the root is the file itself."""
    root: Cid
    size_bytes: int
    first_leaf: int
    leaf_count: int


@dataclass(frozen=True, slots=True)
class Leaf:
    number: int
    file: int
    offset_bytes: int
    size_bytes: int
    digest: bytes

    @property
    def cid(self) -> Cid:
        return Cid(RAW, self.digest)


@dataclass(frozen=True, slots=True)
class Layout:
    """Files in order of path, their leaves numbered from 0 through all of them, and the DAG nodes by CID."""

    root: Cid
    files: tuple[FileLayout, ...]
    leaves: tuple[Leaf, ...]
    nodes: dict[Cid, bytes]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class DagWalk:
    """Collects the nodes below `root`. Raw blocks that are whole files are wanted too: only they know their length."""

    def __init__(self, root: Cid) -> None:
        self._root = root
        self._nodes: dict[Cid, FileNode | DirectoryNode] = {}
        self._blocks: dict[Cid, bytes] = {}
        self._raw_sizes: dict[Cid, int] = {}
        self._wanted: dict[Cid, None] = {root: None}
        self._node_bytes = 0
        self._directories = 0

    @property
    def wanted(self) -> tuple[Cid, ...]:
        """Blocks still needed; empty when `layout` may be called."""
        return tuple(self._wanted)

    def add(self, cid: Cid, block: bytes | bytearray | memoryview) -> None:
        """Take a wanted block; others are passed over. Raises VerificationFailed (the sender's fault: it is not the
        block) or RemoteProtocolError (the DAG's fault: the block is not part of a model)."""
        if cid not in self._wanted:
            return
        if len(block) > BLOCK_BYTES_MAX or not cid.matches(block):
            raise VerificationFailed(f"the bytes sent for {cid} are not that block")
        del self._wanted[cid]
        if cid.codec == RAW:
            self._raw_sizes[cid] = len(block)
            return
        self._node_bytes += len(block)
        if len(self._nodes) >= NODES_MAX or self._node_bytes > NODE_BYTES_MAX:
            raise RemoteProtocolError(f"{self._root} has more than {NODES_MAX} nodes", code="TOO_LARGE")
        node = interpret(block)
        self._nodes[cid], self._blocks[cid] = node, bytes(block)
        for child in _children_to_fetch(node):
            if child not in self._nodes and child not in self._raw_sizes:
                self._wanted[child] = None
        if len(self._wanted) + len(self._nodes) + len(self._raw_sizes) > NODES_MAX + FILES_MAX:
            raise RemoteProtocolError(f"{self._root} is made of more blocks than a model is", code="TOO_LARGE")

    def layout(self) -> Layout:
        """Raises RemoteProtocolError when sizes disagree or a bound is passed."""
        assert not self._wanted
        files: list[FileLayout] = []
        leaves: list[Leaf] = []
        self._directories = 0
        for path, cid in self._files(self._root, "", 0):
            if len(files) >= FILES_MAX:
                raise RemoteProtocolError(f"{self._root} has more than {FILES_MAX} files", code="TOO_LARGE")
            first, offset = len(leaves), 0
            for digest, size in self._leaves(cid, self._size(cid), 0):
                if len(leaves) >= LEAVES_MAX:
                    raise RemoteProtocolError(f"{self._root} has more than {LEAVES_MAX} leaves", code="TOO_LARGE")
                leaves.append(Leaf(len(leaves), len(files), offset, size, digest))
                offset += size
            files.append(FileLayout(path, cid, offset, first, len(leaves) - first))
        if not files:
            raise RemoteProtocolError(f"{self._root} is an empty directory")
        return Layout(self._root, tuple(files), tuple(leaves), dict(self._blocks))

    def _files(self, cid: Cid, path: str, depth: int) -> Iterator[tuple[str, Cid]]:
        node = self._nodes.get(cid)
        if not isinstance(node, DirectoryNode):
            yield path, cid
            return
        if depth >= DIRECTORY_DEPTH_MAX:
            raise RemoteProtocolError(f"directories nested deeper than {DIRECTORY_DEPTH_MAX}")
        self._directories += 1
        if self._directories > DIRECTORIES_MAX:
            raise RemoteProtocolError(f"{self._root} has more than {DIRECTORIES_MAX} directories", code="TOO_LARGE")
        for link in sorted(node.entries, key=lambda entry: entry.name.encode()):
            yield from self._files(link.cid, f"{path}/{link.name}" if path else link.name, depth + 1)

    def _size(self, cid: Cid) -> int:
        node = self._nodes.get(cid)
        return node.size_bytes if isinstance(node, FileNode) else self._raw_sizes[cid]

    def _leaves(self, cid: Cid, size: int, depth: int) -> Iterator[tuple[bytes, int]]:
        if cid.codec == RAW:
            if size > BLOCK_BYTES_MAX or self._raw_sizes.get(cid, size) != size:
                raise RemoteProtocolError(f"leaf {cid} cannot have {size} bytes")
            yield cid.digest, size
            return
        node = self._nodes[cid]
        if not isinstance(node, FileNode) or node.size_bytes != size:
            raise RemoteProtocolError(f"the sizes of {cid} and of its parent disagree")
        if depth >= DEPTH_MAX:
            raise RemoteProtocolError(f"a file's DAG is deeper than {DEPTH_MAX}", code="TOO_LARGE")
        for child, child_size in node.children:
            yield from self._leaves(child, child_size, depth + 1)


def _children_to_fetch(node: FileNode | DirectoryNode) -> Iterator[Cid]:
    if isinstance(node, DirectoryNode):
        for link in node.entries:
            yield link.cid
    else:
        for cid, _ in node.children:
            if cid.codec != RAW:
                yield cid
