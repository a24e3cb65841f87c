"""A stand-in of ours for the pins of a node behind the HTTP faces: a played part, see `testing.faces`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import trio

from octonode.api.ports import Report
from octonode.api.schema import ModelProgress
from octonode.api.schema.facts import StorageFacts
from octonode.api.schema.pins import PinList, PinModel, PinRow, UnpinModel
from octonode.errors import OctonodeError, Refused

US = "12D3KooWPlayed"
STRICT = "12D3KooWStrict"
"""A node that keeps nothing for us."""


@dataclass
class PlayedPins:
    kept: dict[str, PinRow] = field(default_factory=dict)
    room: StorageFacts = field(default_factory=lambda: StorageFacts(100, 0, 100))

    async def list(self, on: str) -> PinList:
        return PinList(_node(on), tuple(self.kept.values()), replace(self.room, pins=len(self.kept)))

    async def pin(self, request: PinModel, report: Report) -> PinList:
        if request.days < 0:
            raise OctonodeError("days is from 1, or 0: for good", code="BAD_REQUEST")
        node = _node(request.on)
        report(ModelProgress("pin", 1, 2))
        for _ in range(10):  # turns in which the face shows it
            await trio.lowlevel.checkpoint()
        row = PinRow(request.reference, request.reference, US, request.days, 0, 2, 2, "kept")
        self.kept[request.reference] = row
        return PinList(node, (row,), self.room, "ab" * 16 if request.on else "")

    async def unpin(self, request: UnpinModel) -> PinList:
        self.kept.pop(request.reference, None)
        return PinList(_node(request.on), (), self.room)


def _node(on: str) -> str:
    if on == STRICT:
        raise Refused("this node keeps models for listed peers; ask its owner", code="FORBIDDEN")
    return on or US
