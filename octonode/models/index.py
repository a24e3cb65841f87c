"""The index of one model in the store: a small SQLite file of its files, DAG nodes and leaf ranges.

One connection, used under the lock of the model it belongs to; other processes may read and write the same file.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from octonode.errors import OctonodeError
from octonode.ipfs.cid import Cid
from octonode.ipfs.layout import FileLayout, Layout, Leaf
from octonode.ipfs.leaves import RAW_LEAVES, LeafForm
from octonode.models.disk import read_only, sqlite_address, sqlite_error

SCHEMA_VERSION: Final = 2
BUSY_TIMEOUT_SECONDS: Final = 10.0
_SETTLED_NS: Final = 1_000_000_000
_SCHEMA: Final = """
CREATE TABLE model (
  root TEXT NOT NULL, size_bytes INTEGER NOT NULL, leaf_count INTEGER NOT NULL, created_ms INTEGER NOT NULL,
  last_used_ms INTEGER NOT NULL, pinned INTEGER NOT NULL DEFAULT 0, public INTEGER NOT NULL DEFAULT 1,
  complete INTEGER NOT NULL DEFAULT 0);
CREATE TABLE files (
  number INTEGER PRIMARY KEY, path TEXT NOT NULL, stored TEXT NOT NULL, root BLOB NOT NULL, size_bytes INTEGER NOT NULL,
  first_leaf INTEGER NOT NULL, leaf_count INTEGER NOT NULL,
  inode INTEGER NOT NULL DEFAULT 0, mtime_ns INTEGER NOT NULL DEFAULT 0,
  leaf_kind TEXT NOT NULL DEFAULT 'raw', leaf_cid_version INTEGER NOT NULL DEFAULT 1);
CREATE INDEX files_by_root ON files (root);
CREATE TABLE nodes (cid BLOB PRIMARY KEY, block BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE leaves (
  number INTEGER PRIMARY KEY, digest BLOB NOT NULL, file INTEGER NOT NULL,
  offset INTEGER NOT NULL, size INTEGER NOT NULL);
CREATE INDEX leaves_by_digest ON leaves (digest);
CREATE INDEX leaves_by_offset ON leaves (file, offset);
"""
_MIGRATIONS: Final = {
    1: (
        "ALTER TABLE files ADD COLUMN leaf_kind TEXT NOT NULL DEFAULT 'raw'",
        "ALTER TABLE files ADD COLUMN leaf_cid_version INTEGER NOT NULL DEFAULT 1",
    ),
}
"""From a version to the next. Before version 2 every leaf was raw."""


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
    leaf_form: LeafForm = RAW_LEAVES


@contextmanager
def _typed(path: Path) -> Iterator[None]:
    """SQLite's errors as ours: a full disk says so, whatever else says where."""
    try:
        yield
    except sqlite3.Error as error:
        raise sqlite_error(error, path) from error


class Index:
    """Raises OctonodeError (INTERNAL) when the file is damaged or from another version.

    The connection is made when it is needed, and again after `rest`: a store of a thousand models keeps few of them.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self._path = path
        self._connection = self._connect(str(path)) if create else None
        self._row: tuple[tuple[int, int, int], ModelRow] | None = None
        self._schema = SCHEMA_VERSION
        self._forms: tuple[LeafForm, ...] = ()

    def _connect(self, address: str) -> sqlite3.Connection:
        uri = address.startswith("file:")
        return sqlite3.connect(
            address, uri=uri, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
        )

    @property
    def _db(self) -> sqlite3.Connection:
        """Raises FileNotFoundError when the model was removed while its index was at rest."""
        if self._connection is None:
            if not self._path.exists():
                raise FileNotFoundError(f"{self._path} was removed")
            with _typed(self._path):
                self._connection = self._connect(sqlite_address(self._path))
        return self._connection

    def rest(self) -> None:
        """Give the connection back until the next use."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @classmethod
    def create(cls, path: Path, layout: Layout, stored: Iterable[str], *, public: bool, now_ms: int) -> Index:
        """A new index of `layout`; `stored` says for each file where its bytes are."""
        index = cls(path, create=True)
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
                "INSERT INTO files (number, path, stored, root, size_bytes, first_leaf, leaf_count, leaf_kind, "
                "leaf_cid_version) VALUES (?,?,?,?,?,?,?,?,?)",
                (
                    *(number, file.path, place, file.root.raw, file.size_bytes, file.first_leaf, file.leaf_count),
                    *(file.form.kind, file.form.cid_version),
                ),
            )
        nodes = ((cid.v1.raw, block) for cid, block in layout.nodes.items())
        db.executemany("INSERT OR IGNORE INTO nodes VALUES (?,?)", nodes)
        leaves = ((leaf.number, leaf.digest, leaf.file, leaf.offset_bytes, leaf.size_bytes) for leaf in layout.leaves)
        db.executemany("INSERT INTO leaves VALUES (?,?,?,?,?)", leaves)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")

    @classmethod
    def open(cls, path: Path) -> Index:
        """The index at `path`. One of an older version is brought up to date in place, which touches no file of the
        model; on a disk that is read-only it is read as it is."""
        index = cls(path)
        try:
            with _typed(path):
                index._schema = index._version()
                if 0 < index._schema < SCHEMA_VERSION and not read_only(path.parent):
                    index._migrate()
            if not 0 < index._schema <= SCHEMA_VERSION:
                raise OctonodeError(
                    f"{path} has schema {index._schema}, this octonode reads {SCHEMA_VERSION}: update octonode, or "
                    "remove the model and fetch it again"
                )
        except BaseException:
            index.close()
            raise
        return index

    def _version(self) -> int:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        return int(version)

    def _migrate(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for step in range(self._version(), SCHEMA_VERSION):  # another process may have been faster
                for statement in _MIGRATIONS[step]:
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._schema = SCHEMA_VERSION

    def close(self) -> None:
        self.rest()

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        self._row = None
        with _typed(self._path):
            self._db.execute(statement, values)

    def model(self) -> ModelRow:
        """Remembered while the file stays as it is, since lists of a thousand models ask for it."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            if self._connection is None:
                raise
            return self._read_model()  # removed a moment ago
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._row is not None and self._row[0] == stamp:
            return self._row[1]
        row = self._read_model()
        settled = time.time_ns() - status.st_mtime_ns > _SETTLED_NS  # another write may have the same time else
        self._row = (stamp, row) if settled else None
        return row

    def _read_model(self) -> ModelRow:
        root, size, leaves, created, used, pinned, public, complete = self._db.execute("SELECT * FROM model").fetchone()
        return ModelRow(Cid.parse(root), size, leaves, created, used, bool(pinned), bool(public), bool(complete))

    def set_flags(self, **flags: int) -> None:
        """Set columns of the model's row: pinned, public, complete, last_used_ms."""
        assert flags.keys() <= {"pinned", "public", "complete", "last_used_ms"}
        self._write(f"UPDATE model SET {', '.join(f'{name} = ?' for name in flags)}", tuple(flags.values()))

    def files(self) -> tuple[FileRow, ...]:
        form = "leaf_kind, leaf_cid_version" if self._schema > 1 else "'raw', 1"
        rows = self._db.execute(
            "SELECT number, path, stored, root, size_bytes, first_leaf, leaf_count, inode, mtime_ns, "
            f"{form} FROM files ORDER BY number"
        )
        return tuple(
            FileRow(
                number, path, stored, Cid.from_bytes(root), size, first, count, inode, mtime, LeafForm(kind, version)
            )
            for number, path, stored, root, size, first, count, inode, mtime, kind, version in rows
        )

    def _leaves(self, condition: str, values: tuple[Any, ...]) -> Iterator[Leaf]:
        if not self._forms:  # they never change
            self._forms = tuple(file.leaf_form for file in self.files())
        rows = self._db.execute(f"SELECT number, file, offset, size, digest FROM leaves {condition}", values)
        return (
            Leaf(number, file, offset, size, digest, self._forms[file]) for number, file, offset, size, digest in rows
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

    def digests(self) -> Iterator[bytes]:
        """Of every block: the nodes, then the leaves."""
        for (cid,) in self._db.execute("SELECT cid FROM nodes"):
            yield Cid.from_bytes(cid).digest
        for (digest,) in self._db.execute("SELECT DISTINCT digest FROM leaves"):
            yield digest

    def leaves_from(self, number: int, count: int) -> list[Leaf]:
        """At most `count` leaves from that number on, in order."""
        return list(self._leaves("WHERE number >= ? ORDER BY number LIMIT ?", (number, count)))

    def leaves_of(self, cid: Cid) -> list[Leaf]:
        """Every place where a leaf with this block stands; of version 0 and 1 alike, but not of another codec."""
        found = self._leaves("WHERE digest = ? LIMIT 64", (cid.digest,))
        return [leaf for leaf in found if leaf.cid.codec == cid.codec]

    def leaves_between(self, file: FileRow, first_byte: int, last_byte: int) -> list[Leaf]:
        """The leaves of a file that hold any byte of the range."""
        condition = (
            "WHERE file = ? AND offset <= ? AND offset >= "
            "(SELECT COALESCE(MAX(offset), 0) FROM leaves WHERE file = ? AND offset <= ?) ORDER BY number"
        )
        return list(self._leaves(condition, (file.number, last_byte, file.number, first_byte)))

    def layout(self) -> Layout:
        """The whole layout, for a fetch that goes on and for verify."""
        row = self.model()
        leaves = tuple(self._leaves("ORDER BY number", ()))
        files = tuple(
            FileLayout(f.path, f.root, f.size_bytes, f.first_leaf, f.leaf_count, f.leaf_form) for f in self.files()
        )
        nodes = {Cid.from_bytes(cid): block for cid, block in self._db.execute("SELECT cid, block FROM nodes")}
        return Layout(row.root, files, leaves, nodes)
