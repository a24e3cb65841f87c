"""`ext["quantized"]` of a manifest: what a model was made of, how small it became, and what that cost. Pure.

Written by the node that made it, and its publisher's word for whoever reads it. Page: protocols/manifest.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

QUANTIZED_KEY: Final = "quantized"
TEXT_CHARACTERS_MAX: Final = 256
MEASURES: Final = ("perplexity", "cosine", "none")


@dataclass(frozen=True, slots=True)
class Quantized:
    kind: str
    """`Q4_K_M`, `INT8`, ...: what was asked for."""
    parent: str
    """`publisher/name@version` of what it was made of, or `cid:` and its root."""
    parent_bytes: int
    """Of the parent's weights."""
    size_bytes: int
    """Of its own."""
    ratio_fp32: float = 0.0
    """Its bytes to 4 bytes a weight; 0: the number of weights is not known."""
    ratio_fp16: float = 0.0
    measure: str = "none"
    """`perplexity` or `cosine`; `none`: not measured, and `reason` says why."""
    quality_parent: float = 0.0
    quality: float = 0.0
    """The same measure of the new model; of cosines the least over all texts."""
    quality_mean: float = 0.0
    """The mean of the cosines."""
    reason: str = ""


def ext_of(said: Quantized) -> dict[str, Any]:
    """`{"quantized": {...}}`."""
    quality = {
        "measure": said.measure,
        "parent": said.quality_parent,
        "value": said.quality,
        "mean": said.quality_mean,
        "reason": said.reason,
    }
    fields = {
        "kind": said.kind,
        "parent": said.parent,
        "parent_bytes": said.parent_bytes,
        "bytes": said.size_bytes,
        "ratio_fp32": said.ratio_fp32,
        "ratio_fp16": said.ratio_fp16,
        "quality": quality,
    }
    return {QUANTIZED_KEY: fields}


def quantized_from(ext: Mapping[str, Any]) -> Quantized | None:
    """As a publisher claims it; None where nothing is said. What is missing or odd is empty. Never raises."""
    said = ext.get(QUANTIZED_KEY)
    if not isinstance(said, Mapping) or not _text(said.get("kind")):
        return None
    quality = said.get("quality")
    measured: Mapping[str, Any] = quality if isinstance(quality, Mapping) else {}
    measure = measured.get("measure")
    return Quantized(
        kind=_text(said.get("kind")),
        parent=_text(said.get("parent")),
        parent_bytes=_whole(said.get("parent_bytes")),
        size_bytes=_whole(said.get("bytes")),
        ratio_fp32=_number(said.get("ratio_fp32")),
        ratio_fp16=_number(said.get("ratio_fp16")),
        measure=measure if measure in MEASURES else "none",
        quality_parent=_number(measured.get("parent")),
        quality=_number(measured.get("value")),
        quality_mean=_number(measured.get("mean")),
        reason=_text(measured.get("reason")),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= TEXT_CHARACTERS_MAX and value.isprintable() else ""


def _whole(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**53 else 0


def _number(value: Any) -> float:
    return float(value) if type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e12 else 0.0
