"""The node's memory: one SQLite file, `OCTONODE_HOME/state.sqlite`, behind the Protocols of those who use it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio

from octonode.ids import TaskId
from octonode.tasks.receipts import StoredReceipt, TaskRecord


class State:
    """Receipts, tasks, desired models and small values. Implements tasks.receipts.{ReceiptStore, TaskLog}."""

    def __init__(self, path: Path, *, receipts_max: int) -> None:
        raise NotImplementedError

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Opens and migrates, writes in groups until cancelled, then writes what is left and closes.

        Raises ConfigError for a file that is damaged or written by a newer version.
        """
        raise NotImplementedError

    def keep_receipt(self, receipt: StoredReceipt) -> None:
        raise NotImplementedError

    def keep_task(self, record: TaskRecord) -> None:
        raise NotImplementedError

    async def receipt(self, task: TaskId) -> StoredReceipt | None:
        raise NotImplementedError

    async def receipts(self, *, limit: int = 100) -> Sequence[StoredReceipt]:
        raise NotImplementedError

    async def tasks(self, *, limit: int = 100) -> Sequence[TaskRecord]:
        raise NotImplementedError

    async def value(self, key: str) -> bytes | None:
        """A small value by name: announcement sequence, remembered peers, desired models. None when never set."""
        raise NotImplementedError

    async def set_value(self, key: str, value: bytes) -> None:
        """Committed when this returns."""
        raise NotImplementedError

    async def flush(self) -> None:
        """Returns once everything kept so far is committed."""
        raise NotImplementedError
