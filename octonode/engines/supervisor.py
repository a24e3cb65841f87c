"""Owns the worker processes: one per loaded model, started, watched, restarted and ended as `plan` says."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil
import trio

from octonode.config import EnginesConfig
from octonode.engines.calls import again
from octonode.engines.contract import Engine, EngineFacts, LoadRequest
from octonode.engines.files import Lease, ModelFiles
from octonode.engines.life import lasting
from octonode.engines.link import WorkerLink
from octonode.engines.plan import (
    Action,
    Crashes,
    Drain,
    Forget,
    Kill,
    Observed,
    Phase,
    Policy,
    Quarantine,
    Start,
    Stop,
    back_off_seconds,
    next_look_seconds,
    plan,
)
from octonode.engines.process import WorkerProcess
from octonode.engines.sandbox import level as isolation_level
from octonode.engines.select import python_for
from octonode.engines.servers.kinds import ServerLoad
from octonode.engines.servers.link import ServerLink
from octonode.engines.servers.registry import ServerSettings, kind_of
from octonode.errors import NotFound, OctonodeError

log = logging.getLogger(__name__)

Link = WorkerLink | ServerLink
WorkerState = Literal["waiting", "starting", "ready", "stopping", "crashed", "quarantined"]

LATE_SECONDS = 1.0
"""When our own loop turns this much late, the workers' clocks are set back by it."""


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
    gpu_bytes: int
    """0 where no driver tells it."""
    devices: tuple[str, ...]
    """GPUs it may see; `cpu`: none; empty: those that the node sees."""
    sandbox: tuple[str, ...]
    """What holds the worker, for example `landlock abi 7`, `seccomp`; a missing layer says why."""
    isolation: str
    """The same in a word: `full`, `partial: why`, `off: why`; empty before it is loaded."""
    facts: EngineFacts | None
    stderr_tail: str = ""
    """The last lines the worker wrote before it failed."""
    server_load: ServerLoad | None = None
    """What a server of its own last said of its queue and cache."""


def policy_from(settings: EnginesConfig) -> Policy:
    """The limits of `plan` as the settings give them."""
    return Policy(
        load_timeout_seconds=settings.load_timeout_seconds,
        no_progress_timeout_seconds=settings.no_progress_timeout_seconds,
        gpu_memory_bytes_max=settings.gpu_memory_bytes_max,
        memory_bytes_max=settings.memory_bytes_max or psutil.virtual_memory().total * 9 // 10,
        crashes_before_quarantine=max(1, settings.crashes_before_quarantine),
    )


class Supervisor:
    """Starts and keeps the workers of the desired models. Constructor without I/O; `run` owns every process."""

    def __init__(
        self,
        settings: EnginesConfig,
        *,
        directory: Path,
        policy: Policy | None = None,
        files: ModelFiles | None = None,
        servers: ServerSettings | None = None,
    ) -> None:
        """`directory` becomes the workers' private temporary directories and is emptied by `run`. What is lent by
        `files` to a worker is given back at its end."""
        self._settings = settings
        self._servers = servers or ServerSettings()
        self._files = files
        self._directory = directory
        self._policy = policy or policy_from(settings)
        self._desired: dict[str, LoadRequest] = {}
        self._links: dict[str, Link] = {}
        self._crashes: dict[str, Crashes] = {}
        self._last_errors: dict[str, OctonodeError] = {}
        self._numbers = itertools.count(1)
        self._changes = 0
        self._changed = trio.lowlevel.ParkingLot()
        self._wake = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves until cancelled; on the way out every worker is ended and reaped."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True, mode=0o700)
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._wake = trio.Event()
                wait_seconds = self._step(nursery)
                due = trio.current_time() + wait_seconds
                with trio.move_on_at(due) as timer:
                    await self._wake.wait()
                late_seconds = trio.current_time() - due
                if timer.cancelled_caught:
                    self._look(late_seconds)

    def _step(self, nursery: trio.Nursery) -> float:
        """Carries out what the plan asks for until it asks for nothing; the seconds until time may change that."""
        while True:
            observed = Observed({root: link.seen() for root, link in self._links.items()}, self._crashes)
            now = trio.current_time()
            actions = plan(observed, self._desired, now, self._policy)
            if not actions:
                return next_look_seconds(observed, self._desired, now, self._policy)
            for action in actions:
                self._carry_out(action, nursery)

    def _look(self, late_seconds: float) -> None:
        for link in self._links.values():
            link.measure()
            if late_seconds > LATE_SECONDS:
                link.forgive(late_seconds)

    def note_gpu_memory(self, by_process: Mapping[int, int]) -> None:
        """A reading of the drivers: bytes by process id. A worker over its limit is ended at the next look."""
        for link in self._links.values():
            link.measure_gpu(by_process)

    def _carry_out(self, action: Action, nursery: trio.Nursery) -> None:
        root = action.root
        if isinstance(action, Start):
            self._start(root, action.request, nursery)
        elif isinstance(action, Drain):
            self._links[root].drain()
        elif isinstance(action, Stop):
            self._links[root].stop()
        elif isinstance(action, Kill):
            log.warning("the worker of %s is ended: %s", root, action.reason)
            self._links[root].kill(action.reason)
        elif isinstance(action, Quarantine):
            self._crashes[root] = replace(self._crashes[root], quarantined=True)
            log.error("model %s is not tried again: %s", root, self._crashes[root].reason)
        elif isinstance(action, Forget):
            del self._crashes[root]
            self._last_errors.pop(root, None)
        self._note_change()

    def _start(self, root: str, request: LoadRequest, nursery: trio.Nursery) -> None:
        try:
            kind = kind_of(request.engine, self._servers, self._settings.pythons)
            lease = self._files.lease(root, f"engine {request.engine}") if self._files is not None else None
        except OctonodeError as error:
            self._note_failure(root, request, error)
            return
        link: Link
        if kind is not None:
            link = ServerLink(root, request, kind, lease=lease, on_change=self._note_change_and_wake)
        else:
            try:
                link = self._start_worker(root, request, lease)
            except OctonodeError as error:
                if lease is not None:
                    lease.close()
                self._note_failure(root, request, error)
                return
        self._links[root] = link
        nursery.start_soon(self._attend, link, lease)

    def _start_worker(self, root: str, request: LoadRequest, lease: Lease | None) -> WorkerLink:
        python = python_for(request.engine, self._settings.pythons) or self._settings.python
        try:
            process = WorkerProcess(
                python=python,
                directory=self._directory / str(next(self._numbers)),
                threads=request.threads,
                devices=request.devices,
                name=root,
                inherited=[lease.descriptor] if lease is not None and lease.descriptor >= 0 else (),
            )
        except OSError as error:
            text = f"a worker cannot be started: {error}; check engines.python and the disk"
            raise OctonodeError(text, code="ENGINE_FAILED") from None
        if lease is not None:
            lease.hand_to(process.pid)
        return WorkerLink(root, request, process, sandbox=self._settings.sandbox, on_change=self._note_change_and_wake)

    async def _attend(self, link: Link, lease: Lease | None) -> None:
        try:
            error = await link.run()
        except Exception as bug:
            log.error("the engine of %s ended by a bug of ours", link.root, exc_info=bug)
            error = OctonodeError("this node met a bug in itself; see its log", code="ENGINE_FAILED")
        finally:
            del self._links[link.root]
            if lease is not None:
                lease.close()
        if not link.unloaded:
            self._note_failure(link.root, link.request, error, loaded=link.facts is not None)
        self._note_change_and_wake()

    def _note_failure(self, root: str, request: LoadRequest, error: OctonodeError, *, loaded: bool = False) -> None:
        before = self._crashes.get(root)
        count = 1 if before is None else before.count + 1
        at_load = 0 if loaded else 1 if before is None else before.at_load + 1
        self._crashes[root] = Crashes(count, trio.current_time(), request, error.message, at_load, lasting(error))
        self._last_errors[root] = error
        log.warning("model %s failed (%d in a row): %s", root, count, error.message)

    def _note_change(self) -> None:
        self._changes += 1
        self._changed.unpark_all()

    def _note_change_and_wake(self) -> None:
        self._note_change()
        self._wake.set()

    def set_desired(self, desired: Mapping[str, LoadRequest]) -> None:
        """The models to keep loaded, by root. Others drain and are unloaded; a changed request is loaded anew."""
        self._desired = dict(desired)
        self._note_change_and_wake()

    def engine(self, model_root: str) -> Engine | None:
        """The loaded model, or None while it is not ready or no longer desired."""
        link = self._links.get(model_root)
        if link is None or link.phase is not Phase.READY or link.request != self._desired.get(model_root):
            return None
        return link.engine

    async def wait_ready(self, model_root: str) -> Engine:
        """Waits through loading and back-off. Raises MODEL_NOT_FOUND when nobody wants this root, and the last failure
        (EngineCrashed, ENGINE_FAILED, CONFIG, ...) when it is quarantined."""
        await trio.lowlevel.checkpoint()
        while True:
            engine = self.engine(model_root)
            if engine is not None:
                return engine
            if model_root not in self._desired:
                raise NotFound(f"the model {model_root} is not one to be loaded here", code="MODEL_NOT_FOUND")
            crashes = self._crashes.get(model_root)
            if crashes is not None and crashes.quarantined and crashes.request == self._desired[model_root]:
                raise again(self._last_errors[model_root])
            await self._changed.park()

    def status(self) -> list[WorkerStatus]:
        """Every desired or still living worker, sorted by root."""
        return [self._status_of(root) for root in sorted({*self._desired, *self._links})]

    def _status_of(self, root: str) -> WorkerStatus:
        link, crashes = self._links.get(root), self._crashes.get(root)
        state, reason = self._state_of(link, crashes)
        request = link.request if link is not None else self._desired[root]
        last_error = self._last_errors.get(root)
        return WorkerStatus(
            model_root=root,
            engine=request.engine,
            state=state,
            reason=reason,
            pid=0 if link is None else link.pid,
            running=0 if link is None else link.running,
            crashes=0 if crashes is None else crashes.count,
            resident_bytes=0 if link is None else link.resident_bytes,
            gpu_bytes=0 if link is None else link.gpu_bytes,
            devices=request.devices,
            sandbox=() if link is None else link.sandbox,
            isolation="" if link is None else isolation_level(link.sandbox),
            facts=None if link is None else link.facts,
            stderr_tail="" if last_error is None else str(last_error.detail.get("stderr_tail", "")),
            server_load=link.load if isinstance(link, ServerLink) else None,
        )

    def _state_of(self, link: Link | None, crashes: Crashes | None) -> tuple[WorkerState, str]:
        before = f"; before that: {crashes.reason}" if crashes is not None else ""
        if link is not None:
            if link.phase is Phase.STARTING:
                return "starting", f"loading{before}"
            if link.phase is Phase.READY:
                return "ready", ""
            return "stopping", link.kill_reason or "it is being unloaded"
        if crashes is None:
            return "waiting", "not started yet"
        if crashes.quarantined:
            reference = f"cid:{crashes.request.model_root}"
            again_text = f"it is not tried again until the node restarts, or: octonode models serve {reference}"
            return "quarantined", f"{crashes.reason}; {again_text}"
        due = crashes.last_at + back_off_seconds(crashes.count, self._policy) - trio.current_time()
        return "crashed", f"{crashes.reason}; next try in {max(0.0, due):.1f} s"

    @property
    def changes(self) -> int:
        """Grows with each change of any worker's state."""
        return self._changes

    async def wait_gone(self, model_root: str) -> None:
        """Returns once no process of this model lives; it must not be desired any more."""
        await trio.lowlevel.checkpoint()
        while model_root in self._links and model_root not in self._desired:
            await self._changed.park()

    async def wait_changed(self, seen: int) -> int:
        """Returns `changes` as soon as it differs from `seen`, so that no change is missed between two calls."""
        await trio.lowlevel.checkpoint()
        while self._changes == seen:
            await self._changed.park()
        return self._changes

    def release(self, model_root: str) -> None:
        """Forgets the crashes of a model, so that a quarantined one is tried again."""
        self._crashes.pop(model_root, None)
        self._last_errors.pop(model_root, None)
        self._note_change_and_wake()
