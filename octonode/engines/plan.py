"""What to do next with the workers, as a pure function of what is seen, what is wanted and the time.

`plan` looks at one model root after the other and gives at most one action for each: the first that any step of an
ordered chain asks for. The supervisor carries the actions out, looks again, and plans again; nothing is remembered in
between but what `Observed` shows. So a root never has two workers, and a quarantined one never starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from octonode.engines.contract import LoadRequest

LOOK_SECONDS = 1.0
"""How often living workers are looked at when nothing happens."""


class Phase(Enum):
    """Where a worker process is in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    """No longer wanted: takes nothing new, ends what it has."""
    STOPPING = "stopping"
    """Told to end, or killed; not reaped yet. Its link sees to it that this does not last."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits, all in seconds and bytes; the names in the config are those of `EnginesConfig`."""

    load_timeout_seconds: float = 300.0
    no_progress_timeout_seconds: float = 60.0
    silence_timeout_seconds: float = 20.0
    """Without any frame, heartbeats included, from a loaded worker."""
    drain_timeout_seconds: float = 30.0
    memory_bytes_max: int = 0
    """Resident memory of one worker; 0: no limit."""
    gpu_memory_bytes_max: int = 0
    """GPU memory of one worker, over all GPUs, where the driver tells it; 0: no limit."""
    back_off_first_seconds: float = 0.5
    back_off_max_seconds: float = 60.0
    crashes_before_quarantine: int = 5
    loads_before_quarantine: int = 3
    """Deaths in a row before it was loaded: what kills a load is rarely chance."""
    stable_seconds: float = 300.0
    """A worker that has been ready this long has its crashes forgiven."""


@dataclass(frozen=True, slots=True)
class SeenWorker:
    """A living worker process."""

    request: LoadRequest
    phase: Phase
    phase_since: float
    heard_at: float = 0.0
    """The last frame of any kind."""
    progressed_at: float = 0.0
    """The last step of any request (prefill counts), or when the first of the running ones came."""
    running: int = 0
    resident_bytes: int = 0
    gpu_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Crashes:
    """Failures of one root since it was last stable."""

    count: int
    last_at: float
    request: LoadRequest
    reason: str
    at_load: int = 0
    """The last ones in a row that came before it was loaded."""
    lasting: bool = False
    """Trying again cannot help: the engine is not installed, the format is refused."""
    quarantined: bool = False


@dataclass(frozen=True, slots=True)
class Observed:
    workers: Mapping[str, SeenWorker] = field(default_factory=dict)
    crashes: Mapping[str, Crashes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Start:
    root: str
    request: LoadRequest


@dataclass(frozen=True, slots=True)
class Drain:
    root: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Close the line; the worker ends by itself."""

    root: str


@dataclass(frozen=True, slots=True)
class Kill:
    root: str
    reason: str


@dataclass(frozen=True, slots=True)
class Quarantine:
    root: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop the crashes of a root: it is stable, unwanted or wanted differently."""

    root: str


Action = Start | Drain | Stop | Kill | Quarantine | Forget


@dataclass(frozen=True, slots=True)
class _View:
    root: str
    worker: SeenWorker | None
    crashes: Crashes | None
    wanted: LoadRequest | None
    now: float
    policy: Policy


def plan(observed: Observed, desired: Mapping[str, LoadRequest], now: float, policy: Policy) -> tuple[Action, ...]:
    """The next actions, at most one a root, in order of the roots. Empty: all is as it should be."""
    actions: list[Action] = []
    for root in sorted({*observed.workers, *observed.crashes, *desired}):
        view = _View(root, observed.workers.get(root), observed.crashes.get(root), desired.get(root), now, policy)
        for step in _CHAIN:
            action = step(view)
            if action is not None:
                actions.append(action)
                break
    return tuple(actions)


def back_off_seconds(count: int, policy: Policy) -> float:
    """The wait after the `count`-th crash in a row: doubles each time, up to the maximum."""
    assert count >= 1
    return min(policy.back_off_max_seconds, policy.back_off_first_seconds * 2.0 ** min(count - 1, 32))


def next_look_seconds(observed: Observed, desired: Mapping[str, LoadRequest], now: float, policy: Policy) -> float:
    """How long nothing can become due by time alone; infinity when only an event can change anything."""
    if observed.workers:
        return LOOK_SECONDS
    waits = [
        crashes.last_at + back_off_seconds(crashes.count, policy) - now
        for root, crashes in observed.crashes.items()
        if root in desired and not crashes.quarantined
    ]
    return max(0.0, min(waits, default=math.inf))


def _kill_slow_load(view: _View) -> Action | None:
    worker, limit = view.worker, view.policy.load_timeout_seconds
    if worker is not None and worker.phase is Phase.STARTING and view.now - worker.phase_since > limit:
        return Kill(view.root, f"loading took longer than {limit:g} s (engines.load_timeout_seconds)")
    return None


def _kill_silent(view: _View) -> Action | None:
    worker, limit = view.worker, view.policy.silence_timeout_seconds
    if worker is not None and worker.phase in _LOADED and view.now - worker.heard_at > limit:
        return Kill(view.root, f"it hung: not a frame, not even a heartbeat, for {limit:g} s")
    return None


def _kill_stuck(view: _View) -> Action | None:
    worker, limit = view.worker, view.policy.no_progress_timeout_seconds
    busy = worker is not None and worker.phase in _LOADED and worker.running > 0
    if worker is not None and busy and view.now - worker.progressed_at > limit:
        return Kill(view.root, f"it hung: no progress for {limit:g} s (engines.no_progress_timeout_seconds)")
    return None


def _kill_oversized(view: _View) -> Action | None:
    worker, limit = view.worker, view.policy.memory_bytes_max
    if worker is not None and limit and worker.phase is not Phase.STOPPING and worker.resident_bytes > limit:
        held = f"{worker.resident_bytes >> 20} MiB resident, over the limit of {limit >> 20} MiB"
        return Kill(view.root, f"it held {held} (engines.memory_bytes_max)")
    limit = view.policy.gpu_memory_bytes_max
    if worker is not None and limit and worker.phase is not Phase.STOPPING and worker.gpu_bytes > limit:
        held = f"{worker.gpu_bytes >> 20} MiB of GPU memory, over the limit of {limit >> 20} MiB"
        return Kill(view.root, f"it held {held} (engines.gpu_memory_bytes_max)")
    return None


def _unload(view: _View) -> Action | None:
    worker = view.worker
    if worker is None or view.wanted == worker.request or worker.phase is Phase.STOPPING:
        return None
    if worker.phase is Phase.READY and worker.running:
        return Drain(view.root)
    if worker.phase is Phase.DRAINING and worker.running:
        overdue = view.now - worker.phase_since > view.policy.drain_timeout_seconds
        return Stop(view.root) if overdue else None
    return Stop(view.root)


def _finish_drain(view: _View) -> Action | None:
    """A drain once begun is ended, also when the model is wanted again meanwhile: the next worker starts clean."""
    worker = view.worker
    if worker is not None and worker.phase is Phase.DRAINING and not worker.running:
        return Stop(view.root)
    return None


def _forget(view: _View) -> Action | None:
    crashes, worker = view.crashes, view.worker
    if crashes is None:
        return None
    if view.wanted != crashes.request:
        return Forget(view.root)
    ready = worker is not None and worker.phase is Phase.READY
    if worker is not None and ready and view.now - worker.phase_since > view.policy.stable_seconds:
        return Forget(view.root)
    return None


def _quarantine(view: _View) -> Action | None:
    crashes = view.crashes
    if crashes is None or crashes.quarantined or view.worker is not None:
        return None
    policy = view.policy
    too_often = crashes.count >= policy.crashes_before_quarantine or crashes.at_load >= policy.loads_before_quarantine
    return Quarantine(view.root) if crashes.lasting or too_often else None


def _start(view: _View) -> Action | None:
    if view.wanted is None or view.worker is not None:
        return None
    crashes = view.crashes
    if crashes is not None:
        due = crashes.last_at + back_off_seconds(crashes.count, view.policy)
        if crashes.quarantined or view.now < due:
            return None
    return Start(view.root, view.wanted)


_LOADED = (Phase.READY, Phase.DRAINING)

_CHAIN: tuple[Callable[[_View], Action | None], ...] = (
    _kill_slow_load,
    _kill_silent,
    _kill_stuck,
    _kill_oversized,
    _unload,
    _finish_drain,
    _forget,
    _quarantine,
    _start,
)
