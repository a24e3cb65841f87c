"""One model in the store: its directory, what of it is held, and reading it out.

`<root>/data/` holds the files, `index.sqlite` the DAG nodes and leaf ranges, `have.bitmap` a bit for each leaf that
was verified, written and synced, `manifest.cbor` the signed manifest if there is one. A bit is set only after the
sync of its bytes, so what a crash leaves behind is right as it stands.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from octonode.ipfs import car
from octonode.ipfs.blocks import Body, FileRange, RangeNotHeld
from octonode.ipfs.cid import DAG_PB, RAW, Cid
from octonode.ipfs.dagpb import FileNode, interpret
from octonode.ipfs.layout import Layout, Leaf
from octonode.models import bitmap
from octonode.models.index import FileRow, Index, ModelRow
from octonode.models.placing import write_atomically

log = logging.getLogger(__name__)

DATA: Final = "data"
INDEX: Final = "index.sqlite"
BITMAP: Final = "have.bitmap"
MANIFEST: Final = "manifest.cbor"
MANIFEST_BYTES_MAX: Final = 512 * 1024


class HeldModel:
    """Reads are safe from any thread. `close` gives back the index's connection."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.index = Index.open(directory / INDEX)
        self.lock = threading.RLock()
        self.root = self.index.model().root
        self.files = self.index.files()
        self._bitmap_lock = threading.Lock()
        self._told: set[int] = set()

    def close(self) -> None:
        with self.lock:
            self.index.close()

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
        return (self.directory / BITMAP).read_bytes()

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

    def _has(self, leaves: Sequence[Leaf]) -> bool:
        first, last = leaves[0].number, leaves[-1].number
        with open(self.directory / BITMAP, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), last // 8 - first // 8 + 1, first // 8)
        bits = int.from_bytes(data, "little") >> (first % 8)
        return bitmap.run_length(bits, 0, len(leaves)) == len(leaves)

    # -- reading out --------------------------------------------------------------------------------------------

    def block(self, cid: Cid) -> Body | None:
        """A node or a leaf, or None."""
        with self.lock:
            node = self.index.node(cid)
            if node is not None:
                return Body([node])
            leaves = self.index.leaves_of(cid.digest) if cid.codec == RAW else []
        for leaf in leaves:
            if self._has([leaf]) and (opened := self._open(self.files[leaf.file], [leaf])) is not None:
                return Body([FileRange(opened, leaf.offset_bytes, leaf.size_bytes)], (opened,))
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
            parts: list[bytes | FileRange] = [car.header([file.root])]
            if nodes:
                for cid, block in self._nodes_above(file.root, first_byte, end):
                    parts += (car.section_prefix(cid, len(block)), block)
        if not leaves or not self._has(leaves):
            return None
        fd = self._open(file, leaves)
        if fd is None:
            return None
        for leaf in leaves:
            parts.append(car.section_prefix(leaf.cid, leaf.size_bytes))
            parts.append(FileRange(fd, leaf.offset_bytes, leaf.size_bytes))
        return Body(parts, (fd,))

    def _nodes_above(self, cid: Cid, first_byte: int, last_byte: int) -> list[tuple[Cid, bytes]]:
        """The nodes on the way to the leaves of the range, parents first."""
        block = self.index.node(cid) if cid.codec == DAG_PB else None
        if block is None:
            return []
        node = interpret(block)
        found, offset = [(cid, block)], 0
        assert isinstance(node, FileNode)
        for child, size in node.children:
            if child.codec == DAG_PB and offset <= last_byte and offset + size > first_byte:
                found += self._nodes_above(child, first_byte - offset, last_byte - offset)
            offset += size
        return found

    def _open(self, file: FileRow, leaves: Sequence[Leaf]) -> int | None:
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
        wrong = [leaf for leaf in leaves if not leaf.cid.matches(os.pread(fd, leaf.size_bytes, leaf.offset_bytes))]
        if not wrong:
            return fd
        os.close(fd)
        self._lost(file, wrong, "was changed by another program")
        return None

    def _lost(self, file: FileRow, leaves: Sequence[Leaf], what: str) -> None:
        drop = 0
        for leaf in leaves:
            drop |= 1 << leaf.number
        self.change_bits(drop=drop)
        with self.lock:
            self.index.set_flags(complete=0)
        if file.number not in self._told:
            self._told.add(file.number)
            path = self.path_of(file)
            log.warning(
                "%s %s; its damaged parts are no longer served. Run: octonode models verify %s", path, what, self.root
            )

    # -- the manifest -------------------------------------------------------------------------------------------

    def manifest_bytes(self) -> bytes | None:
        """The signed manifest as it came, or None."""
        try:
            with open(self.directory / MANIFEST, "rb") as file:
                return file.read(MANIFEST_BYTES_MAX)
        except FileNotFoundError:
            return None

    def set_manifest(self, signed: bytes, blocks: Sequence[tuple[Cid, bytes]]) -> None:
        """Keep the signed manifest, and serve `blocks` (the manifest under its CID) with the model."""
        write_atomically(self.directory / MANIFEST, signed)
        with self.lock:
            for cid, block in blocks:
                self.index.add_node(cid, block)
