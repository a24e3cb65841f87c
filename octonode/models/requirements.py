"""What a model needs of a machine: weights, key-value cache and overhead for a context, against memory, engine, GPU and
disk. Pure.

Formulas and where they come from:

- **Weights**: the bytes of all tensors, from the headers.
- **Cache**: for each layer `cells x (KV heads x head dimension of keys + of values) x bytes of the cache type`
  (`llama_kv_cache` of llama.cpp; the same in vLLM's block tables). Grouped queries are in the KV heads. llama.cpp pads
  cells to 256 a stream; a layer with a sliding window keeps `min(context, window + batch)` cells
  (`llama_kv_cache_iswa`). Recurrent layers keep a state of one size for each stream.
- **Overhead**: the buffer of one batch, `batch x 4 bytes x (vocabulary + embedding)`, which llama.cpp reserves for the
  logits (Llama 3 8B, batch 512: 258.5 MiB), and the process, `PROCESS_BYTES`, measured with SmolLM2 135M on a CPU.
  What a GPU and what servers keep for themselves are allowances, marked as such.

Where the headers say too little, the cache is estimated from the number of parameters and the answer says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from octonode.hardware.tiers import TIERS
from octonode.models.formats import FormatInfo, Shape

GIGABYTE: Final = 10**9
DEFAULT_CONTEXT_TOKENS: Final = 8192
"""What is asked about where nobody says a context, or the model's own limit where that is less."""
CONTEXT_TOKENS_MAX: Final = 2**24
CELLS_PADDED_TO: Final = 256
BATCH_TOKENS: Final = 64
"""Our setting `engines.prefill_chunk_tokens`."""
PROCESS_BYTES: Final = 64_000_000
"""Of a worker before weights, cache and buffers: interpreter, llama.cpp, vocabulary."""
GPU_PROCESS_BYTES: Final = 500_000_000
"""An allowance: a CUDA context with its kernels takes 0.3 to 0.6 GB of VRAM."""
SERVER_BYTES: Final = 1_500_000_000
"""An allowance: vLLM and TensorRT-LLM with their graphs and activations."""
EDGE_MEMORY_BYTES: Final = 8 * GIGABYTE
"""RAM that a machine of the tier `edge`, which has no floor, is taken to have."""
GUESSED_CACHE: Final = 2.0
"""Bytes of cache a token = this x sqrt(parameters), where the shape is unknown: 2.0 (SmolLM2 135M), 1.5 (Llama 3 8B),
1.2 (Llama 3 70B)."""

CACHE_TYPE_BITS: Final[Mapping[str, float]] = {
    "f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q5_1": 6.0, "q5_0": 5.5, "q4_1": 5.0, "q4_0": 4.5,
}  # fmt: skip
QUANTIZATION_BITS: Final[Mapping[str, float]] = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.56, "Q5_K_M": 5.7, "Q4_K_M": 4.89, "Q4_1": 5.0,
    "Q4_0": 4.5, "Q3_K_M": 4.0, "Q2_K": 3.16, "IQ2_M": 2.93, "IQ1_M": 2.15, "F8_E4M3": 8.0, "I8": 8.0, "U8": 8.0,
}  # fmt: skip
"""Bits a weight of whole models, Llama 3.1 8B as llama.cpp's tools/quantize/README.md lists it."""
_SMALLER: Final = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
_ON_CPU: Final = ("gguf", "onnx", "safetensors", "ctranslate2", "scripted")
"""Formats whose engines run without a GPU."""
_BESIDE_GPU: Final = ("gguf", "onnx", "scripted")
"""Formats that are run in RAM where a GPU is there and too small."""
_WITH_CONTEXT: Final = ("llm", "embeddings", "other")
"""Categories that read tokens; pictures and sounds have no context to ask about."""

BlockKind = Literal["vram", "ram", "free", "engine", "compute_capability", "disk", "context", "unknown"]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model as far as its needs go."""

    reference: str
    format: str
    weights_bytes: int
    size_bytes: int
    """On disk, all files."""
    context_tokens: int = 0
    """Its own limit; 0: unknown."""
    quantization: str = ""
    category: str = "llm"
    architecture: str = ""
    shape: Shape = field(default_factory=Shape)
    compute_capability: str = ""
    missing_bytes: int = 0
    """Still to be fetched."""
    known: bool = True
    """False: nothing but its name is known here."""

    @property
    def exact(self) -> bool:
        """The cache is computed and not guessed."""
        return bool(self.shape.caches) or bool(self.shape.state_bytes) or self.category != "llm"

    @property
    def parameters(self) -> int:
        """Said by the header, else estimated by the bits of its quantization."""
        return self.shape.parameters or int(self.weights_bytes * 8 / QUANTIZATION_BITS.get(self.quantization, 8.0))


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine, or a tier of machines. None: not looked at."""

    name: str
    vram_bytes: int = 0
    memory_bytes: int = 0
    vram_free_bytes: int | None = None
    memory_free_bytes: int | None = None
    disk_free_bytes: int | None = None
    compute_capability: tuple[int, int] | None = None
    runs: Mapping[str, str] | None = None
    """Format -> empty where an engine for it is installed, else what to do."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes, by what they are for."""

    weights_bytes: int
    cache_bytes: int
    overhead_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.cache_bytes + self.overhead_bytes


@dataclass(frozen=True, slots=True)
class Block:
    """Why it does not run there."""

    kind: BlockKind
    words: str


@dataclass(frozen=True, slots=True)
class Fit:
    """One model on one machine at one context."""

    machine: str
    context_tokens: int
    place: Literal["vram", "ram"]
    need: Need
    of_bytes: int
    """Memory of that place."""
    blocks: tuple[Block, ...] = ()
    largest_context_tokens: int = 0
    """That would fit there, at most the model's own limit; 0: none."""
    smaller: tuple[str, ...] = ()
    """Quantizations of the same model that would fit, where this one does not."""

    @property
    def fits(self) -> bool:
        return not self.blocks


def subject_of(info: FormatInfo, reference: str, size_bytes: int) -> Subject:
    """Of an inspected model."""
    return Subject(
        reference=reference,
        format=info.format,
        weights_bytes=info.weights_bytes or size_bytes,
        size_bytes=size_bytes,
        context_tokens=info.context_tokens,
        quantization=info.quantization,
        category=info.category,
        architecture=info.architecture,
        shape=info.shape,
        compute_capability=info.compute_capability,
    )


def default_context(limit_tokens: int) -> int:
    return min(limit_tokens or DEFAULT_CONTEXT_TOKENS, DEFAULT_CONTEXT_TOKENS)


def cache_bytes(
    subject: Subject,
    context_tokens: int,
    *,
    parallel: int = 1,
    cache_type: str = "f16",
    batch_tokens: int = BATCH_TOKENS,
) -> int:
    """Of `parallel` streams of `context_tokens` each."""
    shape = subject.shape
    if not subject.exact:
        return int(GUESSED_CACHE * math.sqrt(subject.parameters) * _padded(context_tokens)) * parallel
    if subject.category == "embeddings":
        return 0
    bits = 0.0
    for group in shape.caches:
        cells = _padded(min(context_tokens, group.window_tokens + batch_tokens)) if group.window_tokens else 0
        cells = cells or _padded(context_tokens)
        bits += group.layers * cells * (group.key_values + group.value_values) * CACHE_TYPE_BITS[cache_type]
    return (int(bits) // 8 + shape.state_bytes) * parallel


def _padded(tokens: int) -> int:
    return -(-tokens // CELLS_PADDED_TO) * CELLS_PADDED_TO


def need_of(
    subject: Subject,
    context_tokens: int,
    *,
    place: Literal["vram", "ram"],
    parallel: int = 1,
    cache_type: str = "f16",
    batch_tokens: int = BATCH_TOKENS,
) -> Need:
    """What loading it takes there, in bytes."""
    cache = cache_bytes(subject, context_tokens, parallel=parallel, cache_type=cache_type, batch_tokens=batch_tokens)
    if subject.format in ("gguf", "scripted"):
        overhead = batch_tokens * 4 * (subject.shape.vocab + subject.shape.embedding)
        overhead += GPU_PROCESS_BYTES if place == "vram" else PROCESS_BYTES
    elif subject.format == "onnx":
        overhead = subject.weights_bytes // 10 + (GPU_PROCESS_BYTES if place == "vram" else PROCESS_BYTES)
    else:
        overhead = SERVER_BYTES
    return Need(subject.weights_bytes, cache, overhead)


def judge(
    subject: Subject, machine: Machine, context_tokens: int = 0, *, parallel: int = 1, cache_type: str = "f16"
) -> Fit:
    """Whether it runs there, what blocks it, and what would fit. `context_tokens` 0: the default one."""
    context = context_tokens or default_context(subject.context_tokens)
    if subject.category not in _WITH_CONTEXT:
        context = 0
    place: Literal["vram", "ram"] = "vram" if machine.vram_bytes else "ram"
    choice = {"parallel": parallel, "cache_type": cache_type}
    need = _need(subject, context, place, choice)
    on_cpu = subject.format in _BESIDE_GPU and machine.memory_bytes > 0
    if place == "vram" and need.total_bytes > machine.vram_bytes and on_cpu:
        slower = _need(subject, context, "ram", choice)
        if slower.total_bytes <= machine.memory_bytes:
            place, need = "ram", slower
    of_bytes = machine.vram_bytes if place == "vram" else machine.memory_bytes
    blocks = _blocks(subject, machine, context, place, need, of_bytes)
    return Fit(
        machine.name,
        context,
        place,
        need,
        of_bytes,
        blocks,
        _largest_context(subject, place, of_bytes, choice),
        _smaller(subject, context, place, of_bytes, choice) if need.total_bytes > of_bytes else (),
    )


def _need(subject: Subject, context: int, place: Literal["vram", "ram"], choice: Mapping[str, Any]) -> Need:
    return need_of(subject, context, place=place, **choice)


def _blocks(
    subject: Subject, machine: Machine, context: int, place: str, need: Need, of_bytes: int
) -> tuple[Block, ...]:
    found: list[Block] = []
    total, what = need.total_bytes, "VRAM" if place == "vram" else "RAM"
    if not subject.known:
        found.append(Block("unknown", "its size is not known here; fetch its manifest: octonode models show REFERENCE"))
    if subject.context_tokens and context > subject.context_tokens:
        text = f"it was made for {tokens(subject.context_tokens)} of context; ask for at most that: --context"
        found.append(Block("context", text))
    if place == "ram" and subject.format not in _ON_CPU:
        found.append(Block("vram", f"engines for {subject.format} need a GPU, and there is none"))
    elif total > of_bytes:
        found.append(Block("vram" if place == "vram" else "ram", f"too little {what}"))
    else:
        free = machine.vram_free_bytes if place == "vram" else machine.memory_free_bytes
        if free is not None and total > free:
            text = f"{gigabytes(free)} of {gigabytes(of_bytes)} {what} are free now; end what uses the rest"
            found.append(Block("free", text))
    if machine.runs is not None and (problem := machine.runs.get(subject.format, _no_engine(subject))):
        found.append(Block("engine", problem))
    wanted = _capability(subject.compute_capability)
    if wanted and machine.compute_capability and machine.compute_capability < wanted:
        has = ".".join(map(str, machine.compute_capability))
        text = f"compute capability {subject.compute_capability} is needed, the GPU has {has}"
        found.append(Block("compute_capability", text))
    if machine.disk_free_bytes is not None and subject.missing_bytes > machine.disk_free_bytes:
        text = (
            f"disk: {gigabytes(subject.missing_bytes)} are to be fetched and {gigabytes(machine.disk_free_bytes)} are "
            "free; make room: octonode models rm"
        )
        found.append(Block("disk", text))
    return tuple(found)


def _no_engine(subject: Subject) -> str:
    return f"no engine here runs {subject.format or 'it'}"


def _capability(text: str) -> tuple[int, int] | None:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() and len(text) < 8 else None


def _largest_context(subject: Subject, place: Literal["vram", "ram"], of_bytes: int, choice: Mapping[str, Any]) -> int:
    """The largest multiple of 256 that fits, or the model's own limit if that fits."""
    limit = subject.context_tokens or CONTEXT_TOKENS_MAX
    if _need(subject, limit, place, choice).total_bytes <= of_bytes:
        return subject.context_tokens
    low, high = 0, limit // CELLS_PADDED_TO
    while low < high:
        middle = (low + high + 1) // 2
        if _need(subject, middle * CELLS_PADDED_TO, place, choice).total_bytes <= of_bytes:
            low = middle
        else:
            high = middle - 1
    return low * CELLS_PADDED_TO


def _smaller(
    subject: Subject, context: int, place: Literal["vram", "ram"], of_bytes: int, choice: Mapping[str, Any]
) -> tuple[str, ...]:
    if subject.format not in ("gguf", "safetensors") or not subject.parameters:
        return ()
    found = []
    for name in _SMALLER:
        weights = int(subject.parameters * QUANTIZATION_BITS[name] / 8)
        need = _need(replace(subject, weights_bytes=weights, format="gguf"), context, place, choice)
        if weights < subject.weights_bytes and need.total_bytes <= of_bytes:
            found.append(name)
    return tuple(found)


def tier_machines() -> tuple[Machine, ...]:
    """One for each tier, with the memory at its floor; what else a tier has is not known."""
    return tuple(
        Machine(tier.name, tier.floor_bytes, EDGE_MEMORY_BYTES if not tier.floor_bytes else 0) for tier in TIERS
    )


# -- in words -----------------------------------------------------------------------------------------------------


def gigabytes(size_bytes: int) -> str:
    """`5.1 GB`, `24 GB`; decimal, as memory of cards is sold."""
    value = size_bytes / GIGABYTE
    text = f"{value:.1f}" if value < 100 else f"{value:.0f}"
    return f"{text.removesuffix('.0')} GB"


def tokens(count: int) -> str:
    """`8k`, `117k`, rounded down; plain where that would lose much."""
    return f"{count // 1024}k" if count % 1024 == 0 or count >= 10 * 1024 else str(count)


def in_words(fit: Fit) -> str:
    """`needs 5.1 GB of 8 GB at 8k context`, then what blocks and what would fit; no context where there is none."""
    what = "" if fit.place == "vram" else " of RAM"
    needed, there = gigabytes(fit.need.total_bytes), gigabytes(fit.of_bytes)
    line = f"needs {needed} of {there}{what}"
    if fit.context_tokens:
        line += f" at {tokens(fit.context_tokens)} context"
    parts = [line, *(block.words for block in fit.blocks)]
    too_much = fit.need.total_bytes > fit.of_bytes
    if too_much and 0 < fit.largest_context_tokens < fit.context_tokens:
        parts.append(f"{tokens(fit.largest_context_tokens)} of context would fit")
    if too_much and fit.smaller:
        parts.append(f"{fit.smaller[0]} would fit")
    return "; ".join(parts)
