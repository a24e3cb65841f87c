"""The engines of this machine and the models loaded in them. `api.ports.Engines`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Final

import trio

from octonode.api.schema.engines import EngineFacts, EngineList, LoadedModel, SkillSpeed, Speed
from octonode.config import EnginesConfig
from octonode.engines.installing import BY_ENGINE, advise, gpu_kinds
from octonode.engines.measuring import Figures
from octonode.engines.select import ENGINES, EngineRow, installed, python_for
from octonode.engines.supervisor import Supervisor, WorkerStatus
from octonode.errors import NotFound, OctonodeError
from octonode.hardware.facts import Hardware
from octonode.node.measuring import Measurer
from octonode.node.resolving import Resolver
from octonode.tasks.residency import Residency

MEASURE_WAIT_SECONDS: Final = 120.0
"""For an engine to become idle, and for the measuring itself."""


class Engines:
    """Reads of every part; `measure` loads the engine for some seconds."""

    def __init__(
        self,
        *,
        settings: EnginesConfig,
        supervisor: Supervisor,
        residency: Residency,
        resolver: Resolver,
        measurer: Measurer,
        hardware: Callable[[], Hardware | None],
    ) -> None:
        self._settings = settings
        self._supervisor = supervisor
        self._residency = residency
        self._resolver = resolver
        self._measurer = measurer
        self._hardware = hardware

    async def list(self) -> EngineList:
        """All engines that octonode knows, installed or not, and every model that is loaded or should be."""
        hardware = self._hardware()
        rows = await trio.to_thread.run_sync(lambda: tuple(self._row(row, hardware) for row in ENGINES))
        return EngineList(rows, tuple(self._loaded(status) for status in self._supervisor.status()))

    def _row(self, row: EngineRow, hardware: Hardware | None) -> EngineFacts:
        elsewhere = bool(python_for(row.name, self._settings.pythons))
        here = installed(row, self._settings.pythons)
        no_gpu = hardware is not None and not hardware.gpus
        kinds = () if not here or (elsewhere and no_gpu) else gpu_kinds(row.name, elsewhere=elsewhere)
        return EngineFacts(
            row.name,
            here,
            row.where,
            row.formats,
            row.categories,
            row.skills,
            kinds,
            "" if here and row.formats else _command(row, hardware),
            row.tested,
        )

    def _loaded(self, status: WorkerStatus) -> LoadedModel:
        facts, model = status.facts, self._residency.model(status.model_root)
        figures = self._measurer.of(status.model_root)
        resolved = model.model if model else None
        loaded = LoadedModel(
            reference=(resolved.name if resolved and resolved.name else f"cid:{status.model_root}"),
            root=status.model_root,
            engine=status.engine,
            state=status.state,
            reason=status.reason,
            running=status.running,
            resident_bytes=status.resident_bytes,
            sandbox=status.sandbox,
            speed=_speed(figures) if figures else None,
        )
        if facts is None:
            return loaded
        return replace(loaded, **{name: getattr(facts, name) for name in _SHOWN})

    async def measure(self, reference: str) -> LoadedModel:
        """The loaded model with new figures. Raises MODEL_NOT_FOUND for one that is not loaded, OVERLOADED for one
        that is used all the time, and what the engine raises."""
        root, _ = await self._resolver.to_take(reference)
        with trio.move_on_after(MEASURE_WAIT_SECONDS) as patience:
            await self._measurer.measure(root.text)
        if patience.cancelled_caught:
            raise OctonodeError(
                f"{reference} was used all the time and could not be measured; try when it is idle",
                code="OVERLOADED",
                retry_after_seconds=60.0,
            )
        for status in self._supervisor.status():
            if status.model_root == root.text:
                return self._loaded(status)
        raise NotFound(f"{reference} is loaded no more", code="MODEL_NOT_FOUND")


_SHOWN: Final = (
    *("build", "backend", "category", "skills", "quantization", "context_tokens", "parallel", "batch_size"),
)
"""Of an engine's facts."""


def _speed(figures: Figures) -> Speed:
    value = asdict(figures)
    skills = {name: SkillSpeed(**asdict(each)) for name, each in figures.skills.items()}
    return Speed(**{name: value[name] for name in Speed.__dataclass_fields__ if name != "skills"}, skills=skills)


def _command(row: EngineRow, hardware: Hardware | None) -> str:
    """What to type for it on this machine, or why it never runs here; the plain extra where nothing better is known."""
    package = BY_ENGINE.get(row.name)
    if package is not None and hardware is not None:
        advice = next(each for each in advise(hardware) if each.package is package)
        return f"cannot run here: {advice.lacks}" if advice.way is None else advice.way.command
    return f"pip install '{row.extra}'" if row.extra.startswith("octonode") else row.extra
