"""Making a smaller model of a model: what is asked, what can be made, and what came of it. Pure; protocols/http.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

from octonode.api.schema.calls import Call, Progressing, one
from octonode.api.schema.facts import ModelFacts
from octonode.api.schema.plain import to_json
from octonode.models.quantized import Quantized

QUANTIZE_PATH: Final = "/api/v1/models/quantize"


@dataclass(frozen=True, slots=True)
class QuantizeModel:
    """`POST /api/v1/models/quantize`: a smaller model of one that is wholly here, as a model of this node's own."""

    reference: str
    to: str
    """`Q4_K_M`, `INT8`, ...: a kind of `QuantizeChoices`."""
    name: str = ""
    """Empty: the parent's name with the kind behind it."""
    version: str = ""
    """Empty: the parent's."""
    publish: bool = False
    """Provide it to the network as well; else it is private."""
    measure: bool = True
    """Compare it with its parent, which takes seconds to minutes."""


@dataclass(frozen=True, slots=True)
class QuantizeChoice:
    kind: str
    words: str
    problem: str = ""
    """Why it cannot be made here and what to do; empty: it can."""
    expected_bytes: int = 0
    """The most that it is expected to take on disk."""


@dataclass(frozen=True, slots=True)
class QuantizeChoices:
    """`GET /api/v1/models/quantize?reference=REF`: what can be made of a model here."""

    reference: str
    root: str
    format: str
    quantization: str = ""
    size_bytes: int = 0
    choices: tuple[QuantizeChoice, ...] = ()
    """Empty for formats that nothing is made of."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class QuantizeOutcome:
    """What was made. It is held and signed, and serves nobody until it is asked to."""

    model: ModelFacts
    made: Quantized
    seconds: float = 0.0
    records: int = 0
    """Peers that took a provider record."""
    note: str = ""


class QuantizeJob(Progressing[QuantizeOutcome]):
    """A model being made smaller."""

    kind = QuantizeOutcome
    lost = "the node was lost while it worked; nothing was kept: once it runs again, ask again"


def quantize(asked: QuantizeModel) -> Call[QuantizeJob]:
    return Call("POST", QUANTIZE_PATH, lambda _: QuantizeJob(), to_json(asked))


def choices(reference: str) -> Call[QuantizeChoices]:
    return Call("GET", f"{QUANTIZE_PATH}?{urlencode({'reference': reference}, errors='replace')}", one(QuantizeChoices))
