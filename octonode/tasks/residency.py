"""Keeps the desired models resident: resolve, fetch, load, serve; tried again for ever."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import trio

from octonode.engines.contract import Engine, LoadRequest

ModelState = Literal["resolving", "fetching", "loading", "serving", "failed"]


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """What a reference means."""

    root: str
    """Root CID."""
    format: str
    """`gguf`, `scripted`, ...: decides the engine."""
    manifest: str = ""
    """CID of the signed manifest, empty when there is none."""
    name: str = ""
    """`publisher-peer-id/name`, or empty."""
    version: str = ""
    size_bytes: int = 0
    context_tokens: int = 0
    """The model's own limit, 0 when unknown."""


FetchProgress = Callable[[int, int], None]
"""(bytes here, bytes in all)."""


class ModelSource(Protocol):
    """Where models come from: `models.library`, handed over by the node."""

    async def resolve(self, reference: str) -> ResolvedModel:
        """Raises OctonodeError: MODEL_NOT_FOUND, NOT_TRUSTED, UNREACHABLE, BAD_REQUEST for what is no reference."""
        ...

    def path(self, root: str) -> Path | None:
        """The file to load once it is complete and verified here; None before."""
        ...

    async def fetch(self, root: str, progress: FetchProgress) -> None:
        """Returns when `path` gives the file. Every block is verified before it is written. Raises OctonodeError."""
        ...


class Engines(Protocol):
    """The supervisor of the workers."""

    def set_desired(self, desired: Mapping[str, LoadRequest]) -> None: ...

    def engine(self, model_root: str) -> Engine | None: ...

    async def wait_ready(self, model_root: str) -> Engine: ...

    def release(self, model_root: str) -> None: ...


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One desired model."""

    reference: str
    state: ModelState
    model: ResolvedModel | None = None
    """None until it has been resolved."""
    done_bytes: int = 0
    total_bytes: int = 0
    """While fetching."""
    reason: str = ""
    """Why it failed, for people."""
    code: str = ""
    """Its code of `errors.TABLE`."""
    retry_in_seconds: float = 0.0
    failures: int = 0
    """In a row."""


LoadRequestFor = Callable[[ResolvedModel, Path], LoadRequest]
"""`engines.select.load_request` with the settings filled in. Raises OctonodeError when no engine here runs it."""


class Residency:
    """The desired models and how far each is. Constructor without I/O; `run` does the work."""

    def __init__(
        self,
        *,
        source: ModelSource,
        engines: Engines,
        load_request: LoadRequestFor,
        retry_seconds: float = 2.0,
        retry_seconds_max: float = 300.0,
    ) -> None:
        raise NotImplementedError

    @property
    def changes(self) -> int:
        """Grows with each change of any model's state."""
        raise NotImplementedError

    def model(self, root: str) -> ModelStatus | None:
        """The status of the desired model with this root; None when nobody desires it."""
        raise NotImplementedError

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        raise NotImplementedError

    def add(self, reference: str) -> None:
        """Keep this model resident from now on. The same reference again tries at once what waits for a retry."""
        raise NotImplementedError

    def remove(self, root: str) -> bool:
        """Unload it and want it no more; `root` may also be the reference. False when it was not desired."""
        raise NotImplementedError

    def status(self) -> Sequence[ModelStatus]:
        raise NotImplementedError

    def engine(self, root: str) -> Engine | None:
        """The loaded engine of a desired model, None while it is not ready."""
        raise NotImplementedError

    async def wait_changed(self, seen: int) -> int:
        raise NotImplementedError
