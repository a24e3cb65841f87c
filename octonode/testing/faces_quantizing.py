"""A stand-in of ours for making models smaller behind the HTTP faces; `testing.faces` puts it on the stage."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from octonode.api.ports import Report
from octonode.api.schema import ModelProgress
from octonode.api.schema.quantizing import QuantizeChoices, QuantizeModel, QuantizeOutcome
from octonode.errors import NotFound, OctonodeError


@dataclass
class PlayedQuantizing:
    """Tells one step and gives `outcome`, or raises `fault`; without either it works until it is cancelled."""

    known: QuantizeChoices | None = None
    outcome: QuantizeOutcome | None = None
    fault: OctonodeError | None = None
    asked: list[QuantizeModel] = field(default_factory=list)
    cancelled: trio.Event = field(default_factory=trio.Event)

    async def choices(self, reference: str) -> QuantizeChoices:
        if self.known is None:
            raise NotFound(f"{reference} is not in the store", code="MODEL_NOT_FOUND")
        return self.known

    async def quantize(self, asked: QuantizeModel, report: Report) -> QuantizeOutcome:
        self.asked.append(asked)
        report(ModelProgress("weights", 1, 2))
        if self.fault is not None:
            raise self.fault
        if self.outcome is not None:
            return self.outcome
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.set()
