"""Progress of blocking work, told from its thread."""

from __future__ import annotations

import trio

from octonode.api.ports import Report
from octonode.api.schema import ModelProgress


class FromThread:
    """A progress callback for a worker thread: shows in the trio thread, and stops the work when that was cancelled."""

    def __init__(self, report: Report, stage: str) -> None:
        self._report = report
        self._stage = stage
        self._token = trio.lowlevel.current_trio_token()

    def __call__(self, done: int, total: int) -> None:
        trio.from_thread.check_cancelled()
        self._token.run_sync_soon(self._report, ModelProgress(self._stage, done, total), idempotent=False)
