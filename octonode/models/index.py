"""The index of one model in the store: a small SQLite file of its files, DAG nodes and leaf ranges.

One connection, used under the lock of the model it belongs to; other processes may read and write the same file.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from octonode.errors import OctonodeError
from octonode.ipfs.cid import Cid
from octonode.ipfs.layout import FileLayout, Layout, Leaf
from octonode.models.placing import disk_full

SCHEMA_VERSION: Final = 1
BUSY_TIMEOUT_SECONDS: Final = 10.0
_SCHEMA: Final = """
CREATE TABLE model (
  root TEXT NOT NULL, size_bytes INTEGER NOT NULL, leaf_count INTEGER NOT NULL, created_ms INTEGER NOT NULL,
  last_used_ms INTEGER NOT NULL, pinned INTEGER NOT NULL DEFAULT 0, public INTEGER NOT NULL DEFAULT 1,
  complete INTEGER NOT NULL DEFAULT 0);
CREATE TABLE files (
  number INTEGER PRIMARY KEY, path TEXT NOT NULL, stored TEXT NOT NULL, root BLOB NOT NULL, size_bytes INTEGER NOT NULL,
  first_leaf INTEGER NOT NULL, leaf_count INTEGER NOT NULL,
  inode INTEGER NOT NULL DEFAULT 0, mtime_ns INTEGER NOT NULL DEFAULT 0);
CREATE INDEX files_by_root ON files (root);
CREATE TABLE nodes (cid BLOB PRIMARY KEY, block BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE leaves (
  number INTEGER PRIMARY KEY, digest BLOB NOT NULL, file INTEGER NOT NULL,
  offset INTEGER NOT NULL, size INTEGER NOT NULL);
CREATE INDEX leaves_by_digest ON leaves (digest);
CREATE INDEX leaves_by_offset ON leaves (file, offset);
"""


@dataclass(frozen=True, slots=True)
class ModelRow:
    root: Cid
    size_bytes: int
    leaf_count: int
    created_ms: int
    last_used_ms: int
    pinned: bool
    public: bool
    complete: bool


@dataclass(frozen=True, slots=True)
class FileRow:
    number: int
    path: str
    stored: str
    """Where the bytes are: relative to the model's `data/`, or an absolute path referenced in place."""
    root: Cid
    size_bytes: int
    first_leaf: int
    leaf_count: int
    inode: int
    """With `mtime_ns` and the size: the guard of a complete file; 0 while it is being written."""
    mtime_ns: int


@contextmanager
def _typed(path: Path) -> Iterator[None]:
    """SQLite's errors as ours: a full disk says so, whatever else says where."""
    try:
        yield
    except sqlite3.Error as error:
        if "full" in str(error) or "disk I/O" in str(error):
            raise disk_full(OSError(errno.ENOSPC, "no space left"), path) from error
        raise OctonodeError(f"{path}: {error}; is another octonode using it?") from error


class Index:
    """Raises OctonodeError (INTERNAL) when the file is damaged or from another version."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)

    @classmethod
    def create(cls, path: Path, layout: Layout, stored: Iterable[str], *, public: bool, now_ms: int) -> Index:
        """A new index of `layout`; `stored` says for each file where its bytes are."""
        index = cls(path)
        with _typed(path):
            index._fill(layout, stored, public=public, now_ms=now_ms)
        return index

    def _fill(self, layout: Layout, stored: Iterable[str], *, public: bool, now_ms: int) -> None:
        db = self._db
        db.executescript(_SCHEMA)
        db.execute("BEGIN")
        count, size = len(layout.leaves), layout.size_bytes
        db.execute(
            "INSERT INTO model (root, size_bytes, leaf_count, created_ms, last_used_ms, public) VALUES (?,?,?,?,?,?)",
            (layout.root.text, size, count, now_ms, now_ms, public),
        )
        for number, (file, place) in enumerate(zip(layout.files, stored, strict=True)):
            db.execute(
                "INSERT INTO files (number, path, stored, root, size_bytes, first_leaf, leaf_count) "
                "VALUES (?,?,?,?,?,?,?)",
                (number, file.path, place, file.root.raw, file.size_bytes, file.first_leaf, file.leaf_count),
            )
        db.executemany("INSERT INTO nodes VALUES (?,?)", ((cid.v1.raw, block) for cid, block in layout.nodes.items()))
        leaves = ((leaf.number, leaf.digest, leaf.file, leaf.offset_bytes, leaf.size_bytes) for leaf in layout.leaves)
        db.executemany("INSERT INTO leaves VALUES (?,?,?,?,?)", leaves)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")

    @classmethod
    def open(cls, path: Path) -> Index:
        index = cls(path)
        try:
            (version,) = index._db.execute("PRAGMA user_version").fetchone()
        except sqlite3.DatabaseError as error:
            index.close()
            raise OctonodeError(f"{path} is damaged ({error}); remove the model and fetch it again") from None
        if version != SCHEMA_VERSION:
            index.close()
            raise OctonodeError(f"{path} has schema {version}, this octonode reads {SCHEMA_VERSION}")
        return index

    def close(self) -> None:
        self._db.close()

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        with _typed(self._path):
            self._db.execute(statement, values)

    def model(self) -> ModelRow:
        root, size, leaves, created, used, pinned, public, complete = self._db.execute("SELECT * FROM model").fetchone()
        return ModelRow(Cid.parse(root), size, leaves, created, used, bool(pinned), bool(public), bool(complete))

    def set_flags(self, **flags: int) -> None:
        """Set columns of the model's row: pinned, public, complete, last_used_ms."""
        assert flags.keys() <= {"pinned", "public", "complete", "last_used_ms"}
        self._write(f"UPDATE model SET {', '.join(f'{name} = ?' for name in flags)}", tuple(flags.values()))

    def files(self) -> tuple[FileRow, ...]:
        rows = self._db.execute(
            "SELECT number, path, stored, root, size_bytes, first_leaf, leaf_count, inode, mtime_ns "
            "FROM files ORDER BY number"
        )
        return tuple(
            FileRow(number, path, stored, Cid.from_bytes(root), size, first, count, inode, mtime)
            for number, path, stored, root, size, first, count, inode, mtime in rows
        )

    def set_guard(self, number: int, inode: int, mtime_ns: int) -> None:
        self._write("UPDATE files SET inode = ?, mtime_ns = ? WHERE number = ?", (inode, mtime_ns, number))

    def set_stored(self, number: int, stored: str) -> None:
        self._write("UPDATE files SET stored = ? WHERE number = ?", (stored, number))

    def add_node(self, cid: Cid, block: bytes) -> None:
        self._write("INSERT OR REPLACE INTO nodes VALUES (?,?)", (cid.v1.raw, block))

    def node(self, cid: Cid) -> bytes | None:
        row = self._db.execute("SELECT block FROM nodes WHERE cid = ?", (cid.v1.raw,)).fetchone()
        return row[0] if row else None

    def leaves_of(self, digest: bytes) -> list[Leaf]:
        """Every place where a leaf with this digest stands."""
        rows = self._db.execute(
            "SELECT number, file, offset, size, digest FROM leaves WHERE digest = ? LIMIT 64", (digest,)
        )
        return [Leaf(*row) for row in rows]

    def leaves_between(self, file: FileRow, first_byte: int, last_byte: int) -> list[Leaf]:
        """The leaves of a file that hold any byte of the range."""
        rows = self._db.execute(
            "SELECT number, file, offset, size, digest FROM leaves WHERE file = ? AND offset <= ? AND offset >= "
            "(SELECT COALESCE(MAX(offset), 0) FROM leaves WHERE file = ? AND offset <= ?) ORDER BY number",
            (file.number, last_byte, file.number, first_byte),
        )
        return [Leaf(*row) for row in rows]

    def layout(self) -> Layout:
        """The whole layout, for a fetch that goes on and for verify."""
        row = self.model()
        rows = self._db.execute("SELECT number, file, offset, size, digest FROM leaves ORDER BY number")
        leaves = tuple(Leaf(*leaf) for leaf in rows)
        files = tuple(FileLayout(f.path, f.root, f.size_bytes, f.first_leaf, f.leaf_count) for f in self.files())
        nodes = {Cid.from_bytes(cid): block for cid, block in self._db.execute("SELECT cid, block FROM nodes")}
        return Layout(row.root, files, leaves, nodes)
