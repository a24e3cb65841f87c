"""What can be made of a model with what is installed here, and how many bytes that takes. Imports no engine library."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from octonode.engines.quantizing.job import KINDS
from octonode.engines.select import python_for

FP8_CAPABILITY: Final = (8, 9)
_PLAIN: Final = ("", "F64", "F32", "F16", "BF16")
"""Types of numbers that SafeTensors have before they are quantized."""
_SAME: Final = {"FP16": "F16"}
MIB: Final = 1024 * 1024
SPARE_BYTES: Final = 64 * MIB
BITS: Final[dict[str, float]] = {"F16": 16.0, "Q8_0": 8.5, "Q4_0": 4.5, "Q4_K_M": 5.5, "FP16": 16.0}
"""Of a weight, for kinds that make nearly all of them so."""
SPARE_PART: Final = 1.25
"""Embeddings and what does not divide into blocks keep more bits; in small models that is much."""


@dataclass(frozen=True, slots=True)
class Needs:
    """The libraries by which models of one format are made smaller."""

    engine: str
    """Whose interpreter, of `engines.pythons`, has them."""
    modules: tuple[str, ...]
    extra: str


NEEDS: Final[dict[str, Needs]] = {
    "gguf": Needs("llama-cpp-python", ("llama_cpp",), "octonode[llama-cpp-python]"),
    "onnx": Needs("onnx-embeddings", ("onnx", "onnxruntime", "onnx_ir", "tokenizers"), "octonode[quantize]"),
    "safetensors": Needs("transformers", ("torch", "safetensors", "transformers"), "octonode[transformers]"),
}


def interpreter(model_format: str, pythons: Sequence[str], default: str) -> str:
    """The Python that makes models of this format smaller; empty: ours."""
    return python_for(NEEDS[model_format].engine, pythons) or default


def problem(
    model_format: str, kind: str, *, python: str = "", capability: tuple[int, int] | None = None, quantized: str = ""
) -> tuple[str, str]:
    """(code, why this cannot be made here and what to do), both empty where it can.

    What another interpreter has is believed. `capability` is the least compute capability of the GPUs here; `quantized`
    how the model is quantized already, as its files say.
    """
    kinds = KINDS.get(model_format)
    if kinds is None:
        return "UNSUPPORTED", f"{model_format or 'such'} models are not made smaller; {', '.join(KINDS)} are"
    if kind not in kinds:
        return "UNSUPPORTED", f"{model_format} models are not made into {kind}; take one of {', '.join(kinds)}"
    if quantized == _SAME.get(kind, kind):
        return "UNSUPPORTED", f"the model is {kind} already"
    if model_format == "safetensors" and quantized not in _PLAIN:
        return "UNSUPPORTED", f"the model is quantized already ({quantized}); take the one that it was made from"
    if kind == "FP8" and (capability is None or capability < FP8_CAPABILITY):
        return "UNSUPPORTED", _no_fp8(capability)
    missing = [name for name in NEEDS[model_format].modules if not python and not _is_there(name)]
    if missing:
        return "CONFIG", f"{', '.join(missing)} is not installed; run: pip install '{NEEDS[model_format].extra}'"
    return "", ""


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _no_fp8(capability: tuple[int, int] | None) -> str:
    has = "there is none here" if capability is None else f"the one here has {capability[0]}.{capability[1]}"
    return (
        f"FP8 is computed by NVIDIA GPUs of compute capability 8.9 and above, and {has}; make FP16, or Q8_0 of the "
        'GGUF, or serve it on such a GPU with vllm.quantization = "fp8"'
    )


def bytes_for(model_format: str, kind: str, *, size_bytes: int, weights_bytes: int, parameters: int) -> int:
    """The most that the new model is expected to take, files beside the weights included."""
    bits = BITS.get(kind, 0.0)
    weights_bytes = weights_bytes or size_bytes
    beside = max(0, size_bytes - weights_bytes)
    if parameters and bits:
        weights = int(parameters * bits / 8 * SPARE_PART)
    else:  # smaller than its parent, but for what is unpacked to 16 bits from as few as 4
        weights = weights_bytes * 4 if kind in ("F16", "Q8_0") else weights_bytes
    return weights + beside + SPARE_BYTES


def scratch_for(model_format: str, kind: str, *, size_bytes: int) -> int:
    """Bytes written on the way: ONNX Runtime writes the graph once more, with the shapes it finds."""
    return size_bytes if (model_format, kind) == ("onnx", "INT8") else 0
