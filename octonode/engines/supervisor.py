"""Owns the worker processes: one per loaded model, started, watched, restarted and ended as `plan` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import trio

from octonode.config import EnginesConfig
from octonode.engines.contract import Engine, EngineFacts, LoadRequest

WorkerState = Literal["waiting", "starting", "ready", "stopping", "crashed", "quarantined"]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One model's worker, for `status`, `doctor` and the announcer."""

    model_root: str
    engine: str
    state: WorkerState
    reason: str
    """Why it is not ready, for people; empty when it is."""
    pid: int
    """0 when no process lives."""
    running: int
    crashes: int
    resident_bytes: int
    sandbox: tuple[str, ...]
    """What holds the worker, for example `landlock abi 7`, `seccomp`; a missing layer says why."""
    facts: EngineFacts | None


class Supervisor:
    """Starts and keeps the workers of the desired models. Constructor without I/O; `run` owns every process."""

    def __init__(self, settings: EnginesConfig, *, directory: Path) -> None:
        """`directory` becomes the workers' private temporary directories and is emptied by `run`."""
        self._settings = settings
        self._directory = directory

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves until cancelled; on the way out every worker is ended and reaped."""
        raise NotImplementedError

    def set_desired(self, desired: Mapping[str, LoadRequest]) -> None:
        """The models to keep loaded, by root. Others drain and are unloaded; a changed request is loaded anew."""
        raise NotImplementedError

    def engine(self, model_root: str) -> Engine | None:
        """The loaded model, or None while it is not ready or no longer desired."""
        raise NotImplementedError

    async def wait_ready(self, model_root: str) -> Engine:
        """Waits through loading and back-off. Raises MODEL_NOT_FOUND when nobody wants this root, and the last failure
        (EngineCrashed, ENGINE_FAILED, CONFIG, ...) when it is quarantined."""
        raise NotImplementedError

    def status(self) -> list[WorkerStatus]:
        """Every desired or still living worker, sorted by root."""
        raise NotImplementedError

    @property
    def changes(self) -> int:
        """Grows with each change of any worker's state."""
        raise NotImplementedError

    async def wait_changed(self, seen: int) -> int:
        """Returns `changes` as soon as it differs from `seen`, so that no change is missed between two calls."""
        raise NotImplementedError

    def release(self, model_root: str) -> None:
        """Forgets the crashes of a model, so that a quarantined one is tried again."""
        raise NotImplementedError
