"""How embeddings of a model and of its smaller child are compared: sentences, pooling, cosines. Imports no library."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octonode.engines.quantizing.job import Quality
from octonode.engines.quantizing.sentences import SENTENCES

__all__ = ["SENTENCES", "cosines", "pooled", "pooling_of"]


def pooling_of(folder: Path) -> str:
    """`cls` where the folder's files of sentence-transformers say so, else `mean`: both are compared the same way, so
    that a rarer pooling costs a little likeness to what it serves and nothing else."""
    try:
        modules = json.loads((folder / "modules.json").read_bytes())
        path = next(each["path"] for each in modules if str(each["type"]).endswith("Pooling"))
        said = json.loads((folder / path / "config.json").read_bytes())
        return "cls" if said.get("pooling_mode_cls_token") is True else "mean"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return "mean"


def pooled(first_output: Any, pooling: str) -> Any:
    """One vector of the first output of a model for one sentence: [1, tokens, dimensions], or pooled by the graph."""
    if first_output.ndim == 2:
        return first_output[0]
    return first_output[0, 0] if pooling == "cls" else first_output[0].mean(0)


def cosines(before: Sequence[Any], after: Sequence[Any]) -> Quality:
    """Between the vectors of the parent and of the new model, pair by pair."""
    found = [_cosine([float(x) for x in a], [float(y) for y in b]) for a, b in zip(before, after, strict=True)]
    if not all(math.isfinite(each) for each in found):
        return Quality("cosine", 1.0, 0.0, 0.0, "the new model gives numbers that are none")
    return Quality("cosine", 1.0, min(found), sum(found) / len(found))


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    length = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / length if length else math.nan
