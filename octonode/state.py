"""The node's memory: one SQLite file, `OCTONODE_HOME/state.sqlite`, behind the Protocols of those who use it.

WAL, so that readers never wait; every call runs in one worker thread; receipts and tasks are written in groups, a
commit for all that came within `GROUP_SECONDS`. What was kept in the last group before a power cut may be lost, what
was committed is whole.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import trio

from octonode.errors import ConfigError, OctonodeError
from octonode.ids import PeerId, TaskId
from octonode.tasks.receipts import StoredReceipt, TaskRecord

log = logging.getLogger(__name__)

GROUP_SECONDS = 0.05
"""Writes that come within this share a commit."""
PENDING_MAX = 10_000
"""Writes that wait for their commit; beyond it new ones are dropped and counted, since answers go before records."""
RETRY_SECONDS = 5.0
"""Between two tries of a group that could not be written, on a full disk for example."""
VALUE_BYTES_MAX = 1024 * 1024

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE receipts (
        id INTEGER PRIMARY KEY AUTOINCREMENT, task BLOB NOT NULL, role TEXT NOT NULL, provider TEXT NOT NULL,
        asker TEXT NOT NULL, model_root TEXT NOT NULL, receipt BLOB NOT NULL, request_header BLOB NOT NULL,
        verified INTEGER NOT NULL, ended_at_ms INTEGER NOT NULL, UNIQUE (task, role)
    );
    CREATE TABLE tasks (
        id INTEGER PRIMARY KEY AUTOINCREMENT, task BLOB NOT NULL, role TEXT NOT NULL, peer TEXT NOT NULL,
        model_root TEXT NOT NULL, state TEXT NOT NULL, code TEXT NOT NULL, started_at_ms INTEGER NOT NULL,
        ended_at_ms INTEGER NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL,
        receipt INTEGER NOT NULL, UNIQUE (task, role)
    );
    CREATE TABLE known_values (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    """,
    """
    CREATE TABLE pins (
        root TEXT NOT NULL, asker TEXT NOT NULL, until_ms INTEGER NOT NULL, since_ms INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL, brought INTEGER NOT NULL, kept INTEGER NOT NULL, PRIMARY KEY (root, asker)
    ) WITHOUT ROWID;
    CREATE TABLE pin_manifests (root TEXT PRIMARY KEY, manifest BLOB NOT NULL);
    CREATE TABLE pins_released (
        root TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, since_ms INTEGER NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY, owner TEXT NOT NULL, model TEXT NOT NULL, model_root TEXT NOT NULL, skill TEXT NOT NULL,
        priority INTEGER NOT NULL, peer TEXT NOT NULL, privacy TEXT NOT NULL, webhook TEXT NOT NULL,
        ttl_seconds REAL NOT NULL, created_at_ms INTEGER NOT NULL, state TEXT NOT NULL, attempt INTEGER NOT NULL,
        failures INTEGER NOT NULL, started_at_ms INTEGER NOT NULL, ended_at_ms INTEGER NOT NULL,
        expires_at_ms INTEGER NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL, hook_state TEXT NOT NULL,
        hook_tries INTEGER NOT NULL, hook_at_ms INTEGER NOT NULL, input_bytes INTEGER NOT NULL,
        result_bytes INTEGER NOT NULL, input BLOB, result BLOB
    );
    """,
)
"""Numbered from 1 in `user_version`; each runs once, in order, in a transaction. A released one is never edited."""

T = TypeVar("T")

_RECEIPT = "task, role, provider, asker, model_root, receipt, request_header, verified, ended_at_ms"
_TASK = "task, role, peer, model_root, state, code, started_at_ms, ended_at_ms, tokens_in, tokens_out, receipt"


class State:
    """Receipts, tasks and small values. Implements `tasks.receipts.ReceiptStore` and `TaskLog`."""

    def __init__(self, path: Path, *, receipts_max: int) -> None:
        self._path = path
        self._rows_max = max(1, receipts_max)
        self._database: sqlite3.Connection | None = None
        self._thread = trio.CapacityLimiter(1)
        self._receipts: list[StoredReceipt] = []
        self._tasks: list[TaskRecord] = []
        self._wanted = trio.Event()
        self._flushed = trio.lowlevel.ParkingLot()
        self._groups = 0
        self._dropped = 0
        self._problem = ""

    @property
    def problem(self) -> str:
        """Why the last group could not be written, for `status`; empty when all is well."""
        return self._problem

    @property
    def dropped(self) -> int:
        """Records that found no room, since the start."""
        return self._dropped

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Opens and migrates, writes in groups until cancelled, then writes what is left and closes.

        Raises ConfigError for a file that is damaged, cannot be written, or was written by a newer version.
        """
        database = await trio.to_thread.run_sync(open_database, self._path, limiter=self._thread)
        self._database = database
        try:
            task_status.started()
            while True:
                await self._wanted.wait()
                await trio.sleep(GROUP_SECONDS if not self._problem else RETRY_SECONDS)
                await self._write_group()
        finally:
            with trio.CancelScope(shield=True):
                await self._write_group()
                self._database = None
                self._flushed.unpark_all()
                await trio.to_thread.run_sync(database.close, limiter=self._thread)

    # Written soon.

    def keep_receipt(self, receipt: StoredReceipt) -> None:
        if self._has_room():
            self._receipts.append(receipt)
            self._wanted.set()

    def keep_task(self, record: TaskRecord) -> None:
        if self._has_room():
            self._tasks.append(record)
            self._wanted.set()

    def _has_room(self) -> bool:
        if len(self._receipts) + len(self._tasks) < PENDING_MAX:
            return True
        if not self._dropped:
            log.error("%s cannot be written and %d records wait; further ones are lost", self._path, PENDING_MAX)
        self._dropped += 1
        return False

    async def flush(self) -> None:
        """Returns once everything kept so far is committed, or could not be (see `problem`), or `run` has ended."""
        self._wanted.set()
        groups = self._groups
        # A group that is being written now may have begun before our records came: wait for the one behind it too.
        while self._database is not None and self._groups < groups + 2 and (self._receipts or self._tasks):
            if self._problem:
                return
            await self._flushed.park()
        async with self._thread:
            pass

    async def _write_group(self) -> None:
        """One commit for all that waits. A fault of the disk keeps it for the next try."""
        self._wanted = trio.Event()
        receipts, self._receipts = self._receipts, []
        tasks, self._tasks = self._tasks, []
        try:
            if receipts or tasks:
                await self._in_thread(lambda database: _insert(database, receipts, tasks, self._rows_max))
            self._problem = ""
        except BaseException as error:
            self._receipts, self._tasks = receipts + self._receipts, tasks + self._tasks
            if not isinstance(error, sqlite3.Error):
                raise
            self._problem = f"{self._path} cannot be written: {error}; free some disk space, or move the file away"
            log.error("%s", self._problem)
            self._wanted.set()
        self._groups += 1
        self._flushed.unpark_all()

    # Read now.

    async def receipt(self, task: TaskId) -> StoredReceipt | None:
        """The asker's copy where both were kept."""
        await self.flush()
        query = f"SELECT {_RECEIPT} FROM receipts WHERE task = ? ORDER BY role LIMIT 1"  # `asker` comes first
        rows = await self._rows(query, (task,))
        return _receipt(rows[0]) if rows else None

    async def receipts(self, *, limit: int = 100) -> Sequence[StoredReceipt]:
        """The latest first."""
        await self.flush()
        rows = await self._rows(f"SELECT {_RECEIPT} FROM receipts ORDER BY id DESC LIMIT ?", (limit,))
        return [_receipt(row) for row in rows]

    async def tasks(self, *, limit: int = 100) -> Sequence[TaskRecord]:
        """The latest first, both roles."""
        await self.flush()
        rows = await self._rows(f"SELECT {_TASK} FROM tasks ORDER BY id DESC LIMIT ?", (limit,))
        return [_task(row) for row in rows]

    async def value(self, key: str) -> bytes | None:
        """A small value by name: announcement sequence, remembered peers, desired models. None when never set."""
        rows = await self._rows("SELECT value FROM known_values WHERE key = ?", (key,))
        return bytes(rows[0][0]) if rows else None

    async def set_value(self, key: str, value: bytes) -> None:
        """Committed when this returns. Raises OctonodeError (DISK_FULL) when it cannot be."""
        assert len(value) <= VALUE_BYTES_MAX

        def write(database: sqlite3.Connection) -> None:
            with database:
                database.execute("INSERT OR REPLACE INTO known_values VALUES (?, ?)", (key, value))

        await self._write_now(write)

    async def _write_now(self, write: Callable[[sqlite3.Connection], None]) -> None:
        try:
            await self._in_thread(write)
        except sqlite3.Error as error:
            raise OctonodeError(f"{self._path} cannot be written: {error}; free disk space", code="DISK_FULL") from None

    async def select(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Rows of a table that another room keeps here (`node.pin_table`). Raises OctonodeError."""
        return await self._rows(query, values)

    async def change(self, *statements: tuple[str, tuple[Any, ...]], durable: bool = False) -> None:
        """All of `statements` or none, committed when this returns; `durable`: whatever becomes of the power, too.

        Raises OctonodeError (DISK_FULL).
        """

        def write(database: sqlite3.Connection) -> None:
            database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            with database:
                for statement, values in statements:
                    database.execute(statement, values)

        await self._write_now(write)

    async def _rows(self, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        try:
            return await self._in_thread(lambda database: database.execute(query, values).fetchall())
        except sqlite3.Error as error:
            raise OctonodeError(f"{self._path} cannot be read: {error}", code="INTERNAL") from None

    async def _in_thread(self, call: Callable[[sqlite3.Connection], T]) -> T:
        database = self._database
        if database is None:
            raise OctonodeError("the node's memory is not open: it is starting or stopping", code="NOT_RUNNING")
        return await trio.to_thread.run_sync(call, database, limiter=self._thread)


def open_database(path: Path) -> sqlite3.Connection:
    """The database at `path`, made if need be, at the newest version. Raises ConfigError."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"{path} cannot be opened: {error}") from None
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        _migrate(database, path)
        database.isolation_level = "IMMEDIATE"
    except sqlite3.OperationalError as error:
        database.close()
        raise ConfigError(f"{path} cannot be used: {error}") from None
    except sqlite3.DatabaseError as error:
        database.close()
        raise ConfigError(
            f"{path} is damaged ({error}); move it away and start again: receipts and settings kept in it are lost"
        ) from None
    except ConfigError:
        database.close()
        raise
    return database


def _migrate(database: sqlite3.Connection, path: Path) -> None:
    version = int(database.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise ConfigError(
            f"{path} has version {version} and this octonode knows {len(MIGRATIONS)}: it was written by a newer one; "
            "update octonode, or move the file away"
        )
    database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        database.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")


def _insert(
    database: sqlite3.Connection, receipts: list[StoredReceipt], tasks: list[TaskRecord], rows_max: int
) -> None:
    with database, closing(database.cursor()) as cursor:
        cursor.executemany(
            f"INSERT OR REPLACE INTO receipts ({_RECEIPT}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    r.task,
                    r.role,
                    r.provider,
                    r.asker,
                    r.model_root,
                    r.receipt,
                    r.request_header,
                    r.verified,
                    r.ended_at_ms,
                )
                for r in receipts
            ],
        )
        cursor.executemany(
            f"INSERT OR REPLACE INTO tasks ({_TASK}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (t.task, t.role, t.peer, t.model_root, t.state, t.code, t.started_at_ms, t.ended_at_ms)  # noqa: RUF005
                + (t.tokens_in, t.tokens_out, t.receipt)
                for t in tasks
            ],
        )
        for table in ("receipts", "tasks"):
            cursor.execute(f"DELETE FROM {table} WHERE id <= (SELECT max(id) FROM {table}) - ?", (rows_max,))


def _receipt(row: tuple[Any, ...]) -> StoredReceipt:
    task, role, provider, asker, model_root, receipt, request_header, verified, ended_at_ms = row
    return StoredReceipt(
        task=TaskId(task),
        role=role,
        provider=PeerId(provider),
        asker=PeerId(asker),
        model_root=model_root,
        receipt=receipt,
        request_header=request_header,
        verified=bool(verified),
        ended_at_ms=ended_at_ms,
    )


def _task(row: tuple[Any, ...]) -> TaskRecord:
    task, role, peer, model_root, state, code, started_at_ms, ended_at_ms, tokens_in, tokens_out, receipt = row
    return TaskRecord(
        task=TaskId(task),
        role=role,
        peer=PeerId(peer),
        model_root=model_root,
        state=state,
        code=code,
        started_at_ms=started_at_ms,
        ended_at_ms=ended_at_ms,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        receipt=bool(receipt),
    )
