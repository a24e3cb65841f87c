"""How the bytes of a file become the blocks of its leaves: raw, or wrapped in dag-pb and UnixFS. Sans-IO.

One form holds for all leaves of a file. A wrapped leaf has one spelling here, the one that Kubo and Helia write: its
block is made again from the bytes of the file whenever it is served, so nothing but those bytes is kept on disk.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from octonode.errors import RemoteProtocolError, VerificationFailed
from octonode.ipfs.cid import DAG_PB, RAW, Cid
from octonode.ipfs.dagpb import UNIXFS_FILE, UNIXFS_RAW, LeafNode, interpret, varint

LeafKind = Literal["raw", "unixfs-file", "unixfs-raw"]
Buffer = bytes | bytearray | memoryview

_UNIXFS_KINDS: Final[dict[LeafKind, int]] = {"unixfs-file": UNIXFS_FILE, "unixfs-raw": UNIXFS_RAW}
_LENGTHS_KEPT: Final = 256
"""Wrappings kept by length: all leaves of a file are equally long but the last."""


@lru_cache(maxsize=_LENGTHS_KEPT)
def wrapping(unixfs_kind: int, size_bytes: int) -> tuple[bytes, bytes]:
    """What stands before and behind `size_bytes` of a file in a wrapped leaf: dag-pb, UnixFS type, Data and size."""
    behind = b"\x18" + varint(size_bytes)
    before = b"\x08" + varint(unixfs_kind)
    if size_bytes:
        before += b"\x12" + varint(size_bytes)
    return b"\x0a" + varint(len(before) + size_bytes + len(behind)) + before, behind


@dataclass(frozen=True, slots=True)
class LeafForm:
    """What the leaves of one file are."""

    kind: LeafKind = "raw"
    """`unixfs-file` and `unixfs-raw`: dag-pb around UnixFS of type File or Raw."""
    cid_version: int = 1
    """Of the links to the leaves; raw ones have version 1 alone."""

    def __post_init__(self) -> None:
        assert self.kind in ("raw", *_UNIXFS_KINDS)
        assert self.cid_version == 1 or (self.cid_version == 0 and self.wrapped)

    @property
    def wrapped(self) -> bool:
        return self.kind != "raw"

    def cid(self, digest: bytes) -> Cid:
        """The CID of the leaf whose block has this sha2-256."""
        return Cid(DAG_PB, digest, self.cid_version) if self.wrapped else Cid(RAW, digest)

    def around(self, size_bytes: int) -> tuple[bytes, bytes]:
        """What a block has before and behind `size_bytes` of the file."""
        return wrapping(_UNIXFS_KINDS[self.kind], size_bytes) if self.wrapped else (b"", b"")

    def block_bytes(self, size_bytes: int) -> int:
        """The length of the block around `size_bytes` of the file."""
        before, behind = self.around(size_bytes)
        return len(before) + size_bytes + len(behind)

    def block(self, data: Buffer) -> bytes:
        """The block around these bytes of the file, as its CID hashes it."""
        before, behind = self.around(len(data))
        return before + bytes(data) + behind if self.wrapped else bytes(data)

    def digest(self, data: Buffer) -> bytes:
        """The sha2-256 of the block around these bytes of the file."""
        if not self.wrapped:
            return hashlib.sha256(data).digest()
        before, behind = self.around(len(data))
        hashed = hashlib.sha256(before)
        hashed.update(data)
        hashed.update(behind)
        return hashed.digest()

    def unwrap(self, block: Buffer, size_bytes: int, what: object = "") -> memoryview:
        """The `size_bytes` of the file in a block whose hash is right; a view into it, not a copy. `what` names it.

        Raises VerificationFailed (the DAG says another length than the block has) or RemoteProtocolError (the block is
        not a leaf, or not in the one spelling that can be made again). Both are the DAG's fault, not the sender's.
        """
        before, behind = self.around(size_bytes)
        view = memoryview(block)
        end = len(before) + size_bytes
        if len(view) == end + len(behind) and view[: len(before)] == before and view[end:] == behind:
            return view[len(before) : end]
        found = self._size_of(block)
        if found != size_bytes:
            raise VerificationFailed(
                f"leaf {what} has {found} bytes where its root says {size_bytes}: the root is malformed, ask its "
                "publisher"
            )
        raise RemoteProtocolError(
            f"leaf {what} is of another kind than the first of its file, which is {self.kind}; ask its publisher to "
            "add it again under one profile",
            code="UNSUPPORTED",
        )

    def _size_of(self, block: Buffer) -> int:
        """Bytes of the file in a block. Raises RemoteProtocolError when it is not a leaf."""
        if not self.wrapped:
            return len(block)
        node = interpret(block)
        if not isinstance(node, LeafNode):
            raise RemoteProtocolError(
                "the tree of the file is not balanced: a node stands where leaves are due", code="UNSUPPORTED"
            )
        return node.size_bytes


RAW_LEAVES: Final = LeafForm()


def form_of(cid: Cid, leaf: LeafNode) -> LeafForm:
    """The form of a file whose first leaf is `leaf`, linked as `cid`."""
    kind: LeafKind = "unixfs-raw" if leaf.kind == UNIXFS_RAW else "unixfs-file"
    return LeafForm(kind, cid.version)
