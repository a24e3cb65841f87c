"""What is asked of the child, and what it gives. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

Format = Literal["gguf", "onnx", "safetensors"]

KINDS: Final[dict[str, dict[str, str]]] = {
    "gguf": {
        "F16": "16 bits, nothing lost but range; the base for others",
        "Q8_0": "8 bits and a scale for 32 weights",
        "Q4_0": "4 bits and a scale for 32 weights",
        "Q4_K_M": "4 to 6 bits in blocks of 256: the usual choice",
    },
    "onnx": {
        "INT8": "weights of 8 bits, activations measured at run time",
        "INT4": "weights of 4 bits in blocks of 32; embeddings stay as they are",
    },
    "safetensors": {
        "FP16": "16 bits; what has 16 already is rounded and not smaller",
        "FP8": "8 bits and a scale for each row, for GPUs of compute capability 8.9 and above",
    },
}
"""Format of the model -> what can be made of it, and what that is."""


@dataclass(frozen=True, slots=True)
class Job:
    format: str
    kind: str
    """A key of `KINDS[format]`."""
    source: str
    """The model's file, or its folder."""
    target: str
    """An empty folder: the new model's files go there."""
    category: str = "llm"
    threads: int = 1
    measure: bool = True
    """Compare with the parent: perplexity, or the cosine of embeddings."""
    files: tuple[str, ...] = ()
    """Where `source` is a folder, the paths in it that belong to the model; nothing else is copied."""
    file_bytes_max: int = 0
    """The largest file that may be written; 0: `sandbox.FILE_BYTES_MAX`."""
    sandbox: bool = True
    parent: int = 0
    """Process that the child dies with; 0: it ends when its standard input does."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How much was lost, by one measure on a text that comes with octonode."""

    measure: Literal["perplexity", "cosine", "none"] = "none"
    parent: float = 0.0
    """Perplexity of the parent; 1 for a cosine."""
    value: float = 0.0
    """Perplexity of the new model; the least cosine between embeddings of both, over all texts."""
    mean: float = 0.0
    """The mean cosine."""
    reason: str = ""
    """Why nothing was measured."""


@dataclass(frozen=True, slots=True)
class Made:
    path: str
    """The new model: a file in the target folder, or that folder itself."""
    parent_bytes: int
    bytes: int
    weights: int
    """Number of weights, by which the ratios to FP32 (4 bytes each) and FP16 (2) are taken; 0: not known."""
    quality: Quality
    seconds: float = 0.0


Tell = Callable[[str, int, int], None]
"""(stage, done, total): progress for whoever waits."""


def ratios(size_bytes: int, weights: int) -> tuple[float, float]:
    """(size to FP32, size to FP16); 0 where the number of weights is not known."""
    if not weights:
        return 0.0, 0.0
    return size_bytes / (4 * weights), size_bytes / (2 * weights)
