"""The task log of a node: kept in the state file, counted in the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from octonode.metrics import Metrics, Outcome, Role
from octonode.state import State
from octonode.tasks.receipts import TaskRecord

OUTCOMES = ("completed", "failed", "canceled", "rejected")


class CountedLog:
    """`tasks.receipts.TaskLog` over the state, counting what ends."""

    def __init__(self, state: State, metrics: Metrics) -> None:
        self._state = state
        self._metrics = metrics
        self.completed = 0
        self.failed = 0

    def keep_task(self, record: TaskRecord) -> None:
        self._state.keep_task(record)
        if record.state not in OUTCOMES:
            return
        self.completed += record.state == "completed"
        self.failed += record.state in ("failed", "rejected")
        role: Role = "asked" if record.role == "asker" else "served"
        outcome = cast("Outcome", record.state)
        seconds = max(0, record.ended_at_ms - record.started_at_ms) / 1000
        self._metrics.task_ended(
            role,
            outcome,
            seconds=seconds,
            first_token_seconds=record.first_token_seconds,
            tokens_in=record.tokens_in,
            tokens_out=record.tokens_out,
        )
        if record.code:
            self._metrics.refused(record.code)

    async def tasks(self, *, limit: int = 100) -> Sequence[TaskRecord]:
        return await self._state.tasks(limit=limit)
