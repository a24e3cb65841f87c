"""dag-pb nodes and the UnixFS inside them, read under limits and written canonically.

Sources: https://ipld.io/specs/codecs/dag-pb/spec/ and https://specs.ipfs.tech/unixfs/. Links stand before Data on the
wire. A block is read by the codec of its CID and never by its looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from octonode.errors import RemoteProtocolError
from octonode.ipfs.cid import Cid, CidError

BLOCK_BYTES_MAX: Final = 2 * 1024 * 1024
LINKS_MAX: Final = 8192
NAME_BYTES_MAX: Final = 1024
DEPTH_MAX: Final = 4
"""Edges from a file's root to its leaves; 1024 ** 4 leaves of 1 MiB are beyond any disk."""
SIZE_MAX: Final = 2**62

UNIXFS_RAW, UNIXFS_DIRECTORY, UNIXFS_FILE, UNIXFS_METADATA, UNIXFS_SYMLINK, UNIXFS_HAMT = range(6)

_VARINT, _BYTES = 0, 2


@dataclass(frozen=True, slots=True)
class Link:
    cid: Cid
    name: str = ""
    total_size_bytes: int = 0
    """Tsize: bytes of the linked block and of all below it. A hint of the sender, never trusted."""


@dataclass(frozen=True, slots=True)
class Node:
    links: tuple[Link, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class UnixFs:
    kind: int
    data: bytes = b""
    size_bytes: int = 0
    block_sizes: tuple[int, ...] = ()
    has_size: bool = False


def varint(value: int) -> bytes:
    """Unsigned LEB128, as protobuf and multiformats write it."""
    assert 0 <= value < 1 << 63
    out = bytearray()
    while value > 0x7F:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes | bytearray | memoryview, offset: int) -> tuple[int, int]:
    """(value, offset behind it). Raises RemoteProtocolError when it is cut, over 63 bits, or longer than needed."""
    value = shift = 0
    while True:
        if offset >= len(data):
            raise RemoteProtocolError("a varint is cut short")
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            if byte == 0 and shift:
                raise RemoteProtocolError("a varint is longer than it need be")
            return value, offset
        shift += 7
        if shift > 56:
            raise RemoteProtocolError("a varint has more than 63 bits")


def _fields(data: bytes, what: str) -> Iterable[tuple[int, int, int | bytes]]:
    """(field number, wire type, value) of one protobuf message, wire types 0 and 2 only."""
    offset = 0
    while offset < len(data):
        key, offset = read_varint(data, offset)
        number, wire = key >> 3, key & 7
        value, offset = read_varint(data, offset)
        if wire == _VARINT:
            yield number, wire, value
        elif wire == _BYTES:
            if value > len(data) - offset:
                raise RemoteProtocolError(f"{what} is cut short")
            yield number, wire, data[offset : offset + value]
            offset += value
        else:
            raise RemoteProtocolError(f"{what} has wire type {wire}")


def decode_node(block: bytes | bytearray | memoryview) -> Node:
    """The links and the data of a dag-pb block. Raises RemoteProtocolError."""
    if len(block) > BLOCK_BYTES_MAX:
        raise RemoteProtocolError(f"a block of {len(block)} bytes, at most {BLOCK_BYTES_MAX}", code="TOO_LARGE")
    links: list[Link] = []
    data: bytes | None = None
    for number, wire, value in _fields(bytes(block), "a dag-pb node"):
        if wire != _BYTES or number not in (1, 2) or not isinstance(value, bytes):
            raise RemoteProtocolError(f"a dag-pb node has an unknown field {number}")
        if number == 1:
            if data is not None:
                raise RemoteProtocolError("a dag-pb node has Data twice")
            data = value
            continue
        if data is not None:
            raise RemoteProtocolError("a dag-pb node has a link behind its Data")
        if len(links) >= LINKS_MAX:
            raise RemoteProtocolError(f"a dag-pb node has more than {LINKS_MAX} links", code="TOO_LARGE")
        links.append(_decode_link(value))
    return Node(tuple(links), data or b"")


def _decode_link(data: bytes) -> Link:
    cid: Cid | None = None
    name, tsize, last = "", 0, 0
    for number, wire, value in _fields(data, "a dag-pb link"):
        if number <= last:
            raise RemoteProtocolError("the fields of a dag-pb link are out of order")
        last = number
        try:
            if number == 1 and wire == _BYTES and isinstance(value, bytes):
                cid = Cid.from_bytes(value)
            elif number == 2 and isinstance(value, bytes) and len(value) <= NAME_BYTES_MAX:
                name = value.decode("utf-8")
            elif number == 3 and isinstance(value, int) and value <= SIZE_MAX:
                tsize = value
            else:
                raise RemoteProtocolError(f"field {number} of a dag-pb link is malformed")
        except CidError as error:
            raise RemoteProtocolError(f"a dag-pb link: {error.message}") from None
        except UnicodeDecodeError:
            raise RemoteProtocolError("the name of a dag-pb link is not UTF-8") from None
    if cid is None:
        raise RemoteProtocolError("a dag-pb link has no CID")
    return Link(cid, name, tsize)


def encode_node(links: Sequence[Link], data: bytes) -> bytes:
    """Canonical dag-pb: links as given, each with Hash, Name and Tsize, then Data."""
    assert len(links) <= LINKS_MAX
    out = bytearray()
    for link in links:
        cid, name = link.cid.raw, link.name.encode()
        body = b"\x0a" + varint(len(cid)) + cid + b"\x12" + varint(len(name)) + name
        body += b"\x18" + varint(link.total_size_bytes)
        out += b"\x12" + varint(len(body)) + body
    return bytes(out + b"\x0a" + varint(len(data)) + data)


def decode_unixfs(data: bytes) -> UnixFs:
    """The UnixFS message in a node's Data. Raises RemoteProtocolError."""
    kind, content, size, has_size = -1, b"", 0, False
    block_sizes: list[int] = []
    for number, _, value in _fields(data, "UnixFS data"):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 2 and isinstance(value, bytes):
            content = value
        elif number == 3 and isinstance(value, int) and value <= SIZE_MAX:
            size, has_size = value, True
        elif number == 4 and isinstance(value, int) and value <= SIZE_MAX:
            block_sizes.append(value)
        elif number == 4 and isinstance(value, bytes):
            raise RemoteProtocolError("packed block sizes are not UnixFS")
        elif number not in (5, 6, 7, 8):  # hash type, fanout, mode, mtime: read past
            raise RemoteProtocolError(f"UnixFS data has an unknown or malformed field {number}")
        if len(block_sizes) > LINKS_MAX:
            raise RemoteProtocolError(f"UnixFS data has more than {LINKS_MAX} block sizes", code="TOO_LARGE")
    if not UNIXFS_RAW <= kind <= UNIXFS_HAMT:
        raise RemoteProtocolError("UnixFS data has no known type")
    return UnixFs(kind, content, size, tuple(block_sizes), has_size)


def encode_unixfs(value: UnixFs) -> bytes:
    out = b"\x08" + varint(value.kind)
    if value.data:
        out += b"\x12" + varint(len(value.data)) + value.data
    if value.has_size:
        out += b"\x18" + varint(value.size_bytes)
    return out + b"".join(b"\x20" + varint(size) for size in value.block_sizes)


def encode_file(children: Sequence[tuple[Cid, int, int]]) -> bytes:
    """The dag-pb block of a file node over `children`: (cid, bytes of the file below it, total size of its DAG)."""
    sizes = tuple(size for _, size, _ in children)
    data = encode_unixfs(UnixFs(UNIXFS_FILE, b"", sum(sizes), sizes, has_size=True))
    return encode_node([Link(cid, "", total) for cid, _, total in children], data)


def encode_directory(entries: Sequence[Link]) -> bytes:
    """The dag-pb block of a UnixFS directory; entries are sorted by the bytes of their names."""
    return encode_node(sorted(entries, key=lambda e: e.name.encode()), encode_unixfs(UnixFs(UNIXFS_DIRECTORY)))


@dataclass(frozen=True, slots=True)
class FileNode:
    """A node of a file: children with the bytes of the file each stands for."""

    size_bytes: int
    children: tuple[tuple[Cid, int], ...]


@dataclass(frozen=True, slots=True)
class LeafNode:
    """A leaf of a file that is wrapped in dag-pb and UnixFS."""

    kind: int
    """UNIXFS_FILE or UNIXFS_RAW."""
    size_bytes: int
    """Bytes of the file in it."""


@dataclass(frozen=True, slots=True)
class DirectoryNode:
    entries: tuple[Link, ...]


def interpret(block: bytes | bytearray | memoryview) -> FileNode | LeafNode | DirectoryNode:
    """What a verified dag-pb block of a model says. Raises RemoteProtocolError for shapes that models do not have."""
    node = decode_node(block)
    unixfs = decode_unixfs(node.data)
    if unixfs.kind == UNIXFS_DIRECTORY:
        names = [link.name for link in node.links]
        if len(set(names)) != len(names) or any(not _good_name(name) for name in names):
            raise RemoteProtocolError("a directory has an entry twice, or with a name that is not a file name")
        return DirectoryNode(node.links)
    if unixfs.kind in (UNIXFS_FILE, UNIXFS_RAW) and not node.links:
        return _leaf(block, unixfs)
    if unixfs.kind != UNIXFS_FILE:
        raise RemoteProtocolError("symbolic links, metadata and sharded directories are not read", code="UNSUPPORTED")
    if unixfs.data:
        raise RemoteProtocolError("a file node has both children and bytes of its own", code="UNSUPPORTED")
    if len(unixfs.block_sizes) != len(node.links) or sum(unixfs.block_sizes) != unixfs.size_bytes:
        raise RemoteProtocolError("the sizes in a file node do not add up")
    if 0 in unixfs.block_sizes or any(link.name for link in node.links):
        raise RemoteProtocolError("a file node has an empty or a named child")
    children = tuple((link.cid, size) for link, size in zip(node.links, unixfs.block_sizes, strict=True))
    return FileNode(unixfs.size_bytes, children)


def _leaf(block: bytes | bytearray | memoryview, unixfs: UnixFs) -> LeafNode:
    """Raises RemoteProtocolError when it could not be made again, to the byte, from the file's own bytes."""
    size = len(unixfs.data)
    if encode_node([], encode_unixfs(UnixFs(unixfs.kind, unixfs.data, size, has_size=True))) != block:
        raise RemoteProtocolError(
            "a leaf is not written as Kubo and Helia write it (its size is wrong, or it carries a mode or a time); ask "
            "its publisher to add the file again without them",
            code="UNSUPPORTED",
        )
    return LeafNode(unixfs.kind, size)


def _good_name(name: str) -> bool:
    return name not in ("", ".", "..") and not any(c in name for c in "/\\\0") and name.isprintable()
