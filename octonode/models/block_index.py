"""Which models have a block: one look-up for the whole store, however many models there are.

`OCTONODE_HOME/blocks.sqlite` maps the first eight bytes of each block's digest to models. It is a cache of what the
models' own indexes say, shared by all processes of a home: a hit is only a hint where to look, and a file that is
missing, damaged or on a disk that cannot be written is made again, in memory if need be.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from octonode.ipfs.cid import Cid, CidError

log = logging.getLogger(__name__)

VERSION: Final = 1
HITS_MAX: Final = 64
"""Models looked into for one block."""
BUSY_TIMEOUT_SECONDS: Final = 10.0
_CACHE_KIBIBYTES: Final = 8192
_KEYS_IN_ONE: Final = 500
_SCHEMA: Final = f"""
CREATE TABLE models (id INTEGER PRIMARY KEY AUTOINCREMENT, root TEXT NOT NULL UNIQUE);
CREATE TABLE blocks (key INTEGER NOT NULL, model INTEGER NOT NULL, PRIMARY KEY (key, model)) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""


def _key(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big", signed=True)


class BlockIndex:
    """Safe from threads. Never raises for faults of its own file: what it cannot keep on disk it keeps in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self.generation = 0
        """Grows when it is begun anew, and empty: whoever fills it looks at this."""

    def close(self) -> None:
        with self._lock:
            self._drop()

    def roots(self) -> frozenset[Cid]:
        """The models whose blocks are known here."""
        found = set()
        with self._lock:
            for (text,) in self._run("SELECT root FROM models"):
                with contextlib.suppress(CidError):
                    found.add(Cid.parse(text))
        return frozenset(found)

    def add(self, root: Cid, digests: Iterable[bytes]) -> None:
        """Enter blocks of `root`; those it had stay."""
        keys = sorted({_key(digest) for digest in digests})
        with self._lock:
            try:
                self._add(root, keys)
            except sqlite3.Error as error:
                self._start_in_memory(error)
                self._add(root, keys)

    def _add(self, root: Cid, keys: list[int]) -> None:
        db = self._open()
        db.execute("BEGIN IMMEDIATE")
        try:
            db.execute("INSERT OR IGNORE INTO models (root) VALUES (?)", (root.v1.text,))
            (number,) = db.execute("SELECT id FROM models WHERE root = ?", (root.v1.text,)).fetchone()
            db.executemany("INSERT OR IGNORE INTO blocks VALUES (?,?)", ((key, number) for key in keys))
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    def remove(self, root: Cid) -> None:
        """Forget a model. Its rows go too: a passage over the table, which removing a model can wait for."""
        with self._lock:
            for (number,) in self._run("SELECT id FROM models WHERE root = ?", root.v1.text):
                self._run("DELETE FROM models WHERE id = ?", number)
                self._run("DELETE FROM blocks WHERE model = ?", number)

    def find(self, cid: Cid) -> list[Cid]:
        """Models that may have the block, at most HITS_MAX."""
        with self._lock:
            rows = self._run(
                "SELECT models.root FROM blocks JOIN models ON models.id = blocks.model WHERE blocks.key = ? LIMIT ?",
                _key(cid.digest),
                HITS_MAX,
            )
        return [Cid.parse(text) for (text,) in rows]

    def sharing(self, digests: Iterable[bytes]) -> set[Cid]:
        """Models that have any of these blocks."""
        keys = sorted({_key(digest) for digest in digests})
        found: set[str] = set()
        with self._lock:
            for start in range(0, len(keys), _KEYS_IN_ONE):
                some = keys[start : start + _KEYS_IN_ONE]
                marks = ",".join("?" * len(some))
                found.update(
                    text
                    for (text,) in self._run(
                        "SELECT DISTINCT models.root FROM blocks JOIN models ON models.id = blocks.model "
                        f"WHERE blocks.key IN ({marks})",
                        *some,
                    )
                )
        return {Cid.parse(text) for text in found}

    def _run(self, statement: str, *values: object) -> list[tuple[str]]:
        try:
            return self._open().execute(statement, values).fetchall()
        except sqlite3.Error as error:
            self._start_in_memory(error)
            return self._open().execute(statement, values).fetchall()

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._connection = self._connect(str(self._path))
            except sqlite3.OperationalError as error:  # read-only, full, or no directory yet
                self._start_in_memory(error)
            except sqlite3.Error as error:  # damaged, or of another version: it is a cache
                log.info("%s is made again: %s", self._path, error)
                for name in (self._path, self._path.with_name(f"{self._path.name}-wal")):
                    with contextlib.suppress(OSError):
                        name.unlink(missing_ok=True)
                try:
                    self._connection = self._connect(str(self._path))
                except sqlite3.Error as again:
                    self._start_in_memory(again)
        assert self._connection is not None
        return self._connection

    def _connect(self, address: str) -> sqlite3.Connection:
        """Raises sqlite3.Error; OperationalError where the disk is at fault."""
        db = sqlite3.connect(address, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute(f"PRAGMA cache_size = -{_CACHE_KIBIBYTES}")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            elif version != VERSION:
                raise sqlite3.DatabaseError(f"it has schema {version}")
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _start_in_memory(self, error: sqlite3.Error) -> None:
        log.warning("%s cannot be used (%s); blocks are looked up in memory until the next start", self._path, error)
        self._drop()
        self._connection = self._connect(":memory:")
        self.generation += 1

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
