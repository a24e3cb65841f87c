"""What a root is made of: walk its DAG nodes, and number the leaves of all its files in order.

Sans-IO: `DagWalk` says which blocks it wants, the caller brings them, and the `Layout` comes out. Every bound is
checked while expanding, so that a small hostile DAG that repeats itself cannot grow without end.

A raw leaf is known by its CID. A wrapped one has the CID of a node, so the walk goes down the left side of each file
first: where that side ends is the depth of all leaves, and the blocks at that depth need not be fetched. The last one
is fetched all the same: in a tree that is not balanced, as trickle trees are, it lies elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from octonode.errors import RemoteProtocolError, VerificationFailed
from octonode.ipfs.cid import DAG_PB, RAW, Cid
from octonode.ipfs.dagpb import BLOCK_BYTES_MAX, DEPTH_MAX, DirectoryNode, FileNode, LeafNode, interpret
from octonode.ipfs.leaves import RAW_LEAVES, LeafForm, form_of

LEAVES_MAX: Final = 1 << 20
NODES_MAX: Final = 1 << 14
NODE_BYTES_MAX: Final = 128 * 1024 * 1024
FILES_MAX: Final = 1024
DIRECTORY_DEPTH_MAX: Final = 8
DIRECTORIES_MAX: Final = 4096
"""Entered on the way through all files; a directory that stands at many places counts at each."""
EXPANDED_MAX: Final = 16 * NODES_MAX
"""Links to other than leaves that are followed while walking, a node at several places counted at each."""


@dataclass(frozen=True, slots=True)
class FileLayout:
    path: str
    """Relative POSIX path below the root; empty when the root is the file itself."""
    root: Cid
    size_bytes: int
    first_leaf: int
    leaf_count: int
    form: LeafForm = RAW_LEAVES
    """Of all its leaves."""


@dataclass(frozen=True, slots=True)
class Leaf:
    number: int
    file: int
    offset_bytes: int
    size_bytes: int
    """Bytes of the file in it."""
    digest: bytes
    """The sha2-256 of its block."""
    form: LeafForm = RAW_LEAVES

    @property
    def cid(self) -> Cid:
        return self.form.cid(self.digest)

    @property
    def block_bytes(self) -> int:
        """Length of its block, which is what sources give: the bytes that the CID hashes."""
        return self.form.block_bytes(self.size_bytes)

    def block(self, data: bytes | bytearray | memoryview) -> bytes:
        """The block around `data`, its bytes of the file."""
        return self.form.block(data)

    def unwrap(self, block: bytes | bytearray | memoryview) -> memoryview:
        """Its bytes of the file in a block with the right hash. Raises what `LeafForm.unwrap` raises."""
        return self.form.unwrap(block, self.size_bytes, self.cid)

    def holds(self, data: bytes | bytearray | memoryview) -> bool:
        """True when `data` is what this leaf has of the file."""
        return len(data) == self.size_bytes and self.form.digest(data) == self.digest


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


@dataclass(frozen=True, slots=True)
class _Place:
    """As what a block stands where it stands; a block that stands in several places is fetched once."""

    role: Literal["name", "first", "last", "node"]
    """What a name stands for; what is down the left side of `file`, `level` edges below it; what is down the right side
    of a file, `level` edges above its leaves; a node of a file, with wrapped leaves `level` edges below it (0: raw)."""
    level: int = 0
    file: Cid | None = None


_NAME: Final = _Place("name")


class DagWalk:
    """Collects the nodes below `root`. Leaves that are whole files are wanted too, and the first of each file whose
    leaves are wrapped: they alone know what they are. They are not kept."""

    def __init__(self, root: Cid) -> None:
        self._root = root
        self._nodes: dict[Cid, FileNode | LeafNode | DirectoryNode] = {}
        self._blocks: dict[Cid, bytes] = {}
        self._raw_sizes: dict[Cid, int] = {}
        self._wanted: dict[Cid, None] = {}
        self._waiting: dict[Cid, dict[_Place, None]] = {}
        self._done: set[tuple[Cid, _Place]] = set()
        self._files_found: dict[Cid, tuple[LeafForm, int]] = {}
        """By root of a file: what its leaves are, and how deep below the root where they are wrapped."""
        self._node_bytes = 0
        self._expanded = 0
        self._directories = 0
        self._visit([(root, _NAME)])

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
        node = interpret(block)
        if not isinstance(node, LeafNode):
            self._node_bytes += len(block)
            self._blocks[cid] = bytes(block)
        if len(self._nodes) >= NODES_MAX or self._node_bytes > NODE_BYTES_MAX:
            raise RemoteProtocolError(f"{self._root} has more than {NODES_MAX} nodes", code="TOO_LARGE")
        self._nodes[cid] = node
        self._visit([(cid, place) for place in reversed(self._waiting.pop(cid))])
        if len(self._wanted) + len(self._nodes) + len(self._raw_sizes) > NODES_MAX + FILES_MAX:
            raise RemoteProtocolError(f"{self._root} is made of more blocks than a model is", code="TOO_LARGE")

    def _visit(self, todo: list[tuple[Cid, _Place]]) -> None:
        """Take note of blocks at their places; where they are known, of what follows from it, and so on."""
        while todo:
            cid, place = todo.pop()
            if cid.codec == RAW:
                more = self._raw(cid, place)
            elif cid.codec != DAG_PB:
                raise RemoteProtocolError(f"{cid} is neither raw nor dag-pb and cannot be part of a model")
            elif (node := self._nodes.get(cid)) is not None:
                more = self._expand(cid, node, place)
            else:
                self._waiting.setdefault(cid, {})[place] = None
                self._wanted[cid] = None
                continue
            self._expanded += len(more)
            if self._expanded > EXPANDED_MAX:
                raise RemoteProtocolError(f"{self._root} is made of more blocks than a model is", code="TOO_LARGE")
            todo.extend(reversed(more))

    def _is_new(self, cid: Cid, place: _Place) -> bool:
        known = (cid, place) in self._done
        self._done.add((cid, place))
        return not known

    def _raw(self, cid: Cid, place: _Place) -> list[tuple[Cid, _Place]]:
        if place.role == "name":
            self._files_found[cid] = (RAW_LEAVES, 0)
            if cid not in self._raw_sizes:
                self._wanted[cid] = None
        if place.role == "last":
            raise unbalanced(f"{cid} is raw and the first leaf is wrapped")
        if place.file is None:
            return []
        self._files_found[place.file] = (RAW_LEAVES, 0)
        return [(place.file, _Place("node"))]

    def _expand(self, cid: Cid, node: FileNode | LeafNode | DirectoryNode, place: _Place) -> list[tuple[Cid, _Place]]:
        """What follows from a known block at a place of it."""
        if place.role == "name" and isinstance(node, DirectoryNode):
            return [(link.cid, _NAME) for link in node.entries] if self._is_new(cid, _NAME) else []
        if isinstance(node, DirectoryNode):
            raise RemoteProtocolError(f"a file has the directory {cid} in it")
        file = cid if place.role == "name" else place.file
        if file is None:
            return self._expand_node(cid, node, place)
        if isinstance(node, LeafNode):
            self._files_found[file] = (form_of(cid, node), place.level)
            roles: tuple[Literal["node", "last"], ...] = ("node", "last") if place.level else ()
            return [(file, _Place(role, place.level)) for role in roles]
        if place.level >= DEPTH_MAX:
            raise RemoteProtocolError(f"a file's DAG is deeper than {DEPTH_MAX}", code="TOO_LARGE")
        return [(node.children[0][0], _Place("first", place.level + 1, file))]

    def _expand_node(self, cid: Cid, node: FileNode | LeafNode, place: _Place) -> list[tuple[Cid, _Place]]:
        at_leaf = place.role == "last" and place.level == 0
        if isinstance(node, LeafNode) != at_leaf:
            raise unbalanced(f"{cid} is a leaf where a node is due" if not at_leaf else f"{cid} is not a leaf")
        if isinstance(node, LeafNode):
            return []
        if place.role == "last":
            return [(node.children[-1][0], _Place("last", place.level - 1))]
        if place.level == 1 or not self._is_new(cid, place):
            return []
        below = _Place("node", max(0, place.level - 1))
        return [(child, below) for child in dict.fromkeys(child for child, _ in node.children) if child.codec != RAW]

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
            form, depth = self._files_found[cid]
            for digest, size in self._leaves(cid, self._size(cid), form, depth, DEPTH_MAX):
                if len(leaves) >= LEAVES_MAX:
                    raise RemoteProtocolError(f"{self._root} has more than {LEAVES_MAX} leaves", code="TOO_LARGE")
                leaves.append(Leaf(len(leaves), len(files), offset, size, digest, form))
                offset += size
            files.append(FileLayout(path, cid, offset, first, len(leaves) - first, form))
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
        return node.size_bytes if isinstance(node, FileNode | LeafNode) else self._raw_sizes[cid]

    def _leaves(self, cid: Cid, size: int, form: LeafForm, depth: int, deeper: int) -> Iterator[tuple[bytes, int]]:
        """(digest, bytes of the file) of each leaf below `cid`; wrapped ones stand `depth` edges below it."""
        if cid.codec == RAW if not form.wrapped else depth == 0:
            self._check_leaf(cid, size, form)
            yield cid.digest, size
            return
        node = self._nodes.get(cid)
        if not isinstance(node, FileNode):  # a raw leaf above the wrapped ones
            raise unbalanced(f"{cid} is a leaf where a node is due")
        if node.size_bytes != size:
            raise RemoteProtocolError(f"the sizes of {cid} and of its parent disagree")
        if deeper == 0:
            raise RemoteProtocolError(f"a file's DAG is deeper than {DEPTH_MAX}", code="TOO_LARGE")
        for child, child_size in node.children:
            yield from self._leaves(child, child_size, form, max(0, depth - 1), deeper - 1)

    def _check_leaf(self, cid: Cid, size: int, form: LeafForm) -> None:
        """What can be told of a leaf before its block is here; whoever receives it tells the rest."""
        node = self._nodes.get(cid)
        if form.wrapped and (cid.codec == RAW or isinstance(node, FileNode)):
            raise unbalanced(f"{cid} is not a wrapped leaf as the first one is")
        known = node.size_bytes if isinstance(node, LeafNode) else self._raw_sizes.get(cid, size)
        if form.block_bytes(size) > BLOCK_BYTES_MAX or known != size:
            raise RemoteProtocolError(f"leaf {cid} cannot have {size} bytes")


def unbalanced(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"{what}: the tree of the file is not balanced, or its leaves are of several kinds, which is not read; ask its "
        "publisher to add it again without --trickle",
        code="UNSUPPORTED",
    )
