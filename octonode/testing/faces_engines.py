"""A stand-in of ours for the engines of a machine, behind the HTTP faces; `testing.faces` puts it on the stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from octonode.api.schema.engines import EngineFacts, EngineList, LoadedModel, SkillSpeed, Speed
from octonode.errors import NotFound


def _loaded() -> LoadedModel:
    speed = Speed(1, 40.0, 20, 900.0, 400, 75.0, 120.0, 4, {"embed": SkillSpeed(140.0, 180.0, 16)})
    return LoadedModel(
        "p/m", "bafy", "llama", "ready", "", "1", "cpu", "llm", ("chat",), "Q4_1", 2048, 4, 1, speed=speed
    )


@dataclass
class PlayedEngines:
    """Gives what it is told to give, and keeps what it was asked to measure."""

    found: EngineList = field(
        default_factory=lambda: EngineList(
            (EngineFacts("llama", True, "worker", ("gguf",), ("llm",), ("chat",)),), (_loaded(),)
        )
    )
    measured: list[str] = field(default_factory=list)

    async def list(self) -> EngineList:
        return self.found

    async def measure(self, reference: str) -> LoadedModel:
        self.measured.append(reference)
        for each in self.found.loaded:
            if each.reference == reference:
                return each
        raise NotFound(f"{reference} is not loaded here", code="MODEL_NOT_FOUND")
