"""Stand-ins of ours for uploads and bridges behind the HTTP faces; `testing.faces` puts them on the stage."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from octonode.api.ports import Report
from octonode.api.schema import ModelOutcome
from octonode.api.schema.uploads import CreateUpload, ExportToKubo, FinishUpload, UploadFacts, UploadFileFacts
from octonode.errors import NotFound


@dataclass
class PlayedUploads:
    """Keeps everything in memory; `outcome` is what finishing gives."""

    outcome: ModelOutcome | None = None
    known: dict[str, UploadFacts] = field(default_factory=dict)
    content: dict[str, bytearray] = field(default_factory=dict)

    async def create(self, request: CreateUpload) -> UploadFacts:
        number = f"{len(self.known):032x}"
        files = tuple(UploadFileFacts(file.path, file.size_bytes) for file in request.files)
        self.known[number] = UploadFacts(number, files, request.name, request.version)
        self.content |= {f"{number}/{file.path}": bytearray() for file in request.files}
        return self.known[number]

    async def list(self) -> Sequence[UploadFacts]:
        return list(self.known.values())

    async def get(self, upload: str) -> UploadFacts:
        if upload not in self.known:
            raise NotFound(f"there is no upload {upload}")
        return self.known[upload]

    async def write(
        self, upload: str, path: str, pieces: AsyncGenerator[bytes, None], *, first_byte: int, total_bytes: int | None
    ) -> UploadFileFacts:
        content = self.content[f"{upload}/{path}"]
        async for piece in pieces:
            content += piece
        return UploadFileFacts(path, total_bytes or len(content), len(content))

    async def finish(self, upload: str, request: FinishUpload, report: Report) -> ModelOutcome:
        assert self.outcome is not None
        return self.outcome

    async def abort(self, upload: str) -> UploadFacts:
        return self.known.pop(upload)


@dataclass
class PlayedBridges:
    outcome: ModelOutcome | None = None
    asked: list[ExportToKubo] = field(default_factory=list)

    async def export_to_kubo(self, asked: ExportToKubo, report: Report) -> ModelOutcome:
        self.asked.append(asked)
        assert self.outcome is not None
        return self.outcome
