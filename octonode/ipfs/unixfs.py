"""Files and directories as UnixFS DAGs under one of the profiles in use; ours is `unixfs-v1-2025`.

Source of the profiles: IPIP-499 and Kubo's `docs/config.md`; vectors in protocols/vectors/cid.json. A file is read
once, each byte is hashed once, and memory holds one buffer, the digests (32 bytes a leaf) and the nodes (about 55
bytes a leaf).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from octonode.errors import OctonodeError
from octonode.ipfs.cid import DAG_PB, RAW, Cid
from octonode.ipfs.dagpb import Link, encode_directory, encode_file
from octonode.ipfs.leaves import LeafForm


@dataclass(frozen=True, slots=True)
class Profile:
    """How a file becomes a DAG: the same bytes have another root CID under each profile. All trees are balanced."""

    name: str
    leaf_bytes: int
    """Bytes of the file in each leaf but the last."""
    links_per_node: int
    cid_version: int
    """Of the nodes, and of the leaves where these are not raw."""
    raw_leaves: bool

    @property
    def leaf_form(self) -> LeafForm:
        return LeafForm() if self.raw_leaves else LeafForm("unixfs-file", self.cid_version)

    def node_cid(self, block: bytes) -> Cid:
        return Cid(DAG_PB, hashlib.sha256(block).digest(), self.cid_version)

    def leaf_size(self, position: int, size_bytes: int) -> int:
        """Bytes of the file in its leaf number `position`, where the file has `size_bytes`."""
        return min(self.leaf_bytes, size_bytes - position * self.leaf_bytes)


_MIB: Final = 1024 * 1024
UNIXFS_V1_2025: Final = Profile("unixfs-v1-2025", _MIB, 1024, cid_version=1, raw_leaves=True)
PROFILES: Final = {
    profile.name: profile
    for profile in (
        UNIXFS_V1_2025,
        # What `ipfs add` makes by default, until Kubo 0.42.
        Profile("unixfs-v0-2015", 256 * 1024, 174, cid_version=0, raw_leaves=False),
        # So named in Kubo 0.33 to 0.39, before IPIP-499 was settled.
        Profile("test-cid-v1", _MIB, 174, cid_version=1, raw_leaves=True),
        # `ipfs add --cid-version=1` of the same years; Kubo gives it no name.
        Profile("kubo-cid-v1", 256 * 1024, 174, cid_version=1, raw_leaves=True),
    )
}
PROFILE: Final = UNIXFS_V1_2025.name
LEAF_BYTES: Final = UNIXFS_V1_2025.leaf_bytes
DIRECTORY_ENTRIES_MAX: Final = 1024
"""Larger directories would be sharded, which is not written here."""
EMPTY_LEAF: Final = Cid(RAW, hashlib.sha256(b"").digest())


def profile_named(name: str) -> Profile:
    """The profile of this name; ours for an empty one. Raises OctonodeError (BAD_REQUEST)."""
    profile = PROFILES.get(name or PROFILE)
    if profile is None:
        raise OctonodeError(
            f"{name!r:.64} is no UnixFS profile known here; choose one of {', '.join(PROFILES)}", code="BAD_REQUEST"
        )
    return profile


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
    """Tsize: all its blocks."""
    nodes: tuple[tuple[Cid, bytes], ...]
    """dag-pb nodes, children before parents; empty when the root is the only leaf. Wrapped leaves are not in it."""
    leaves: tuple[bytes, ...]
    """Digests of the leaves' blocks in order."""
    profile: Profile = UNIXFS_V1_2025


class TreeBuilder:
    """Builds the balanced tree from leaves in order; a level is folded as soon as it is full."""

    def __init__(self, profile: Profile = UNIXFS_V1_2025) -> None:
        self.profile = profile
        self._form = profile.leaf_form
        self._levels: list[list[tuple[Cid, int, int]]] = [[]]
        self._nodes: list[tuple[Cid, bytes]] = []
        self._digests: list[bytes] = []

    def add(self, digest: bytes, size_bytes: int) -> None:
        """The next leaf: the sha2-256 of its block, and its bytes of the file."""
        self._digests.append(digest)
        self._push(0, (self._form.cid(digest), size_bytes, self._form.block_bytes(size_bytes)))

    def add_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """The next leaf, by its bytes of the file."""
        self.add(self._form.digest(data), len(data))

    def _push(self, level: int, child: tuple[Cid, int, int]) -> None:
        if level == len(self._levels):
            self._levels.append([])
        if len(self._levels[level]) == self.profile.links_per_node:
            self._fold(level)
        self._levels[level].append(child)

    def _fold(self, level: int) -> None:
        children, self._levels[level] = self._levels[level], []
        block = encode_file(children)
        cid = self.profile.node_cid(block)
        self._nodes.append((cid, block))
        size = sum(c[1] for c in children)
        self._push(level + 1, (cid, size, len(block) + sum(c[2] for c in children)))

    def finish(self) -> ImportResult:
        """The whole DAG. Nothing may be added afterwards."""
        if not self._digests:
            self.add_bytes(b"")
        level = 0
        while level < len(self._levels) - 1 or len(self._levels[level]) > 1:
            if self._levels[level]:
                self._fold(level)
            level += 1
        ((root, size, total),) = self._levels[level]
        return ImportResult(root, size, total, tuple(self._nodes), tuple(self._digests), self.profile)


def import_stream(
    source: Readable, size_bytes: int = 0, progress: Progress | None = None, profile: Profile = UNIXFS_V1_2025
) -> ImportResult:
    """The DAG of everything that can be read from `source`. `size_bytes` is told to `progress` as the whole."""
    builder = TreeBuilder(profile)
    buffer = memoryview(bytearray(profile.leaf_bytes))  # one leaf: it is still in the cache when it is hashed
    done = filled = 0
    while True:
        count = source.readinto(buffer[filled:]) or 0
        filled += count
        if filled == profile.leaf_bytes or (count == 0 and filled):
            builder.add_bytes(buffer[:filled])
            done += filled
            filled = 0
            if progress is not None:
                progress(done, max(size_bytes, done))
        if count == 0:
            return builder.finish()


def import_file(path: Path, progress: Progress | None = None, profile: Profile = UNIXFS_V1_2025) -> ImportResult:
    """The DAG of the file at `path`; nothing is stored. Raises OSError when it cannot be read."""
    with open(path, "rb", buffering=0) as file:
        return import_stream(file, path.stat().st_size, progress, profile)


@dataclass(frozen=True, slots=True)
class DirectoryResult:
    root: Cid
    total_size_bytes: int
    nodes: tuple[tuple[Cid, bytes], ...]
    """Directory nodes, children before parents."""


def import_directory(files: Mapping[str, tuple[Cid, int]], profile: Profile = UNIXFS_V1_2025) -> DirectoryResult:
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
        result = import_directory(inner, profile)
        nodes.extend(result.nodes)
        here.append(Link(result.root, name, result.total_size_bytes))
    assert len({link.name for link in here}) == len(here) <= DIRECTORY_ENTRIES_MAX
    block = encode_directory(here)
    cid = profile.node_cid(block)
    nodes.append((cid, block))
    return DirectoryResult(cid, len(block) + sum(link.total_size_bytes for link in here), tuple(nodes))


def leaf_digests(chunks: Iterable[bytes], profile: Profile = UNIXFS_V1_2025) -> ImportResult:
    """The DAG of leaves given one by one, each of the profile's length but the last. For tests and generators."""
    builder = TreeBuilder(profile)
    for chunk in chunks:
        builder.add_bytes(chunk)
    return builder.finish()
