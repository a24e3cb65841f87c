"""A stand-in of ours for what models need, behind the HTTP faces; `testing.faces` puts it on the stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from octonode.api.schema.fitting import FitFacts, FitMatrix, FitRow, InspectionFacts, MachineFacts


def _row(machine: str, of_bytes: int) -> FitRow:
    words = f"needs 5.1 GB of {of_bytes // 10**9} GB at 8k context"
    return FitRow(machine, of_bytes >= 5_100_000_000, words, 8192, "vram", 5_100_000_000, of_bytes)


@dataclass
class PlayedFitting:
    """Gives what it is told to give, and keeps what it was asked."""

    matrix: FitMatrix = field(
        default_factory=lambda: FitMatrix(
            MachineFacts("this machine", "consumer", vram_bytes=8 * 10**9),
            (FitFacts("p/m", "r", "gguf", rows=(_row("this machine", 8 * 10**9), _row("consumer", 8 * 10**9))),),
            ("p/m",),
        )
    )
    inspection: InspectionFacts = field(default_factory=lambda: InspectionFacts("p/m", "r", "gguf"))
    asked: list[tuple[str, int, int]] = field(default_factory=list)

    async def fit(self, reference: str, *, context_tokens: int, streams: int) -> FitMatrix:
        self.asked.append((reference, context_tokens, streams))
        return self.matrix

    async def inspect(self, reference: str) -> InspectionFacts:
        self.asked.append((reference, 0, 0))
        return self.inspection
