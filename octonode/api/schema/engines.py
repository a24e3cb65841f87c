"""Engines and what loaded models do on this machine, as the faces show them. Pure; protocols/http.md is the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from octonode.api.schema.calls import Call, one
from octonode.api.schema.plain import quoted


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """One engine that octonode knows how to run."""

    name: str
    installed: bool
    where: Literal["worker", "server"] = "worker"
    formats: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    skills: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    """GPUs that what is installed was built for: `cuda`, `hip`, `metal`; empty: the CPU alone."""
    install: str = ""
    """What to type here to have it."""
    tested: str = ""
    """How far it was tested, where that is less than on real hardware."""


@dataclass(frozen=True, slots=True)
class SkillSpeed:
    """Small requests a second: one after the other, and `together` at once."""

    per_second_alone: float = 0.0
    per_second_together: float = 0.0
    together: int = 1


@dataclass(frozen=True, slots=True)
class Speed:
    """What a loaded model was measured to do here; 0 is: not measured."""

    measured_at_ms: int = 0
    first_token_ms: float = 0.0
    short_tokens: int = 0
    first_token_long_ms: float = 0.0
    long_tokens: int = 0
    tokens_per_second: float = 0.0
    tokens_per_second_together: float = 0.0
    streams: int = 0
    skills: dict[str, SkillSpeed] = field(default_factory=dict)
    complete: bool = True
    """False where the time for measuring ended before the last figure."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One model that is loaded, or should be."""

    reference: str
    root: str
    engine: str
    state: str
    reason: str = ""
    """Why it is not ready."""
    build: str = ""
    backend: str = ""
    category: str = ""
    skills: tuple[str, ...] = ()
    quantization: str = ""
    context_tokens: int = 0
    parallel: int = 0
    batch_size: int = 0
    running: int = 0
    resident_bytes: int = 0
    sandbox: tuple[str, ...] = ()
    speed: Speed | None = None


@dataclass(frozen=True, slots=True)
class EngineList:
    engines: tuple[EngineFacts, ...] = ()
    loaded: tuple[LoadedModel, ...] = ()


MEASURING_SECONDS_MAX = 180.0
"""More than the node tries to measure a model that is in use; then it says OVERLOADED."""


def list_engines() -> Call[EngineList]:
    return Call("GET", "/api/v1/engines", one(EngineList))


def measure_model(reference: str) -> Call[LoadedModel]:
    """Measures a loaded model anew; answers once it is done, which takes some seconds of an idle engine."""
    path = f"/api/v1/engines/measure/{quoted(reference)}"
    return Call("POST", path, one(LoadedModel), silence_seconds=MEASURING_SECONDS_MAX)
