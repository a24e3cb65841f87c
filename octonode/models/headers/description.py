"""What an inspection finds, what it is given, and how it refuses. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from octonode.errors import OctonodeError, printable


class FormatRefused(OctonodeError):
    """The file is not a model that this program takes. `detail["file"]` is its path in the model, where it has one."""

    code = "FORMAT_REFUSED"


@dataclass(frozen=True, slots=True)
class FileBytes:
    """One file of a model. `open` gives it from its start; the inspection closes it, and has one open at a time."""

    path: str
    """Relative POSIX path in the model."""
    size_bytes: int
    open: Callable[[], BinaryIO]


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers that keep the same amount of keys and values for each token."""

    layers: int
    key_values: int
    """Numbers kept as key for one token in one layer: KV heads x head dimension."""
    value_values: int
    window_tokens: int = 0
    """Tokens that are kept at most (sliding window); 0: all of the context."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a network as its header says; 0 where it does not."""

    parameters: int = 0
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    embedding: int = 0
    feed_forward: int = 0
    vocab: int = 0
    experts: int = 0
    caches: tuple[CacheGroup, ...] = ()
    """Empty where the header does not say enough, and for networks that keep none."""
    state_bytes: int = 0
    """Kept for each stream whatever its length (recurrent layers)."""


@dataclass(frozen=True, slots=True)
class FormatInfo:
    """What the headers say. Texts are the files' own claims, cleaned and cut."""

    format: str
    """`gguf`, `safetensors`, `onnx`, `tensorrt`, `ctranslate2` or `scripted`."""
    architecture: str = ""
    quantization: str = ""
    context_tokens: int = 0
    chat_template_sha256: bytes = b""
    name: str = ""
    licence: str = ""
    category: str = "llm"
    shape: Shape = Shape()
    weights_bytes: int = 0
    """Of tensors in all files of this format."""
    opens: str = ""
    """Path in the model of the file that an engine opens; empty: the directory."""
    made_with: str = ""
    """Versions that matter to engines, such as `TensorRT-LLM 0.20.0` or `ai.onnx 17, com.microsoft 1`."""
    compute_capability: str = ""
    """The lowest CUDA compute capability that runs it, such as `8.9`; empty: none is needed."""
    notes: tuple[str, ...] = ()
    """What is there and is not used, in words."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Path in the model -> format; `other` for what stands beside the weights."""


def clean(text: object, characters_max: int = 128) -> str:
    """A text of a stranger's file for a line of ours; empty when it is no text."""
    if not isinstance(text, str):
        return ""
    return printable(text, characters_max).strip()


def count(value: object, ceiling: int = 2**40) -> int:
    """A claimed size; 0 when it is no whole number from 0 to `ceiling`."""
    return value if type(value) is int and 0 <= value <= ceiling else 0
