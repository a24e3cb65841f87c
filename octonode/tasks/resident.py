"""What the rest of the tasks sees of the models kept here; `residency` is the service behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from octonode.engines.contract import Engine, EngineFacts

ModelState = Literal["resolving", "fetching", "loading", "serving", "standby", "failed"]
"""`standby`: whole here, and loaded once it is asked for or there is room."""


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
    category: str = "llm"
    """One of `models.manifest.CATEGORIES`."""
    architecture: str = ""


@dataclass(frozen=True, slots=True)
class LoadedBefore:
    """What a model was when it was loaded last in this run."""

    facts: EngineFacts
    seconds: float
    """That the loading took."""


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
    """From now."""
    failures: int = 0
    """In a row."""
    before: LoadedBefore | None = None
    """None until it has been loaded once."""


class Resident(Protocol):
    """Our models and their engines: `tasks.residency.Residency`."""

    def engine(self, root: str) -> Engine | None: ...

    def model(self, root: str) -> ModelStatus | None: ...

    def ask(self, root: str) -> None: ...

    def used(self, root: str) -> None: ...

    @property
    def changes(self) -> int: ...

    async def wait_changed(self, seen: int) -> int: ...
