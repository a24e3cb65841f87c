"""The node's memory on a real disk: kept over restarts, bounded, and clear about a file it cannot use."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from octonode import state as module
from octonode.errors import ConfigError, OctonodeError
from octonode.ids import PeerId, TaskId
from octonode.state import State, open_database
from octonode.tasks.receipts import StoredReceipt, TaskRecord


@asynccontextmanager
async def opened(path: Path, receipts_max: int = 1000) -> AsyncIterator[State]:
    state = State(path, receipts_max=receipts_max)
    async with trio.open_nursery() as nursery:
        await nursery.start(state.run)
        yield state
        nursery.cancel_scope.cancel()


def receipt(number: int, role: str = "asker", verified: bool = True) -> StoredReceipt:
    return StoredReceipt(
        task=TaskId(number.to_bytes(16)),
        role=role,  # type: ignore[arg-type]
        provider=PeerId("provider"),
        asker=PeerId("asker"),
        model_root="bafy",
        receipt=b"signed" + bytes([number % 256]),
        request_header=b"header",
        verified=verified,
        ended_at_ms=1000 + number,
    )


def record(number: int, role: str = "asker", state: str = "completed") -> TaskRecord:
    return TaskRecord(
        TaskId(number.to_bytes(16)),
        role,  # type: ignore[arg-type]
        PeerId("peer"),
        "bafy",
        state,  # type: ignore[arg-type]
        "",
        1,
        2,
        3,
        4,
        True,
    )


async def test_receipts_and_tasks_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    async with opened(path) as state:
        state.keep_receipt(receipt(1))
        state.keep_receipt(receipt(2, verified=False))
        state.keep_task(record(2))
    async with opened(path) as state:
        assert await state.receipts() == [receipt(2, verified=False), receipt(1)]
        assert await state.receipt(TaskId((2).to_bytes(16))) == receipt(2, verified=False)
        assert await state.receipt(TaskId((3).to_bytes(16))) is None
        assert await state.tasks() == [record(2)]
    assert path.stat().st_mode & 0o077 == 0


async def test_what_was_kept_can_be_read_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "s") as state:
        for number in range(200):
            state.keep_receipt(receipt(number))
        assert len(await state.receipts(limit=500)) == 200


async def test_the_oldest_receipts_and_tasks_go_at_the_bound(tmp_path: Path) -> None:
    async with opened(tmp_path / "s", receipts_max=10) as state:
        for number in range(25):
            state.keep_receipt(receipt(number))
            state.keep_task(record(number))
            if number % 7 == 0:
                await state.flush()
        assert [r.task for r in await state.receipts()] == [TaskId(n.to_bytes(16)) for n in range(24, 14, -1)]
        assert len(await state.tasks(limit=100)) == 10


async def test_the_askers_copy_comes_first_and_the_same_task_is_replaced(tmp_path: Path) -> None:
    async with opened(tmp_path / "s") as state:
        state.keep_receipt(receipt(1, role="provider"))
        state.keep_receipt(receipt(1, role="asker"))
        found = await state.receipt(TaskId((1).to_bytes(16)))
        assert found is not None
        assert found.role == "asker"
        state.keep_task(record(1, state="working"))
        state.keep_task(record(1, state="failed"))
        assert [task.state for task in await state.tasks()] == ["failed"]


async def test_values_are_committed_when_set(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with opened(path) as state:
        assert await state.value("sequence") is None
        await state.set_value("sequence", b"41")
        await state.set_value("sequence", b"42")
        other = sqlite3.connect(path)
        assert other.execute("SELECT value FROM known_values").fetchall() == [(b"42",)]
        other.close()
    async with opened(path) as state:
        assert await state.value("sequence") == b"42"


def test_a_damaged_file_is_a_clear_error_and_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"this is no database at all " * 500)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"state\.sqlite is damaged .* move it away"):
        open_database(path)
    assert path.read_bytes() == before


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    database = open_database(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ConfigError, match=r"version 99 .* newer"):
        open_database(path)


def test_a_path_that_cannot_be_opened_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        open_database(tmp_path / "missing" / "state.sqlite")


def test_migrations_run_in_order_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.sqlite"
    open_database(path).close()
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, "CREATE TABLE later (x);"))
    for _ in range(2):
        database = open_database(path)
        assert database.execute("PRAGMA user_version").fetchone() == (len(module.MIGRATIONS),)
        assert database.execute("SELECT count(*) FROM later").fetchone() == (0,)
        database.close()


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.sqlite"
    open_database(path).close()
    broken = "CREATE TABLE half (x); INSERT INTO nowhere VALUES (1);"
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, broken))
    with pytest.raises(ConfigError):
        open_database(path)
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA user_version").fetchone() == (len(module.MIGRATIONS) - 1,)
    assert database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone() == (0,)
    database.close()


async def test_a_disk_that_takes_nothing_stops_nobody_and_loses_nothing(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "s"
    async with opened(path) as state:
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("CREATE TRIGGER full BEFORE INSERT ON receipts BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
        state.keep_receipt(receipt(1))
        # No deadline: the virtual clock runs on while a thread writes, so it says nothing of how long that takes.
        while not state.problem:
            await trio.sleep(0.1)
        assert "disk is full" in state.problem
        assert await state.receipts() == []
        blocker.execute("DROP TRIGGER full")
        blocker.close()
        while state.problem:
            await trio.sleep(1)
        assert await state.receipts() == [receipt(1)]


async def test_records_beyond_the_waiting_room_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PENDING_MAX", 3)
    state = State(tmp_path / "s", receipts_max=10)
    for number in range(5):
        state.keep_receipt(receipt(number))
    assert state.dropped == 2


async def test_before_it_is_open_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(OctonodeError) as caught:
        await State(tmp_path / "s", receipts_max=10).value("x")
    assert caught.value.code == "NOT_RUNNING"
