"""One model in the store: its directory, what of it is held, and reading it out.

`<root>/data/` holds the files, `index.sqlite` the DAG nodes and leaf ranges, `have.bitmap` a bit for each leaf that
was verified, written and synced, `manifest.cbor` the signed manifest if there is one. A bit is set only after the
sync of its bytes, so what a crash leaves behind is right as it stands.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from octonode.errors import OctonodeError
from octonode.ipfs import car
from octonode.ipfs.blocks import Body, FileRange, RangeNotHeld
from octonode.ipfs.cid import DAG_PB, Cid
from octonode.ipfs.dagpb import FileNode, interpret
from octonode.ipfs.layout import Layout, Leaf
from octonode.models import bitmap
from octonode.models.index import FileRow, Index, ModelRow
from octonode.models.leases import ModelLeases
from octonode.models.placing import write_atomically

log = logging.getLogger(__name__)

DATA: Final = "data"
INDEX: Final = "index.sqlite"
BITMAP: Final = "have.bitmap"
MANIFEST: Final = "manifest.cbor"
MANIFEST_BYTES_MAX: Final = 512 * 1024
REHASH_BYTES_MAX: Final = 64 * 1024 * 1024
"""Hashed again for one answer out of a file that was touched; what asks for more waits for `models verify`."""


class HeldModel:
    """Reads are safe from any thread. `close` gives back the index's connection."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.index = Index.open(directory / INDEX)
        self.leases = ModelLeases(directory)
        self.lock = threading.RLock()
        self.root = self.index.model().root
        self.files = self.index.files()
        self._bitmap_lock = threading.Lock()
        self.on_nodes: Callable[[Sequence[bytes]], None] = lambda digests: None
        """Told of blocks that are added to it: the store looks them up for all models at once."""
        self._told: set[int] = set()
        self.damaged = 0
        """Leaves that were found damaged on a disk that cannot be written: what its bitmap still says is held."""
        self.unsynced = 0
        """Leaves that are verified and written by a fetch of this process, and not yet durable: they are handed on."""

    def close(self) -> None:
        with self.lock:
            self.index.close()

    def rest(self) -> None:
        """Give the index's connection back until the next use, unless somebody uses it just now."""
        if self.lock.acquire(blocking=False):
            try:
                self.index.rest()
            finally:
                self.lock.release()

    def digests(self) -> list[bytes]:
        """Of every block that it has, or will have when it is whole."""
        with self.lock:
            return list(self.index.digests())

    @property
    def row(self) -> ModelRow:
        with self.lock:
            return self.index.model()

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where the files are, in order of their paths in the model. For engines: read them, never write."""
        return tuple(self.path_of(file) for file in self.files)

    def path_of(self, file: FileRow) -> Path:
        return self.directory / DATA / file.stored  # an absolute `stored` wins over what stands before it

    def refresh(self) -> None:
        with self.lock:
            self.files = self.index.files()

    def layout(self) -> Layout:
        with self.lock:
            return self.index.layout()

    # -- what is held -------------------------------------------------------------------------------------------

    def have(self) -> bytes:
        """The bitmap as it is on disk now."""
        data = (self.directory / BITMAP).read_bytes()
        if not self.damaged:
            return data
        bits = int.from_bytes(data, "little") & ~self.damaged  # a disk that is read-only still has them
        return bits.to_bytes(len(data), "little")

    def offered(self) -> bytes:
        """The bitmap that peers see: what is on its way to the disk can be had of us already."""
        count = self.row.leaf_count
        return bitmap.to_bytes(bitmap.from_bytes(self.have(), count) | self.unsynced, count)

    def have_bits(self) -> int:
        return bitmap.from_bytes(self.have(), self.row.leaf_count)

    @property
    def held_bytes(self) -> int:
        """Bytes of leaves that are held, up to the rounding of the last leaf."""
        row = self.row
        bits = self.have_bits()
        if bits == bitmap.full(row.leaf_count):
            return row.size_bytes
        return min(row.size_bytes, row.size_bytes * bits.bit_count() // max(1, row.leaf_count))

    def change_bits(self, *, add: int = 0, drop: int = 0) -> None:
        """Set and clear bits durably. The caller has synced the bytes of those in `add`."""
        with self._bitmap_lock, open(self.directory / BITMAP, "r+b", buffering=0) as file:
            count = self.row.leaf_count
            bits = bitmap.from_bytes(file.read(), count)
            os.pwrite(file.fileno(), bitmap.to_bytes((bits | add) & ~drop, count), 0)
            os.fdatasync(file.fileno())
        self.damaged &= ~add

    def _has(self, leaves: Sequence[Leaf]) -> bool:
        first, last = leaves[0].number, leaves[-1].number
        if self.damaged and any(self.damaged >> leaf.number & 1 for leaf in leaves):
            return False
        with open(self.directory / BITMAP, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), last // 8 - first // 8 + 1, first // 8)
        bits = int.from_bytes(data, "little") >> (first % 8) | self.unsynced >> first
        return bitmap.run_length(bits, 0, len(leaves)) == len(leaves)

    # -- reading out --------------------------------------------------------------------------------------------

    def block(self, cid: Cid) -> Body | None:
        """A node or a leaf, or None."""
        with self.lock:
            node = self.index.node(cid)
            if node is not None:
                return Body([node])
            leaves = self.index.leaves_of(cid)
        for leaf in leaves:
            if self._has([leaf]) and (opened := self._open(self.files[leaf.file], [leaf])) is not None:
                return Body(_joined([], [leaf], opened[0]), opened)
        return None

    def file_of(self, root: Cid) -> FileRow | None:
        return next((file for file in self.files if file.root.v1 == root.v1), None)

    def run(self, file: FileRow, first_byte: int, last_byte: int | None, *, nodes: bool) -> Body | None:
        """A CAR of the leaves that hold the range, or None when one is missing. Raises RangeNotHeld."""
        if first_byte >= max(1, file.size_bytes):
            raise RangeNotHeld
        end = file.size_bytes - 1 if last_byte is None else min(last_byte, file.size_bytes - 1)
        with self.lock:
            leaves = self.index.leaves_between(file, first_byte, max(end, 0))
            parts = [car.header([file.root])]
            if nodes:
                for cid, block in self._nodes_above(file.root, first_byte, end):
                    parts += (car.section_prefix(cid, len(block)), block)
        if not leaves or not self._has(leaves):
            return None
        opened = self._open(file, leaves)
        if opened is None:
            return None
        return Body(_joined(parts, leaves, opened[0], archive=True), opened)

    def read_file(self, file: FileRow, first_byte: int, size_bytes: int) -> Body | None:
        """The bytes of a file as they are, or None when a leaf of the range is missing. The range lies inside."""
        if size_bytes == 0:
            return Body([])
        with self.lock:
            leaves = self.index.leaves_between(file, first_byte, first_byte + size_bytes - 1)
        if not leaves or not self._has(leaves):
            return None
        before = _state(self.path_of(file))  # sooner than the look that finds it right
        opened = self._open(file, leaves)
        if opened is None:
            return None
        fd, growing = opened[0], file.inode == 0  # still fetched: it changes all the time, its verified leaves never
        return Body([FileRange(fd, first_byte, size_bytes)], opened, unchanged=lambda: growing or _state(fd) == before)

    def _nodes_above(self, cid: Cid, first_byte: int, last_byte: int) -> list[tuple[Cid, bytes]]:
        """The nodes on the way to the leaves of the range, parents first."""
        block = self.index.node(cid) if cid.codec == DAG_PB else None
        if block is None:
            return []
        node = interpret(block)
        found, offset = [(cid, block)], 0
        assert isinstance(node, FileNode)
        if self.index.node(node.children[0][0]) is None and node.children[0][0].codec == DAG_PB:
            return found  # its children are wrapped leaves
        for child, size in node.children:
            if child.codec == DAG_PB and offset <= last_byte and offset + size > first_byte:
                found += self._nodes_above(child, first_byte - offset, last_byte - offset)
            offset += size
        return found

    def _open(self, file: FileRow, leaves: Sequence[Leaf]) -> tuple[int, ...] | None:
        """A descriptor of the file and one that keeps the model here, if these leaves may be read from it."""
        hold = self.leases.hold_open()
        fd = self._open_file(file, leaves) if hold is not None else None
        if fd is not None:
            return (fd, hold) if hold is not None and hold >= 0 else (fd,)
        if hold is not None and hold >= 0:
            os.close(hold)
        return None

    def _open_file(self, file: FileRow, leaves: Sequence[Leaf]) -> int | None:
        """A descriptor of the file, if these leaves may be read from it. When the file is not the one that was
        verified (other inode, size or time), each leaf is hashed again first, and wrong ones are no longer held."""
        try:
            fd = os.open(self.path_of(file), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._lost(file, leaves, f"cannot be read ({error.strerror})")
            return None
        status = os.fstat(fd)
        guard = (file.inode, file.size_bytes, file.mtime_ns)
        if file.inode == 0 or guard == (status.st_ino, status.st_size, status.st_mtime_ns):
            return fd
        if sum(leaf.size_bytes for leaf in leaves) > REHASH_BYTES_MAX:
            os.close(fd)
            self._tell(file, "was touched by another program; long parts of it are not served")
            return None
        wrong = [leaf for leaf in leaves if not leaf.holds(os.pread(fd, leaf.size_bytes, leaf.offset_bytes))]
        if not wrong:
            return fd
        os.close(fd)
        self._lost(file, wrong, "was changed by another program")
        return None

    def _lost(self, file: FileRow, leaves: Sequence[Leaf], what: str) -> None:
        drop = 0
        for leaf in leaves:
            drop |= 1 << leaf.number
        self.unmark(drop)
        self._tell(file, f"{what}; its damaged parts are no longer served")

    def unmark(self, drop: int) -> None:
        """These leaves are damaged and no longer held; where the disk cannot take that, while this process runs."""
        try:
            self.change_bits(drop=drop)
            with self.lock:
                self.index.set_flags(complete=0)
        except (OSError, OctonodeError) as error:
            self.damaged |= drop
            log.warning("%s: its damaged blocks cannot be marked on disk (%s)", self.root, error)

    def _tell(self, file: FileRow, what: str) -> None:
        """Once a file, in the log."""
        if file.number not in self._told:
            self._told.add(file.number)
            log.warning("%s %s. Run: octonode models verify %s", self.path_of(file), what, self.root)

    # -- the manifest -------------------------------------------------------------------------------------------

    def manifest_bytes(self) -> bytes | None:
        """The signed manifest as it came, or None."""
        try:
            with open(self.directory / MANIFEST, "rb") as file:
                return file.read(MANIFEST_BYTES_MAX)
        except FileNotFoundError:
            return None

    def set_manifest(self, signed: bytes, blocks: Sequence[tuple[Cid, bytes]]) -> None:
        """Keep the signed manifest, and serve `blocks` (the manifest under its CID) with the model.

        Nothing is written where they are kept already. Raises OctonodeError (DISK_FULL, READ_ONLY, DISK_FAILED).
        """
        with self.lock:
            known = all(self.index.node(cid) is not None for cid, _ in blocks)
        if known and self.manifest_bytes() == signed:
            return
        write_atomically(self.directory / MANIFEST, signed)
        with self.lock:
            for cid, block in blocks:
                self.index.add_node(cid, block)
        self.on_nodes([cid.digest for cid, _ in blocks])


def _joined(before: list[bytes], leaves: Sequence[Leaf], fd: int, *, archive: bool = False) -> list[bytes | FileRange]:
    """The blocks of leaves behind `before`, each made again around the file's bytes; as sections if for an archive.
    What lies between two ranges of the file is one piece of memory."""
    parts: list[bytes | FileRange] = []
    memory = b"".join(before)
    heads: dict[int, tuple[bytes, bytes, bytes]] = {}  # by length: all leaves are equally long but the last
    for leaf in leaves:
        if leaf.size_bytes not in heads:
            section = car.section_prefix(leaf.cid, leaf.block_bytes).removesuffix(leaf.digest)
            heads[leaf.size_bytes] = (section, *leaf.form.around(leaf.size_bytes))
        section, front, behind = heads[leaf.size_bytes]
        memory += section + leaf.digest + front if archive else front
        if memory:
            parts.append(memory)
        parts.append(FileRange(fd, leaf.offset_bytes, leaf.size_bytes))
        memory = behind
    return [*parts, memory] if memory else parts


def _state(place: Path | int) -> tuple[int, int, int] | None:
    """What tells that a file was written or replaced; None when it is gone."""
    try:
        status = os.stat(place)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
