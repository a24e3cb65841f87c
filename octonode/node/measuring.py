"""Measures each model once it is loaded, keeps the figures on disk, and gives way to whoever asks for the model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final, Protocol

import trio

from octonode.engines.contract import Engine
from octonode.engines.measuring import Figures, SkillFigures, fingerprint_of, measure
from octonode.errors import NotFound, OctonodeError, one_error
from octonode.network.clock import wall_clock_ms
from octonode.tasks.residency import Residency
from octonode.tasks.slots import EngineSlots, Measured

log = logging.getLogger(__name__)

KEY: Final = "figures/"
"""Of a value in the node's state, before the model's root."""
QUIET_SECONDS: Final = 0.2
"""Between two looks whether anybody uses an engine that is to be measured."""
GIVE_WAY_SECONDS: Final = 0.01
"""Between two looks whether somebody wants the engine that is being measured."""
ASKED_SECONDS_MAX: Final = 10.0
"""Of a measuring that somebody asks for where the settings have none made."""


class Values(Protocol):
    """`state.State`."""

    async def value(self, key: str) -> bytes | None: ...

    async def set_value(self, key: str, value: bytes) -> None: ...


class Measurer:
    """Constructor without I/O; `run` does the work."""

    def __init__(
        self,
        *,
        residency: Residency,
        slots: EngineSlots,
        values: Values,
        seconds_max: float,
        changed: Callable[[], None],
    ) -> None:
        """`seconds_max` 0: nothing is measured by itself. `changed`: what we announce is different now."""
        self._residency = residency
        self._slots = slots
        self._values = values
        self._seconds_max = seconds_max
        self._changed = changed
        self._figures: dict[str, Figures] = {}
        self._one = trio.Lock()
        """Two at once would measure each other."""

    def of(self, root: str) -> Figures | None:
        """Of the model as it is loaded now; None before they are known."""
        engine = self._residency.engine(root)
        figures = self._figures.get(root)
        if engine is None or figures is None or figures.fingerprint != fingerprint_of(engine):
            return None
        return figures

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            seen = self._residency.changes
            for status in self._residency.status():
                root = status.model.root if status.model else ""
                engine = self._residency.engine(root)
                if engine is not None and self.of(root) is None and self._seconds_max > 0:
                    await self._bring(root, engine)
            self._figures = {root: figures for root, figures in self._figures.items() if self._residency.model(root)}
            await self._residency.wait_changed(seen)

    async def _bring(self, root: str, engine: Engine) -> None:
        """The figures that were kept, or new ones; a model that cannot be measured is served all the same."""
        try:
            kept = await self._kept(root)
            if kept is not None and kept.fingerprint == fingerprint_of(engine):
                self._take(root, kept)
            else:
                await self.measure(root)
        except OctonodeError as error:
            log.warning("%s was not measured: %s", root, error.message)
            self._figures[root] = Figures(fingerprint_of(engine), complete=False)

    async def measure(self, root: str) -> Figures:
        """Measures the loaded model as soon as nobody uses it. Raises MODEL_NOT_FOUND, and what the engine does."""
        async with self._one:
            while True:
                engine = self._residency.engine(root)
                if engine is None:
                    raise NotFound(f"{root} is not loaded here; see: octonode models ls", code="MODEL_NOT_FOUND")
                await self._until_quiet(root, engine)
                figures = await self._measure_alone(root, engine)
                if figures is not None:
                    break
        await self._values.set_value(KEY + root, json.dumps(asdict(figures)).encode())
        log.info("%s was measured: %s", root, figures)
        self._take(root, figures, anew=True)
        return figures

    def _take(self, root: str, figures: Figures, *, anew: bool = False) -> None:
        self._figures[root] = figures
        if figures.tokens_per_second:
            measured = Measured(figures.tokens_per_second, figures.first_token_ms)
            self._slots.measured.begin(root, measured, anew=anew)
        self._changed()

    async def _until_quiet(self, root: str, engine: Engine) -> None:
        while engine.running or self._slots.taken(root):
            await trio.sleep(QUIET_SECONDS)

    async def _measure_alone(self, root: str, engine: Engine) -> Figures | None:
        """None when somebody came and it gave way."""
        figures: Figures | None = None
        with one_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._give_way, root, nursery.cancel_scope)
                seconds_max = self._seconds_max or ASKED_SECONDS_MAX
                figures = await measure(engine, seconds_max=seconds_max, now_ms=wall_clock_ms())
                nursery.cancel_scope.cancel()
        return figures

    async def _give_way(self, root: str, scope: trio.CancelScope) -> None:
        while not self._slots.taken(root):
            await trio.sleep(GIVE_WAY_SECONDS)
        scope.cancel()

    async def _kept(self, root: str) -> Figures | None:
        data = await self._values.value(KEY + root)
        try:
            return figures_from(json.loads(data)) if data else None
        except (ValueError, TypeError, KeyError):
            return None  # written by another version: measured anew


def figures_from(value: Mapping[str, Any]) -> Figures:
    """Raises TypeError, KeyError for what `Figures` are not."""
    skills = {str(name): SkillFigures(**each) for name, each in value["skills"].items()}
    return Figures(**{**value, "skills": skills})
