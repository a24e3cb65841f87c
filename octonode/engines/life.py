"""What the daemon keeps of one life of an engine, be it a worker of ours or a server: phase, clocks and requests."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

import trio

from octonode.engines.calls import Call, LoadedEngine, again
from octonode.engines.contract import EngineFacts, Finished, LoadRequest
from octonode.engines.plan import Phase, SeenWorker
from octonode.errors import TABLE, EngineCrashed, OctonodeError

CALLS_BESIDE_SLOTS_MAX: Final = 64
"""Requests an engine takes beyond its slots; more are refused with OVERLOADED. Tasks admit fewer in the first place."""


class EngineLife:
    """The part that `plan` judges by and that requests go through, the same for all kinds of links."""

    def __init__(self, root: str, request: LoadRequest, on_change: Callable[[], None]) -> None:
        self.root = root
        self.request = request
        self.phase = Phase.STARTING
        self.phase_since = self.heard_at = self.progressed_at = trio.current_time()
        self.engine: LoadedEngine | None = None
        self.facts: EngineFacts | None = None
        self.sandbox: tuple[str, ...] = ()
        self.kill_reason = ""
        self.load_error: OctonodeError | None = None
        self.resident_bytes = 0
        self.gpu_bytes = 0
        """As the last reading of the drivers says; see `Supervisor.note_gpu_memory`."""
        self.unloaded = False
        """Its end was wished for, and is no crash."""
        self._on_change = on_change
        self._calls: dict[int, Call] = {}
        self._leaving: set[int] = set()
        """Ids of requests that were cancelled and have not ended in the engine yet, as far as is known."""
        self._ids = itertools.count(1)
        self._ended: OctonodeError | None = None

    @property
    def running(self) -> int:
        return len(self._calls) + len(self._leaving)

    def seen(self) -> SeenWorker:
        """What `plan` judges by."""
        return SeenWorker(
            request=self.request,
            phase=self.phase,
            phase_since=self.phase_since,
            heard_at=self.heard_at,
            progressed_at=self.progressed_at,
            running=self.running,
            resident_bytes=self.resident_bytes,
            gpu_bytes=self.gpu_bytes,
        )

    def forgive(self, late_seconds: float) -> None:
        """Time in which the daemon itself did not run is not held against the engine."""
        self.phase_since += late_seconds
        self.heard_at += late_seconds
        self.progressed_at += late_seconds

    def drain(self) -> None:
        self._enter(Phase.DRAINING)

    def _enter(self, phase: Phase) -> None:
        if phase is not self.phase:
            self.phase = phase
            self.phase_since = trio.current_time()
            self._on_change()

    def _check_open(self) -> None:
        """Raises OctonodeError when one more request cannot be taken."""
        if self._ended is not None:
            raise again(self._ended)
        if self.phase is not Phase.READY or self.facts is None:
            raise OctonodeError("the model is being unloaded", code="MODEL_UNAVAILABLE", retry_after_seconds=1.0)
        if self.running >= self.facts.parallel + CALLS_BESIDE_SLOTS_MAX:
            raise OctonodeError("the engine has too many requests", code="OVERLOADED", retry_after_seconds=1.0)

    def _keep_call(self, call: Call) -> None:
        if not self.running:
            self.progressed_at = trio.current_time()
        self._calls[call.id] = call

    def _finish_call(self, id_: int, end: Finished | OctonodeError) -> None:
        self.progressed_at = self.heard_at
        self._leaving.discard(id_)
        call = self._calls.pop(id_, None)
        if call is not None:
            call.put_end(end)
        if self.phase is Phase.DRAINING and not self.running:
            self._on_change()

    def _fail_calls(self, error: OctonodeError) -> None:
        self._ended = self._ended or error
        self._enter(Phase.STOPPING)
        for call in self._calls.values():
            call.put_end(error)
        self._calls.clear()
        self._leaving.clear()


def lasting(error: OctonodeError) -> bool:
    """True when loading again cannot help: the engine is missing, the format is refused."""
    return not isinstance(error, EngineCrashed) and not TABLE[error.code].retryable
