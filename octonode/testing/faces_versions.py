"""The versions of models, played: one name with two versions, for the faces' tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from octonode.api.ports import Report
from octonode.api.schema import ModelFacts, ModelOutcome, ModelProgress, RollbackModel, UpdateModel
from octonode.api.schema.versions import (
    DeprecateModel,
    ImportedTrust,
    ImportTrust,
    NameFacts,
    OutdatedModel,
    VersionFacts,
)
from octonode.errors import NotFound, Refused


@dataclass
class PlayedVersions:
    """`api.ports.Versions`: what is asked is done at once, and kept to be looked at."""

    name: NameFacts = field(
        default_factory=lambda: NameFacts("somebody", "words", (VersionFacts("1.1.0"), VersionFacts("1.0.0")), "1.1.0")
    )
    behind: list[OutdatedModel] = field(default_factory=list)
    asked: list[object] = field(default_factory=list)

    async def outdated(self) -> Sequence[OutdatedModel]:
        return self.behind

    async def versions(self, reference: str) -> NameFacts:
        if not reference.endswith(self.name.name):
            raise NotFound(f"nobody reachable knows {reference}", code="MODEL_NOT_FOUND")
        return self.name

    async def update(self, request: UpdateModel, report: Report) -> ModelOutcome:
        self.asked.append(request)
        report(ModelProgress("find"))
        return ModelOutcome(ModelFacts(request.reference, "bafy", version="1.1.0"))

    async def roll_back(self, request: RollbackModel, report: Report) -> ModelOutcome:
        self.asked.append(request)
        report(ModelProgress("load"))
        return ModelOutcome(ModelFacts(request.reference, "bafy", version="1.0.0"), note="1.1.0 is passed over")

    async def deprecate(self, asked: DeprecateModel) -> NameFacts:
        self.asked.append(asked)
        if asked.reference.startswith("somebody-else/"):
            raise Refused("only its publisher can deprecate it", code="FORBIDDEN")
        return self.name

    async def import_trust(self, asked: ImportTrust) -> ImportedTrust:
        self.asked.append(asked)
        return ImportedTrust(len(asked.publishers), 0)
