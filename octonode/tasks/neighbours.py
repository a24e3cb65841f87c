"""What the residency needs of its neighbours: models from a source, engines, a gate. The node hands them over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol

from octonode.engines.contract import Engine, LoadRequest
from octonode.tasks.resident import ResolvedModel

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

    async def wait_gone(self, model_root: str) -> None: ...

    def release(self, model_root: str) -> None: ...

    @property
    def changes(self) -> int: ...

    async def wait_changed(self, seen: int) -> int: ...


LoadRequestFor = Callable[[ResolvedModel, Path, Path], LoadRequest]
"""Of the model, its file and its folder: `engines.select.load_request` with the settings filled in. Raises
OctonodeError when no engine here runs it."""


Gate = Callable[[ResolvedModel, Path], Awaitable[tuple[ResolvedModel, Path, Path]]]
"""Looks at a model before an engine does: the model with its true format, the file to open, the folder that it and the
files beside it lie in. Raises FORMAT_REFUSED."""


async def open_gate(model: ResolvedModel, path: Path) -> tuple[ResolvedModel, Path, Path]:
    """For engines that read nothing of the file."""
    return model, path, path
