"""What models need and whether machines have it, and what an inspection found. Pure; protocols/http.md is the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlencode

from octonode.api.schema.calls import Call, one

CONTEXT_TOKENS_MAX = 2**24
STREAMS_MAX = 1024


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """The machine that was asked about. Bytes; 0 where there is none."""

    name: str
    tier: str = ""
    vram_bytes: int = 0
    vram_free_bytes: int = 0
    memory_bytes: int = 0
    memory_free_bytes: int = 0
    disk_free_bytes: int = 0
    compute_capability: str = ""
    runs: tuple[str, ...] = ()
    """Formats that an engine here runs."""


@dataclass(frozen=True, slots=True)
class FitRow:
    """One model on one machine, or on the least machine of a tier."""

    machine: str
    fits: bool
    words: str
    """`needs 5.1 GB of 8 GB at 8k context`, what blocks it, and what would fit."""
    context_tokens: int
    place: Literal["vram", "ram"]
    need_bytes: int
    of_bytes: int
    weights_bytes: int = 0
    cache_bytes: int = 0
    overhead_bytes: int = 0
    largest_context_tokens: int = 0
    """That would fit; 0: none, or the model's limit is not known and anything fits."""
    blocks: tuple[str, ...] = ()
    """vram, ram, free, engine, compute_capability, disk, context, unknown."""
    smaller: tuple[str, ...] = ()
    """Quantizations of this model that would fit, the best first."""


@dataclass(frozen=True, slots=True)
class FitFacts:
    """One model on all machines."""

    reference: str
    root: str = ""
    format: str = ""
    quantization: str = ""
    parameters: int = 0
    size_bytes: int = 0
    context_tokens: int = 0
    exact: bool = True
    """False: the headers say too little, and the cache is an estimate."""
    refused: str = ""
    """Why it is not loaded at all; then there are no rows."""
    rows: tuple[FitRow, ...] = ()


@dataclass(frozen=True, slots=True)
class FitMatrix:
    """`GET /api/v1/models/fit`: the first row of each model is this machine, then each tier."""

    machine: MachineFacts
    models: tuple[FitFacts, ...] = ()
    fitting: tuple[str, ...] = ()
    """References of the models known here that run on this machine as it is now."""


@dataclass(frozen=True, slots=True)
class InspectionFacts:
    """`GET /api/v1/models/inspect`: what the headers of a model held here say."""

    reference: str
    root: str
    format: str
    category: str = ""
    architecture: str = ""
    quantization: str = ""
    parameters: int = 0
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    embedding: int = 0
    vocab: int = 0
    experts: int = 0
    context_tokens: int = 0
    weights_bytes: int = 0
    opens: str = ""
    """Path in the model that an engine opens; empty: the directory."""
    made_with: str = ""
    compute_capability: str = ""
    chat_template: bool = False
    notes: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    """Path in the model -> format."""


def fit(reference: str = "", context_tokens: int = 0, streams: int = 1) -> Call[FitMatrix]:
    asked = {"reference": reference, "context": context_tokens or "", "streams": streams if streams != 1 else ""}
    query = urlencode({name: value for name, value in asked.items() if value}, errors="replace")
    return Call("GET", f"/api/v1/models/fit{'?' if query else ''}{query}", one(FitMatrix))


def inspect(reference: str) -> Call[InspectionFacts]:
    query = urlencode({"reference": reference}, errors="replace")
    return Call("GET", f"/api/v1/models/inspect?{query}", one(InspectionFacts))
